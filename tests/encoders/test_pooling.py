import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perdure.encoders import POOLINGS, build_encoder
from perdure.encoders.parts import PoolingPart
from perdure.encoders.pooling import MAC, AveragePooling, GeM, Pooling, SPoC
from perdure.errors import ConfigError

NAMES = ["avg", "mac", "spoc", "gem", "crow", "rmac"]
SIZES = [(1, 1), (2, 2), (7, 7), (1, 8), (5, 3), (4, 9)]


def maps(*shape: int, seed: int = 0, low: float = -0.5) -> Tensor:
    """What a ReLU leaves: about a third zeros."""
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + low).clamp(min=0)


def one_by_one(features: Tensor, of_channel: Callable[[list[list[float]]], float]) -> Tensor:
    """(B, C) by a function of one channel's map, written as rows of numbers."""
    return torch.tensor([[of_channel(channel.tolist()) for channel in image] for image in features])


def test_the_catalog_holds_the_poolings_that_the_survey_asks_for() -> None:
    assert list(POOLINGS) == NAMES


# -- every pooling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_any_map_becomes_one_vector_of_float32_also_under_bf16_autocast(name: str, size: tuple[int, int]) -> None:
    pooling, features = POOLINGS.build(name, {}), maps(2, 3, *size)
    plain = pooling(features)
    assert plain.shape == (2, 3, 1, 1) and plain.dtype == torch.float32 and plain.isfinite().all()
    layout = features.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, low = pooling(layout), pooling(features.bfloat16())
    assert low.dtype == torch.float32
    torch.testing.assert_close(inside, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(low, pooling(features.bfloat16().float()))


@pytest.mark.parametrize("filled", ["nothing", "one place", "one tiny value", "large", "equal", "negative"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_finite_on_any_map(name: str, size: tuple[int, int], filled: str) -> None:
    features = torch.zeros(2, 4, *size)
    if filled == "one place":
        features[0, 1, 0, 0] = 2.0
    elif filled == "one tiny value":
        features[0, 1, 0, 0] = 1e-20
    elif filled == "large":
        features = maps(2, 4, *size) * 1e6
    elif filled != "nothing":
        features += 1.5 if filled == "equal" else -1.5
    features.requires_grad_()
    pooled = POOLINGS.build(name, {})(features)
    pooled.square().sum().backward()
    assert pooled.isfinite().all() and features.grad is not None and features.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_agrees_with_finite_differences(name: str) -> None:
    pooling, features = POOLINGS.build(name, {}), (maps(1, 3, 4, 5, low=0.2)).requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1)
    (pooling(features) * weights).sum().backward()
    assert features.grad is not None
    for place in [(0, 0, 1, 2), (0, 1, 3, 4), (0, 2, 0, 0), tuple(int(i) for i in (features[0] == features[0, 0].max()).nonzero()[0])]:
        at = place if len(place) == 4 else (0, *place)
        step = torch.zeros_like(features)
        step[at] = 2e-3
        with torch.no_grad():
            slope = ((pooling(features + step) - pooling(features - step)) * weights).sum() / 4e-3
        assert features.grad[at].item() == pytest.approx(slope.item(), rel=2e-2, abs=2e-3), at


@pytest.mark.parametrize("name", NAMES)
def test_channels_keep_their_places_and_pictures_do_not_see_each_other(name: str) -> None:
    pooling, features = POOLINGS.build(name, {}), maps(3, 5, 6, 4)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(pooling(features[:, order]), pooling(features)[:, order])
    torch.testing.assert_close(pooling(features[1:2]), pooling(features)[1:2])


@pytest.mark.parametrize("name", ["avg", "mac", "gem", "crow"])
def test_where_in_the_map_a_feature_lies_does_not_matter_without_a_geometry(name: str) -> None:
    features = maps(2, 3, 4, 5)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    shuffled = features.flatten(2)[:, :, order].view(2, 3, 5, 4)
    torch.testing.assert_close(POOLINGS.build(name, {})(shuffled), POOLINGS.build(name, {})(features))


@pytest.mark.parametrize("name", ["spoc", "rmac"])
def test_a_geometry_has_no_left_and_no_right_but_a_middle(name: str) -> None:
    pooling, features = POOLINGS.build(name, {}), maps(2, 3, 8, 8)
    for mirrored in (features.flip(3), features.flip(2), features.transpose(2, 3)):
        torch.testing.assert_close(pooling(mirrored), pooling(features))
    assert not torch.allclose(pooling(features.roll(3, dims=3)), pooling(features), rtol=1e-3)


@pytest.mark.parametrize(("name", "degree"), [("avg", 1), ("mac", 1), ("spoc", 1), ("gem", 1), ("crow", 1), ("rmac", 0)])
def test_a_map_twice_as_strong_gives_a_vector_twice_as_long_and_regions_the_same(name: str, degree: int) -> None:
    pooling, features = POOLINGS.build(name, {}), maps(2, 3, 5, 5, low=0.0)
    torch.testing.assert_close(pooling(2 * features), 2**degree * pooling(features), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_what_is_not_a_batch_of_maps(name: str) -> None:
    for wrong in (torch.zeros(2, 3), torch.zeros(3, 4, 4), torch.zeros(2, 3, 0, 4)):
        with pytest.raises(ValueError, match="expected maps"):
            POOLINGS.build(name, {})(wrong)


# -- equations as loops -----------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
def test_average_and_maximum_are_those_of_a_channel(height: int, width: int, seed: int) -> None:
    features = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    mean = one_by_one(features, lambda rows: sum(sum(row) for row in rows) / (height * width))
    torch.testing.assert_close(AveragePooling()(features).flatten(1), mean)
    assert torch.equal(MAC()(features).flatten(1), one_by_one(features, lambda rows: max(max(row) for row in rows)))


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 1000))
def test_spoc_equals_the_centred_sum_written_as_loops(height: int, width: int, seed: int) -> None:
    features = maps(2, 3, height, width, seed=seed)
    third = min(height / 2, width / 2) / 3  # of the way from the middle to the nearest edge

    def centred(rows: list[list[float]]) -> float:
        total = 0.0
        for y in range(height):
            for x in range(width):
                away = (y + 0.5 - height / 2) ** 2 + (x + 0.5 - width / 2) ** 2  # between the middles of a place and of the map
                total += math.exp(-away / (2 * third**2)) * rows[y][x]
        return total

    torch.testing.assert_close(SPoC()(features).flatten(1), one_by_one(features, centred), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(SPoC(prior=False)(features).flatten(1), one_by_one(features, lambda rows: sum(map(sum, rows))))


@given(st.floats(1.0, 6.0), st.integers(1, 4), st.integers(1, 4), st.integers(0, 10_000))
def test_gem_equals_equation_3_written_as_loops(p: float, height: int, width: int, seed: int) -> None:
    features = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))

    def mean(rows: list[list[float]]) -> float:
        return (sum(max(value, 1e-3) ** p for row in rows for value in row) / (height * width)) ** (1 / p)

    torch.testing.assert_close(GeM(p=p, eps=1e-3)(features).flatten(1), one_by_one(features, mean), rtol=1e-4, atol=1e-6)


