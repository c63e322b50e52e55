import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from perdure.losses import batch_norm_distance, channel_statistics

Statistics = list[tuple[Tensor, Tensor]]


def draw(seed: int, channels: list[int]) -> Statistics:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(c, generator=generator).double(), torch.rand(c, generator=generator).double()) for c in channels]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), channels=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_equals_equation_7_4_written_as_loops(seed: int, channels: list[int]) -> None:
    batch, remembered = draw(seed, channels), draw(seed + 1, channels)
    expected = 0.0
    for layer, count in enumerate(channels):
        for kind in (0, 1):  # means, variances
            for c in range(count):
                expected += (float(batch[layer][kind][c]) - float(remembered[layer][kind][c])) ** 2
    assert float(batch_norm_distance(batch, remembered)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 5, 2)])
def test_the_statistics_are_those_of_each_channel_over_batch_and_places(shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape, dtype=torch.float64)
    mean, variance = channel_statistics(inputs)
    for c in range(3):
        values = inputs[:, c].flatten().tolist()
        middle = sum(values) / len(values)
        assert float(mean[c]) == pytest.approx(middle, abs=1e-12)
        assert float(variance[c]) == pytest.approx(sum((value - middle) ** 2 for value in values) / len(values), abs=1e-12)


def test_the_layout_in_memory_does_not_matter() -> None:
    inputs = torch.randn(4, 3, 5, 5)
    channels_last = inputs.contiguous(memory_format=torch.channels_last)
    for one, other in zip(channel_statistics(inputs), channel_statistics(channels_last), strict=True):
        torch.testing.assert_close(one, other)


def test_statistics_are_in_full_precision_also_of_low_precision_maps() -> None:
    inputs = torch.randn(64, 2, 8, 8) + 3
    mean, variance = channel_statistics(inputs.bfloat16())
    assert mean.dtype == variance.dtype == torch.float32
    torch.testing.assert_close(variance, inputs.var(dim=(0, 2, 3), correction=0), rtol=1e-2, atol=1e-2)


def test_a_layer_that_remembers_this_very_batch_is_at_distance_zero_and_it_grows_with_any_change() -> None:
    layer = nn.BatchNorm2d(3, momentum=1.0)
    pictures = torch.randn(32, 3, 16, 16)
    layer(pictures)
    assert layer.running_mean is not None and layer.running_var is not None
    remembered = [(layer.running_mean, layer.running_var)]
    assert float(batch_norm_distance([channel_statistics(pictures)], remembered)) < 1e-6  # it remembers the unbiased variance
    assert float(batch_norm_distance([channel_statistics(pictures + 0.1)], remembered)) == pytest.approx(3 * 0.01, rel=1e-2)
    assert float(batch_norm_distance([channel_statistics(2 * pictures)], remembered)) > 20


def test_the_gradient_reaches_the_pictures_and_not_what_is_remembered() -> None:
    remembered = [(torch.ones(2, dtype=torch.float64, requires_grad=True), torch.ones(2, dtype=torch.float64))]
    pictures = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: batch_norm_distance([channel_statistics(x)], remembered), pictures)
    batch_norm_distance([channel_statistics(pictures)], remembered).backward()
    assert remembered[0][0].grad is None


def test_refuses_layers_that_do_not_match_and_nothing_at_all() -> None:
    with pytest.raises(ValueError, match=r"got layers \[\] and remembered \[\]"):
        batch_norm_distance([], [])
    with pytest.raises(ValueError, match="batch_norm_distance: got layers"):
        batch_norm_distance(draw(0, [2]), draw(0, [3]))
    with pytest.raises(ValueError, match="batch_norm_distance: got layers"):
        batch_norm_distance(draw(0, [2]), draw(0, [2, 2]))
    with pytest.raises(ValueError, match=r"channel_statistics: got \(0, 3, 2, 2\)"):
        channel_statistics(torch.zeros(0, 3, 2, 2))
