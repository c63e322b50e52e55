import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from perdure.encoders import build_encoder, load_encoder, save_encoder
from perdure.encoders.crow import CroW
from perdure.encoders.pooling import AveragePooling, GeM
from perdure.encoders.rmac import RMAC
from perdure.encoders.torchvision_backbone import torchvision_trunk
from perdure.errors import ConfigError
from perdure.torchvision_guard import import_torchvision

models = import_torchvision().models
SMALL = "shufflenet_v2_x0_5"


def options(**more: object) -> dict[str, object]:
    return {"architecture": SMALL, "embedding_dim": 8, "image_size": 64} | more


# One of each way in which torchvision's models end: width of the pooled map.
ENDINGS = {
    "resnet18": 512,  # avgpool, fc
    "squeezenet1_1": 512,  # the classifier pools
    "mobilenet_v2": 1280,  # pools inside its forward
    "mobilenet_v3_small": 576,  # avgpool, a classifier of two layers
    "shufflenet_v2_x0_5": 1024,
    "densenet121": 1024,
    "alexnet": 256,  # avgpool to 6 x 6, a classifier of three layers
}


@pytest.mark.parametrize(("architecture", "width"), ENDINGS.items())
def test_the_classifier_comes_off_and_the_width_is_that_of_the_map(architecture: str, width: int) -> None:
    for pooling in (AveragePooling(), GeM()):
        trunk = torchvision_trunk(architecture, weights=None, image_size=64, pooling=pooling)
        assert trunk.width == width
        assert trunk.module.training
        assert trunk.module(torch.rand(2, 3, 64, 64)).flatten(1).shape == (2, width)
        assert any(type(module).__name__ == "GeM" for module in trunk.module.modules()) == isinstance(pooling, GeM)