def test_gem_of_p_1_is_the_average_and_of_large_p_nearly_the_maximum() -> None:
    features = torch.rand(2, 3, 4, 4) + 0.1
    torch.testing.assert_close(GeM(p=1.0)(features), AveragePooling()(features))
    torch.testing.assert_close(GeM(p=300.0)(features), MAC()(features), rtol=0.02, atol=0)


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


# -- as an option of an encoder ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("encoder", "options"), [("small_resnet", {"width": 4}), ("torchvision", {"architecture": "shufflenet_v2_x0_5"})])
def test_both_encoders_take_any_of_them_by_name(encoder: str, options: dict[str, Any], name: str) -> None:
    made = build_encoder(encoder, {"pooling": name, "embedding_dim": 8, "image_size": 32, **options}, with_text=False, seed=0)
    # torchvision's own average stays where a model computes it in its forward
    expected = 0 if (encoder, name) == ("torchvision", "avg") else 1
    found = [module for module in made.modules() if isinstance(module, Pooling)]
    assert [type(module) for module in found] == [POOLINGS[name]] * expected
    assert made.embed_images(torch.rand(2, 3, 32, 32)).shape == (2, 8)


def test_a_name_alone_is_stored_as_it_is_and_options_are_all_written_out() -> None:
    stored = [
        build_encoder("small_resnet", {"pooling": part}, with_text=False, seed=0).options["pooling"] for part in ("gem", {"name": "gem"})
    ]
    assert stored == ["gem", "gem"]
    options = {"pooling": {"name": "rmac", "levels": 2}}
    written = build_encoder("small_resnet", options, with_text=False, seed=0).options["pooling"]
    assert written == {"name": "rmac", "levels": 2, "eps": 1e-4}
    assert PoolingPart.model_validate(written).build().levels == 2


@pytest.mark.parametrize(
    ("pooling", "told"),
    [
        ("crowd", "Did you mean 'crow'"),
        ({"name": "spoc", "priot": True}, "Did you mean 'prior'"),
        ({"name": "avg", "p": 3}, "p: no such option"),
        ({"name": "gem", "p": 0.5}, "greater than or equal to 1"),
        ({"name": "rmac", "levels": 0}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_pooling_is_refused_with_the_right_word(pooling: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build_encoder("small_resnet", {"pooling": pooling}, with_text=False, seed=0)
