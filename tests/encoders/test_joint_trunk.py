"""The joint trunk, and batches whose items are of one modality each."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from perdure.encoders import Encoder, build_encoder, load_encoder, save_encoder
from perdure.encoders.joint_trunk import JointTrunk
from perdure.records import Batch

WORDS = ["red", "blue", "green"]


def encoder(*, joint: bool = True) -> Encoder:
    options = {"embedding_dim": 8, "width": 4, "image_size": 16, "joint": {"hidden": 12} if joint else None}
    made = build_encoder("small_resnet", options, with_text=True, seed=0)
    made.grow(num_classes=3, captions=WORDS)
    return made.eval()


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))


def words(made: Encoder, count: int) -> Tensor:
    assert made.vocabulary is not None
    return made.vocabulary.encode([WORDS[n % 3] for n in range(count)])


def test_equals_two_layers_behind_a_normalisation_written_as_loops() -> None:
    trunk = JointTrunk(4, 3)
    features = 5 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) + 2
    found = trunk.requires_grad_(False)(features)
    for row, f in enumerate(features):
        normed = (f - f.mean()) / (f.var(unbiased=False) + 1e-5).sqrt()
        hidden = [max(0.0, float(w @ normed + b)) for w, b in zip(trunk.shared.weight, trunk.shared.bias, strict=True)]
        for column, (w, b) in enumerate(zip(trunk.projection.weight, trunk.projection.bias, strict=True)):
            assert float(found[row, column]) == pytest.approx(
                sum(float(x) * y for x, y in zip(w, hidden, strict=True)) + float(b), abs=1e-5
            )


def test_both_towers_end_in_the_same_layers() -> None:
    made = encoder()
    assert made.joint is not None
    image, text = made(pictures(4), words(made, 4))
    seen, read = made.features(pictures(4), words(made, 4))
    assert seen.shape == (4, 12) and read is not None and text is not None and image.shape == text.shape == (4, 8)
    torch.testing.assert_close(image, made.joint(seen))
    torch.testing.assert_close(text, made.joint(read))
    rows = torch.nn.functional.normalize(image, dim=1)
    torch.testing.assert_close(made.embed_images(pictures(4)), rows)
    torch.testing.assert_close(made.embed_texts(WORDS), torch.nn.functional.normalize(text[:3], dim=1))


def test_without_it_nothing_is_drawn_and_features_are_embeddings() -> None:
    plain = encoder(joint=False)
    assert plain.joint is None and not any(name.startswith("joint.") for name in plain.state_dict())
    assert torch.equal(plain.features(pictures(2))[0], plain(pictures(2))[0])
    older = build_encoder("small_resnet", {"embedding_dim": 8, "width": 4, "image_size": 16}, with_text=True, seed=0)
    older.grow(num_classes=3, captions=WORDS)
    assert all(torch.equal(value, older.state_dict()[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("is_text", [[False] * 5, [True] * 5, [False, True, True, False, True]], ids=["pictures", "words", "mixed"])
def test_items_of_one_modality_each_come_out_in_their_order(joint: bool, is_text: list[bool]) -> None:
    made, mask = encoder(joint=joint), torch.tensor(is_text)
    num = int(mask.sum())
    images, tokens = (pictures(5 - num) if num < 5 else None), (words(made, num) if num else None)
    batch = Batch(torch.arange(5), torch.zeros(5, dtype=torch.int64), images, tokens, is_text=mask)
    found, nothing = made(*batch.inputs)
    assert nothing is None and found.shape == (5, 8)
    for row in range(5):
        alone = batch.item(row)
        assert (alone.images is None) == is_text[row] == (alone.tokens is not None)
        torch.testing.assert_close(made(*alone.inputs)[0][0], found[row], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_embedded_is_refused() -> None:
    made = encoder()
    with pytest.raises(ValueError, match="without images"):
        made(None, words(made, 2))
    with pytest.raises(ValueError, match="3 pictures and texts that it can embed, for 4 items"):
        made(pictures(1), words(made, 2), torch.tensor([True, True, True, False]))


def test_frozen_towers_hold_the_joint_trunk_too() -> None:
    made = encoder()
    made.set_towers_frozen(True)
    assert {name.partition(".")[0] for name, parameter in made.named_parameters() if parameter.requires_grad} == {"classifier"}


def test_it_is_saved_and_loaded_with_the_encoder(tmp_path: Path) -> None:
    made = encoder()
    save_encoder(made, tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.options["joint"] == {"hidden": 12}
    assert torch.equal(loaded.embed_images(pictures(3)), made.embed_images(pictures(3)))
    assert torch.equal(loaded.embed_texts(WORDS), made.embed_texts(WORDS))