@pytest.mark.parametrize("architecture", ["resnet18", "squeezenet1_1", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_average_pooling_gives_the_mean_of_the_last_map(architecture: str) -> None:
    torch.manual_seed(0)
    trunk = torchvision_trunk(architecture, weights=None, image_size=64, pooling=AveragePooling())
    maps = []
    last = {"resnet18": "layer4", "squeezenet1_1": "features", "mobilenet_v2": "features", "shufflenet_v2_x0_5": "conv5"}[architecture]
    getattr(trunk.module, last).register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    with torch.no_grad():
        pooled = trunk.module.eval()(torch.rand(2, 3, 64, 64)).flatten(1)
    torch.testing.assert_close(pooled, maps[0].mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)


def test_densenet_is_pooled_behind_the_relu_that_is_in_its_forward() -> None:
    torch.manual_seed(0)
    pooling = RMAC()
    trunk = torchvision_trunk("densenet121", weights=None, image_size=64, pooling=pooling)
    maps, before = [], []
    pooling.register_forward_hook(lambda _module, inputs, _output: maps.append(inputs[0]))
    trunk.module.features[0].register_forward_hook(lambda _module, _inputs, output: before.append(output.clone()))
    with torch.no_grad():
        pooled = trunk.module.eval()(torch.rand(2, 3, 64, 64))
        assert before[0].min() < 0
        torch.testing.assert_close(maps[0], before[0].relu())
        torch.testing.assert_close(pooled, pooling(before[0].relu()).flatten(1))


def test_googlenet_trains_without_its_auxiliary_classifiers_and_normalises_once() -> None:
    trunk = torchvision_trunk("googlenet", weights=None, image_size=64, pooling=GeM())
    assert trunk.module.train()(torch.rand(2, 3, 64, 64)).shape == (2, 1024)
    assert trunk.module.aux1 is None and not trunk.module.transform_input
    assert trunk.mean == (0.5, 0.5, 0.5)


def test_a_model_that_ends_in_a_vector_keeps_it_and_refuses_to_be_pooled_otherwise() -> None:
    assert torchvision_trunk("vit_b_32", weights=None, image_size=224, pooling=AveragePooling()).width == 768
    with pytest.raises(ConfigError, match=r"pooling by CroW needs a map.*use pooling: avg"):
        torchvision_trunk("vit_b_32", weights=None, image_size=224, pooling=CroW())


def test_an_encoder_on_torchvision_embeds_saves_and_loads_without_the_weights_file_at_hand(tmp_path: Path) -> None:
    file = tmp_path / "pretrained.safetensors"
    save_file({name: value.contiguous() for name, value in models.get_model(SMALL, weights=None).state_dict().items()}, file)
    encoder = build_encoder("torchvision", options(weights=str(file), pooling="gem"), with_text=True, seed=0)
    encoder.grow(num_classes=3, captions=["a fox"])
    file.unlink()
    save_encoder(encoder, tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder")
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded.embed_images(images), encoder.embed_images(images))
    assert loaded.describe() == encoder.describe() and loaded.options["weights"] == str(file)


@pytest.mark.parametrize("wrapping", ["plain", "state_dict", "model", "module."])
def test_a_local_file_fills_everything_but_the_classifier(tmp_path: Path, wrapping: str) -> None:
    source = models.get_model(SMALL, weights=None, num_classes=7)
    state = source.state_dict()
    saved = {"plain": state, "state_dict": {"state_dict": state, "epoch": 3}, "model": {"model": state}}.get(wrapping)
    file = tmp_path / "weights.pth"
    torch.save(saved or {f"module.{name}": value for name, value in state.items()}, file)
    filled = torchvision_trunk(SMALL, weights=str(file), image_size=64, pooling=AveragePooling()).module.state_dict()
    assert filled and all(torch.equal(value, state[name]) for name, value in filled.items())


def test_weights_that_do_not_fit_are_refused_with_names_and_counts(tmp_path: Path) -> None:
    state = models.get_model(SMALL, weights=None).state_dict()
    state.pop("conv1.0.weight")
    state["stem.weight"] = torch.zeros(1)
    state["conv5.0.weight"] = torch.zeros(2, 2, 1, 1)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(ConfigError) as refused:
        torchvision_trunk(SMALL, weights=str(tmp_path / "odd.pth"), image_size=64, pooling=AveragePooling())
    for told in ("1 missing (conv1.0.weight)", "1 not of this model (stem.weight)", "1 of another shape (conv5.0.weight)"):
        assert told in str(refused.value)


class Sly:
    """A pickle that would run code when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("sly"),))


def test_a_weights_file_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Sly()}, "sly.pth")
    Path("sly.pt").write_bytes(pickle.dumps(Sly(), protocol=2))
    Path("empty.pth").touch()
    Path("text.safetensors").write_text("hello", encoding="utf-8")
    for file in ("sly.pth", "sly.pt", "empty.pth", "text.safetensors"):
        with pytest.raises(ConfigError, match="tensors only"):
            torchvision_trunk(SMALL, weights=file, image_size=64, pooling=AveragePooling())
    assert not Path("sly").exists()
    torch.save([torch.zeros(1)], "list.pth")
    with pytest.raises(ConfigError, match="no state dict"):
        torchvision_trunk(SMALL, weights="list.pth", image_size=64, pooling=AveragePooling())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"architecture": "resnet81"}, "Did you mean 'resnet"),
        ({"weights": "IMAGENET1K_V9"}, "Did you mean 'IMAGENET1K_V1'?"),
        ({"weights": "nowhere.pth"}, "no weights file nowhere.pth"),
        ({"architecture": "alexnet", "image_size": 8}, "cannot take pictures of image_size=8"),
        ({"architecture": "vit_b_32", "image_size": 64}, "cannot take pictures of image_size=64"),
        ({"architecture": 5}, "architecture"),
    ],
)
def test_wrong_options_are_refused_with_a_way_out(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_encoder("torchvision", options(**wrong), with_text=False, seed=0)
    assert told in str(refused.value)


def test_named_weights_bring_their_colours_and_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    made = models.get_model(SMALL, weights=None)
    monkeypatch.setattr(models, "get_model", lambda name, weights: made)
    trunk = torchvision_trunk(SMALL, weights="DEFAULT", image_size=64, pooling=AveragePooling())
    assert trunk.mean == (0.485, 0.456, 0.406) and trunk.std == (0.229, 0.224, 0.225)

    def offline(name: str, weights: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(ConfigError, match=r"could not be fetched from https://.* \(no route to host\); fetch the file elsewhere"):
        torchvision_trunk(SMALL, weights="DEFAULT", image_size=64, pooling=AveragePooling())
