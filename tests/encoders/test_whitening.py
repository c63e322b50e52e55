import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional

from perdure.encoders import Encoder, WhiteningOptions, build_encoder, fit_whitening, load_encoder, save_encoder
from perdure.errors import ConfigError, Corrupt

CAPTIONS = ["a red fox", "a dog's moon", "the red moon"]


def rows_of(n: int, dim: int, *, seed: int = 0) -> Tensor:
    """Unit rows whose directions have very different variances, about a mean that is not zero."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=draw) * torch.logspace(0, -1.5, dim)
    return functional.normalize(torch.randn(n, dim, generator=draw) @ mixing.T + 0.5, dim=1)


def covariance(rows: Tensor) -> Tensor:
    centred = (rows - rows.mean(dim=0)).double()
    return centred.T @ centred / len(rows)


def encoder_of(*, with_text: bool = True, whitening: dict[str, Any] | None = None) -> Encoder:
    options = {"width": 4, "embedding_dim": 8, "image_size": 16, "whitening": whitening}
    encoder = build_encoder("small_resnet", options, with_text=with_text, seed=3)
    encoder.grow(num_classes=2, captions=CAPTIONS if with_text else ())
    return encoder.eval()


def whitened(*, dim: int | None = None, with_text: bool = True) -> Encoder:
    encoder = encoder_of(with_text=with_text, whitening={"dim": dim})
    images = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    encoder.whitening = fit_whitening([encoder.embed_images(images)], dim=dim, eps=0.1)
    return encoder


# -- the fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [None, 6, 5, 1])
def test_the_covariance_of_the_fitted_rows_becomes_the_identity(dim: int | None) -> None:
    rows = rows_of(200, 6)
    head = fit_whitening([rows], dim=dim, eps=0.0)
    projected = head.project(rows)
    assert projected.shape == (200, dim or 6) and projected.dtype == torch.float32 and head.dim == (dim or 6)
    torch.testing.assert_close(covariance(projected), torch.eye(dim or 6, dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(projected.mean(dim=0), torch.zeros(dim or 6), rtol=0, atol=1e-3)


def test_equals_the_whitening_of_another_library_up_to_sign() -> None:
    rows = rows_of(300, 5)
    other = PCA(whiten=True).fit(rows.numpy())
    expected = torch.from_numpy(other.transform(rows.numpy())) * (300 / 299) ** 0.5  # it divides by n - 1
    found = fit_whitening([rows], dim=None, eps=0.0).project(rows)
    signs = (expected * found).sum(dim=0).sign()
    torch.testing.assert_close(found, (expected * signs).float(), rtol=1e-3, atol=1e-3)


def test_eps_is_a_share_of_the_mean_variance() -> None:
    rows = rows_of(300, 5)
    variances = torch.linalg.eigvalsh(covariance(rows)).flip(0)
    left = covariance(fit_whitening([rows], dim=None, eps=0.5).project(rows))
    torch.testing.assert_close(left.diagonal(), variances / (variances + 0.5 * variances.mean()), rtol=1e-3, atol=1e-5)


def test_a_large_eps_leaves_the_angles_about_the_mean_as_they_were() -> None:
    rows = rows_of(50, 5)
    centred = functional.normalize(rows - rows.mean(dim=0), dim=1)
    found = fit_whitening([rows], dim=None, eps=1e6)(rows)
    torch.testing.assert_close(found @ found.T, centred @ centred.T, rtol=0, atol=1e-4)


def test_fewer_dimensions_are_the_first_of_all_and_hold_the_most_variance() -> None:
    rows = rows_of(100, 6)
    whole, part = fit_whitening([rows], dim=None, eps=0.1), fit_whitening([rows], dim=2, eps=0.1)
    assert torch.equal(part.projection, whole.projection[:2])
    spread = [((rows - whole.mean) @ functional.normalize(direction, dim=0)).var().item() for direction in whole.projection]
    assert spread == sorted(spread, reverse=True)


def test_pictures_and_captions_weigh_the_same_however_many_captions_there_are() -> None:
    pictures, captions = rows_of(50, 4), rows_of(20, 4, seed=1)
    once, thrice = (fit_whitening([pictures, captions.repeat(times, 1)], dim=None, eps=0.1) for times in (1, 3))
    torch.testing.assert_close(once.mean, (pictures.mean(dim=0) + captions.mean(dim=0)) / 2)
    for mine, other in zip(once.buffers(), thrice.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    both = fit_whitening([pictures, captions], dim=None, eps=0.0)
    joined = torch.stack(
        [covariance(both.project(part)) + torch.outer(*[both.project(part).double().mean(dim=0)] * 2) for part in (pictures, captions)]
    )
    torch.testing.assert_close(joined.mean(dim=0), torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-3)


def test_the_same_rows_give_the_same_head_bit_for_bit_and_their_order_changes_nothing_that_matters() -> None:
    rows = rows_of(64, 6)
    one, other = fit_whitening([rows], dim=4, eps=0.1), fit_whitening([rows.clone()], dim=4, eps=0.1)
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))
    shuffled = fit_whitening([rows.flip(0)], dim=4, eps=0.1)
    torch.testing.assert_close(shuffled.projection, one.projection, rtol=1e-4, atol=1e-4)
    largest = one.projection.abs().argmax(dim=1)
    assert (one.projection[torch.arange(4), largest] > 0).all()


@pytest.mark.parametrize("rows", [torch.ones(1, 4) / 2, torch.ones(9, 4) / 2, torch.eye(4)[:2]], ids=["one row", "equal rows", "two rows"])
def test_too_little_to_fit_on_gives_finite_unit_rows(rows: Tensor) -> None:
    head = fit_whitening([rows], dim=None, eps=0.1)
    found = head(rows_of(5, 4))
    assert found.isfinite().all()
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    assert head(head.mean[None]).isfinite().all()


@pytest.mark.parametrize(
    ("parts", "dim"),
    [
        ([], None),
        ([torch.zeros(0, 4)], None),
        ([torch.zeros(3, 4), torch.zeros(3, 5)], None),
        ([torch.zeros(3, 4)], 5),
        ([torch.zeros(3, 4)], 0),
        ([torch.zeros(3)], None),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_what_was_given(parts: list[Tensor], dim: int | None) -> None:
    with pytest.raises(ValueError, match=rf"fit_whitening: dim={dim} of rows"):
        fit_whitening(parts, dim=dim, eps=0.1)


# -- as the head of an encoder ----------------------------------------------------------------------------------------


def test_it_is_off_by_default_and_an_encoder_with_the_option_has_none_until_it_is_fitted() -> None:
    assert encoder_of().options["whitening"] is None
    asked = encoder_of(whitening={"dim": 4})
    assert asked.options["whitening"] == {"dim": 4, "eps": WhiteningOptions().eps}
    assert asked.whitening is None and asked.embedding_dim == 8
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(asked.embed_images(images), encoder_of().embed_images(images))


def test_both_towers_go_through_it_and_what_is_trained_does_not() -> None:
    encoder, images = whitened(dim=4), torch.rand(3, 3, 16, 16)
    head = encoder.whitening
    assert head is not None and encoder.embedding_dim == 4 and encoder.joint_dim == 8
    image, text = encoder(images, encoder.vocabulary.encode(CAPTIONS))
    assert image.shape == text.shape == (3, 8)
    torch.testing.assert_close(encoder.embed_images(images), head(functional.normalize(image, dim=1)))
    torch.testing.assert_close(encoder.embed_texts(CAPTIONS), head(functional.normalize(text, dim=1)))
    for rows in (encoder.embed_images(images), encoder.embed_texts(CAPTIONS)):
        assert rows.shape == (3, 4) and rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    assert not list(head.parameters())
    encoder.whitening = None
    plain = encoder(images, encoder.vocabulary.encode(CAPTIONS))
    assert torch.equal(plain[0], image) and torch.equal(plain[1], text)


def test_under_autocast_it_stays_in_float32() -> None:
    encoder, rows = whitened(), rows_of(5, 8)
    assert encoder.whitening is not None
    expected = encoder.whitening(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.whitening(rows), expected)


@pytest.mark.parametrize("dim", [None, 4])
@pytest.mark.parametrize("with_text", [True, False])
def test_saved_with_the_encoder_it_comes_back_bit_for_bit(tmp_path: Path, dim: int | None, with_text: bool) -> None:
    encoder, images = whitened(dim=dim, with_text=with_text), torch.rand(3, 3, 16, 16)
    save_encoder(encoder, tmp_path)
    assert json.loads((tmp_path / "encoder.json").read_text())["whitening"] == {"dim": dim or 8}
    loaded = load_encoder(tmp_path)
    assert loaded.describe() == encoder.describe() and loaded.embedding_dim == (dim or 8)
    assert torch.equal(loaded.embed_images(images), encoder.embed_images(images))
    if with_text:
        assert torch.equal(loaded.embed_texts(CAPTIONS), encoder.embed_texts(CAPTIONS))


def test_an_encoder_of_before_there_was_one_still_loads(tmp_path: Path) -> None:
    encoder, images = encoder_of(), torch.rand(2, 3, 16, 16)
    save_encoder(encoder, tmp_path)
    described = json.loads((tmp_path / "encoder.json").read_text())
    del described["whitening"], described["options"]["whitening"]
    (tmp_path / "encoder.json").write_text(json.dumps(described))
    loaded = load_encoder(tmp_path)
    assert loaded.whitening is None and torch.equal(loaded.embed_images(images), encoder.embed_images(images))


def test_a_description_that_denies_the_head_in_the_weights_is_refused(tmp_path: Path) -> None:
    save_encoder(whitened(dim=4), tmp_path)
    described = json.loads((tmp_path / "encoder.json").read_text())
    for wrong in (None, {"dim": 5}, {}):
        (tmp_path / "encoder.json").write_text(json.dumps({**described, "whitening": wrong}))
        with pytest.raises(Corrupt, match="cannot be read"):
            load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("whitening", "told"),
    [
        ({"dim": 9}, "whitening.dim=9, but embedding_dim=8"),
        ({"dim": 0}, "greater than or equal to 1"),
        ({"eps": -1.0}, "greater than or equal to 0"),
        ({"dims": 4}, "dims: no such option"),
        ("yes", "whitening"),
    ],
)
def test_wrong_options_are_refused(whitening: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        encoder_of(whitening=whitening)
