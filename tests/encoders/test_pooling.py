import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perdure.encoders.pooling import AveragePooling, GeM


@given(st.floats(1.0, 6.0), st.integers(1, 4), st.integers(1, 4), st.integers(0, 10_000))
def test_gem_equals_equation_3_written_as_loops(p: float, height: int, width: int, seed: int) -> None:
    features = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    pooled = GeM(p=p, eps=1e-3)(features)
    assert pooled.shape == (2, 3, 1, 1)
    for b in range(2):
        for c in range(3):
            total = sum(max(features[b, c, y, x].item(), 1e-3) ** p for y in range(height) for x in range(width))
            assert pooled[b, c].item() == pytest.approx((total / (height * width)) ** (1 / p), rel=1e-4)


def test_gem_of_p_1_is_the_average_and_of_large_p_nearly_the_maximum() -> None:
    features = torch.rand(2, 3, 4, 4) + 0.1
    torch.testing.assert_close(GeM(p=1.0)(features), AveragePooling()(features))
    torch.testing.assert_close(GeM(p=300.0)(features).flatten(1), features.amax(dim=(2, 3)), rtol=0.02, atol=0)


@pytest.mark.parametrize("p", [1.0, 3.0, 12.0, 80.0])
@pytest.mark.parametrize("value", [0.0, 1e-20, 1e-3, 1e4])
def test_gem_has_finite_values_and_gradients_under_bf16_autocast(p: float, value: float) -> None:
    gem = GeM(p=p)
    features = torch.full((2, 3, 4, 4), value, dtype=torch.bfloat16)
    features[0, 0, 0, 0] = 2.0
    features.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = gem(features)
    assert pooled.dtype == torch.float32
    pooled.sum().backward()
    assert pooled.isfinite().all() and features.grad is not None and features.grad.isfinite().all()
    assert gem.p.grad is not None and gem.p.grad.isfinite().all()


def test_gem_gradient_agrees_with_finite_differences() -> None:
    features = (torch.rand(1, 2, 2, 2) + 0.2).requires_grad_()
    GeM()(features).sum().backward()
    assert features.grad is not None
    step = torch.zeros_like(features)
    step[0, 1, 0, 1] = 1e-2
    with torch.no_grad():
        slope = (GeM()(features + step).sum() - GeM()(features - step).sum()) / 2e-2
    assert features.grad[0, 1, 0, 1].item() == pytest.approx(slope.item(), rel=1e-2)


def test_gem_keeps_float32_precision_of_a_channels_last_map_under_autocast() -> None:
    features = (torch.rand(2, 3, 4, 4) + 0.1).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = GeM()(features)
    assert torch.equal(inside, GeM()(features))
