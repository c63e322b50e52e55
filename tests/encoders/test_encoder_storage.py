import json
from pathlib import Path

import pytest
import torch

from perdure.encoders import build_encoder, load_encoder, save_encoder
from perdure.errors import Corrupt, NotFound


def trained(*, with_text: bool = True, **options):
    encoder = build_encoder("small_resnet", {"width": 4, "embedding_dim": 8, "image_size": 16} | options, with_text=with_text, seed=3)
    encoder.grow(num_classes=2, captions=["a red fox"])
    encoder.train()(torch.rand(8, 3, 16, 16))  # moves the statistics of BatchNorm
    encoder.grow(num_classes=5, captions=["a dog's \u7ea2 moon", "Stra\u00dfe"])
    return encoder


@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.parametrize("options", [{}, {"pooling": "avg", "classifier": "linear", "blocks": 2, "text": "auto"}])
def test_a_saved_encoder_comes_back_bit_for_bit(tmp_path: Path, with_text: bool, options: dict[str, object]) -> None:
    encoder, images = trained(with_text=with_text, **options), torch.rand(3, 3, 16, 16)
    save_encoder(encoder, tmp_path / "deep" / "folder")
    loaded = load_encoder(tmp_path / "deep" / "folder")
    assert not loaded.training and loaded.describe() == encoder.describe()
    state = encoder.state_dict()
    assert list(loaded.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) and value.dtype == state[name].dtype for name, value in loaded.state_dict().items())
    assert torch.equal(loaded.embed_images(images), encoder.embed_images(images))
    if with_text:
        assert torch.equal(loaded.embed_texts(["a moon", "?"]), encoder.embed_texts(["a moon", "?"]))


def test_a_loaded_encoder_grows_as_the_saved_one_would_have(tmp_path: Path) -> None:
    encoder = trained()
    save_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path)
    for each in (encoder, loaded):
        each.grow(num_classes=9, captions=["green hill"])
    assert all(torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), loaded.state_dict().values(), strict=True))
    assert loaded.vocabulary.words == encoder.vocabulary.words


def test_a_text_tower_that_was_switched_off_stays_off(tmp_path: Path) -> None:
    save_encoder(build_encoder("small_resnet", {"text": "none", "width": 4}, with_text=True, seed=0), tmp_path)
    assert load_encoder(tmp_path).text is None


def test_the_folder_holds_safetensors_and_plain_json_only(tmp_path: Path) -> None:
    save_encoder(trained(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.json", "weights.safetensors"]
    described = json.loads((tmp_path / "encoder.json").read_text(encoding="utf-8"))
    assert described["name"] == "small_resnet" and described["num_classes"] == 5
    assert described["vocabulary"] == ["a", "red", "fox", "dog's", "\u7ea2", "moon", "strasse"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no weights\.safetensors"):
        load_encoder(tmp_path)
    save_encoder(trained(), tmp_path)
    (tmp_path / "encoder.json").unlink()
    with pytest.raises(NotFound, match=r"no encoder\.json"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("damage", ["truncated weights", "not json", "other sizes", "lacks a key"])
def test_damaged_files_are_refused_with_the_folder_in_the_message(tmp_path: Path, damage: str) -> None:
    save_encoder(trained(), tmp_path)
    weights, description = tmp_path / "weights.safetensors", tmp_path / "encoder.json"
    plain = json.loads(description.read_text(encoding="utf-8"))
    if damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "not json":
        description.write_text("{", encoding="utf-8")
    elif damage == "other sizes":
        description.write_text(json.dumps(plain | {"num_classes": 4}), encoding="utf-8")
    else:
        del plain["seed"]
        description.write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(Corrupt, match=tmp_path.name):
        load_encoder(tmp_path)


def test_a_shared_projection_comes_back_and_an_encoder_of_before_there_was_one_is_read(tmp_path: Path) -> None:
    encoder, images = trained(projection="shared"), torch.rand(3, 3, 16, 16)
    save_encoder(encoder, tmp_path / "shared")
    loaded = load_encoder(tmp_path / "shared")
    assert loaded.joint is not None and torch.equal(loaded.embed_images(images), encoder.embed_images(images))
    assert torch.equal(loaded.embed_texts(["a moon"]), encoder.embed_texts(["a moon"]))
    older = trained()
    save_encoder(older, tmp_path / "older")
    description = tmp_path / "older" / "encoder.json"
    described = json.loads(description.read_text())
    assert described["options"].pop("projection") == "separate"
    description.write_text(json.dumps(described))
    assert torch.equal(load_encoder(tmp_path / "older").embed_images(images), older.embed_images(images))
