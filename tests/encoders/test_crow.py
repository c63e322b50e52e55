import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from perdure.encoders.crow import CroW


def written_as_loops(image: Tensor, eps: float) -> list[float]:
    """The paper's weights of one picture, with eps where the docstring has it."""
    channels, height, width = image.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    excited = {(c, y, x): max(image[c, y, x].item(), 0.0) for c in range(channels) for y, x in places}
    s = {(y, x): sum(excited[c, y, x] for c in range(channels)) for y, x in places}
    norm = math.sqrt(sum(value**2 for value in s.values()) + eps**2)
    a = {place: math.sqrt(value / norm + eps) for place, value in s.items()}
    q = [sum(excited[c, y, x] > 0 for y, x in places) / len(places) for c in range(channels)]
    b = [math.log((channels * eps + sum(q)) / (eps + share)) for share in q]
    return [b[c] * sum(a[y, x] * image[c, y, x].item() for y, x in places) for c in range(channels)]


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 1000))
def test_equals_its_equations_written_as_loops(channels: int, height: int, width: int, negative: bool, seed: int) -> None:
    features = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(seed))
    if not negative:
        features = features.clamp(min=0)
    expected = torch.tensor([written_as_loops(image, 1e-3) for image in features])
    torch.testing.assert_close(CroW(eps=1e-3)(features).flatten(1), expected, rtol=1e-3, atol=1e-4)


def test_eps_is_too_small_to_be_seen_on_a_map_that_is_not_empty() -> None:
    features = (torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.3).clamp(min=0)
    s_hw = features[0].sum(dim=0)
    a_hw = (s_hw / s_hw.norm()).sqrt()
    q_C = (features[0] > 0).float().mean(dim=(1, 2))
    paper_C = (q_C.sum() / q_C).log() * (a_hw * features[0]).sum(dim=(1, 2))
    torch.testing.assert_close(CroW()(features).flatten(), paper_C, rtol=1e-3, atol=0)


def test_a_rare_channel_counts_more_than_a_frequent_one_of_the_same_sum() -> None:
    features = torch.zeros(1, 2, 4, 4)
    features[0, 0] = 0.5
    features[0, 1, :2] = 1.0
    frequent, rare = CroW()(features).flatten().tolist()
    assert rare > 2 * frequent > 0


def test_a_place_that_excites_many_channels_counts_more_than_one_that_excites_one() -> None:
    features = torch.full((1, 2, 1, 2), 1e-9)  # every channel is on at both places, so that only the places differ
    features[0, 1, 0, 0] = 3.0
    beside, apart = features.clone(), features.clone()
    beside[0, 0, 0, 0] = 1.0
    apart[0, 0, 0, 1] = 1.0
    assert CroW()(beside)[0, 0] > 1.5 * CroW()(apart)[0, 0]


def test_the_count_of_a_channel_carries_no_gradient_and_the_places_do() -> None:
    features = torch.rand(1, 2, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    CroW()(features)[0, 0].sum().backward()
    assert features.grad is not None
    assert features.grad[0, 1].abs().min() > 0, "channel 1 moves the weights of the places where channel 0 is summed"


def test_an_empty_map_stays_empty() -> None:
    assert CroW()(torch.zeros(1, 3, 4, 4)).abs().max() == pytest.approx(0)
