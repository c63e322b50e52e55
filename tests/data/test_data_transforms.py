"""Augmentation: equal to padding, cropping and mirroring picture by picture; the draw does not know how many workers there are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.data.transforms import Augmentation, augment, draw, to_float


def images(B: int, H: int, W: int) -> torch.Tensor:
    return torch.randint(0, 256, (B, H, W, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@given(B=st.integers(1, 5), H=st.integers(2, 9), W=st.integers(2, 9), crop=st.integers(0, 8), flip=st.booleans(), seed=st.integers(0, 999))
@settings(max_examples=80, deadline=None)
def test_equals_pad_crop_and_mirror_one_by_one(B: int, H: int, W: int, crop: int, flip: bool, seed: int) -> None:
    crop = min(crop, H - 1, W - 1)
    drawn = draw(B, torch.Generator().manual_seed(seed), crop=crop, flip=flip)
    given_images = images(B, H, W)
    result = augment(given_images, drawn)
    for b in range(B):
        padded = np.pad(given_images[b].numpy(), ((crop, crop), (crop, crop), (0, 0)), mode="reflect")
        dy, dx = int(drawn.dy[b]), int(drawn.dx[b])
        expected = padded[dy : dy + H, dx : dx + W]
        if drawn.flip[b]:
            expected = expected[:, ::-1]
        assert (result[b].numpy() == expected).all()


def test_without_crop_and_flip_nothing_changes_and_the_result_is_new() -> None:
    given_images = images(4, 8, 8)
    result = augment(given_images, draw(4, torch.Generator().manual_seed(0), crop=0, flip=False))
    assert torch.equal(result, given_images) and result.data_ptr() != given_images.data_ptr()


def test_the_share_of_a_worker_is_augmented_as_it_would_be_in_the_whole() -> None:
    drawn = draw(12, torch.Generator().manual_seed(3), crop=3, flip=True)
    whole = augment(images(12, 10, 10), drawn)
    parts = [augment(images(12, 10, 10)[part], drawn.rows(part)) for part in (slice(0, 6), slice(6, 12))]
    assert torch.equal(torch.cat(parts), whole)


def test_every_offset_and_both_sides_are_drawn_and_the_generator_advances_equally() -> None:
    drawn = draw(2000, torch.Generator().manual_seed(0), crop=2, flip=True)
    assert set(drawn.dx.tolist()) == set(range(5)) == set(drawn.dy.tolist()) and 0.4 < drawn.flip.float().mean() < 0.6
    with_all, without = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    draw(7, with_all, crop=4, flip=True)
    assert not draw(7, without, crop=0, flip=False).flip.any()
    assert torch.equal(with_all.get_state(), without.get_state())


def test_refuses_draws_that_do_not_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="crop=8"):
        augment(images(2, 8, 8), draw(2, generator, crop=8, flip=True))
    with pytest.raises(ValueError, match="2 pictures"):
        augment(images(2, 8, 8), Augmentation(torch.zeros(1).long(), torch.zeros(1).long(), torch.zeros(1).bool(), 0))


def test_to_float_is_channels_last_in_zero_to_one_and_leaves_its_input() -> None:
    given_images = images(3, 5, 7)
    before = given_images.clone()
    result = to_float(given_images)
    assert result.shape == (3, 3, 5, 7) and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(result, given_images.permute(0, 3, 1, 2) / 255) and torch.equal(given_images, before)
