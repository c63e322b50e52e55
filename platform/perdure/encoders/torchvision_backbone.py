"""Torchvision's classification models as trunks of an encoder: any of them, by name, without its classifier.

What a model's parts are called differs from model to model, so they are found by watching one picture go through: the child that runs
last is the classifier, and the map is pooled where the model itself pools it.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from perdure.catalog import did_you_mean
from perdure.encoders.pooling import AveragePooling, Pooling
from perdure.errors import ConfigError
from perdure.torchvision_guard import import_torchvision

__all__ = ["Trunk", "torchvision_trunk"]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_WEIGHT_FILES = (".pth", ".pt", ".safetensors")
_AUXILIARY = ("aux1", "aux2", "AuxLogits")  # classifiers that GoogLeNet and Inception train half-way up


@dataclass(frozen=True)
class Trunk:
    """A network up to its pooled features, how many they are, and the colours that it expects."""

    module: nn.Module
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class _Call:
    """One direct child of a model, as it was seen running."""

    name: str
    module: nn.Module
    ndim_in: int
    ndim_out: int


def torchvision_trunk(architecture: str, *, weights: str | None, image_size: int, pooling: Pooling) -> Trunk:
    """A torchvision classification model without its classifier.

    Args:
        architecture: as in `torchvision.models.list_models`, such as "resnet50".
        weights: a name of torchvision's weights of this architecture, such as "DEFAULT"; or a local .pth, .pt or .safetensors file with
            a state dict (tensors only; its classifier may have any number of classes); or None, for random weights.
        image_size: height and width that the trunk will be given.
        pooling: of the last map; any but the average needs a model that has one.
    Returns:
        the trunk: (B, 3, image_size, image_size) -> (B, width) or (B, width, 1, 1).
    Raises:
        ConfigError: an unknown architecture or weights; weights that cannot be fetched or do not fit; a size that the model cannot take;
            another pooling than the average for a model without a map.
    """
    models = import_torchvision().models
    known: list[str] = models.list_models(module=models)
    if architecture not in known:
        raise _refused(architecture, f"torchvision has no classification model '{architecture}'.{did_you_mean(architecture, known)}")
    mean, std = _IMAGENET_MEAN, _IMAGENET_STD
    file = None
    if weights is None or Path(weights).suffix in _WEIGHT_FILES:
        file = None if weights is None else Path(weights)
        model: nn.Module = models.get_model(architecture, weights=None)
    else:
        entry = _named_weights(models, architecture, weights)
        try:
            model = models.get_model(architecture, weights=entry)
        except (OSError, RuntimeError) as error:
            raise _refused(
                architecture,
                f"weights '{weights}' could not be fetched from {entry.url} ({error}); fetch the file elsewhere and give its path instead",
            ) from error
        transform = entry.transforms()
        mean, std = tuple(transform.mean), tuple(transform.std)
    if hasattr(model, "transform_input"):
        # These models were trained on colours of mean 0.5, and can convert from ImageNet's by themselves; one place normalises: the tower.
        model.transform_input = False  # pyright: ignore[reportArgumentType]
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    _drop_auxiliary(model)
    calls = _watch(model, architecture, image_size)
    if file is not None:
        _load_file(model, architecture, file, head=calls[-1].name)
    _pool_and_behead(model, architecture, calls, pooling)
    width = _dry_run(model, architecture, image_size).flatten(1).shape[1]
    return Trunk(model.train(), width, mean, std)


def _refused(architecture: str, problem: str) -> ConfigError:
    return ConfigError(f"torchvision encoder '{architecture}'", [problem])


def _named_weights(models: Any, architecture: str, name: str) -> Any:
    """The entry of torchvision's weights enumeration."""
    known = models.get_model_weights(architecture)
    if name not in known.__members__:
        raise _refused(
            architecture,
            f"no weights named '{name}'; known: {', '.join(known.__members__)}, or the path of a file that ends in "
            f"{', '.join(_WEIGHT_FILES)}.{did_you_mean(name, known.__members__)}",
        )
    return known[name]


def _drop_auxiliary(model: nn.Module) -> None:
    for name in _AUXILIARY:
        if hasattr(model, name):
            setattr(model, name, None)
            model.aux_logits = False  # pyright: ignore[reportArgumentType]


def _dry_run(model: nn.Module, architecture: str, image_size: int) -> Tensor:
    """What the model makes of one grey picture, in evaluation mode."""
    try:
        with torch.no_grad():
            return model.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _refused(architecture, f"it cannot take pictures of image_size={image_size}: {error}") from error


def _watch(model: nn.Module, architecture: str, image_size: int) -> list[_Call]:
    """The direct children of a model in the order in which they run."""
    calls: list[_Call] = []

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls.append(_Call(name, module, inputs[0].ndim, output.ndim))

        return hook

    handles = [child.register_forward_hook(hook_of(name)) for name, child in model.named_children()]
    try:
        _dry_run(model, architecture, image_size)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _pool_and_behead(model: nn.Module, architecture: str, calls: Sequence[_Call], pooling: Pooling) -> None:
    """Take the classifier off, and put our pooling where the model pools its map."""
    head, before = calls[-1], [call for call in calls[:-1] if not isinstance(call.module, nn.Dropout | nn.Flatten)]
    setattr(model, head.name, nn.Identity())
    if isinstance(before[-1].module, nn.AdaptiveAvgPool2d):  # ResNet, VGG, EfficientNet, Swin, ...
        setattr(model, before[-1].name, pooling)
    elif head.ndim_in == 4:  # the classifier did the pooling: SqueezeNet, MaxViT
        setattr(model, head.name, pooling)
    elif not isinstance(pooling, AveragePooling):
        if before[-1].ndim_out != 4:  # tokens: ViT
            problem = f"pooling by {type(pooling).__name__} needs a map, and this model ends in a vector of its own; use pooling: avg"
            raise _refused(architecture, problem)
        # The model averages inside its forward (DenseNet, MobileNetV2): pooled to 1 x 1 before, that average changes nothing. DenseNet
        # has its last ReLU there, too, and a pooling wants to see the map behind it; the others end in one already.
        parts = {"0": before[-1].module, "relu": nn.ReLU(), "1": pooling}
        setattr(model, before[-1].name, nn.Sequential(OrderedDict(parts)))


def _load_file(model: nn.Module, architecture: str, file: Path, *, head: str) -> None:
    """Fill a model from a state dict on disk, but for the classifiers, which are not kept."""
    ignored = tuple(f"{name}." for name in (head, *_AUXILIARY))
    found = {key: value for key, value in _read_tensors(architecture, file).items() if not key.startswith(ignored)}
    expected = {key: value for key, value in model.state_dict().items() if not key.startswith(ignored)}
    optional = {key for key in expected if key.endswith("num_batches_tracked")}  # absent from files of before 2018
    faults = {
        "missing": sorted(expected.keys() - found.keys() - optional),
        "not of this model": sorted(found.keys() - expected.keys()),
        "of another shape": sorted(key for key in expected.keys() & found.keys() if expected[key].shape != found[key].shape),
    }
    told = [f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" for what, keys in faults.items() if keys]
    if told:
        raise _refused(architecture, f"the tensors of {file} do not fit: {'; '.join(told)}")
    model.load_state_dict(found, strict=False)


def _read_tensors(architecture: str, file: Path) -> dict[str, Tensor]:
    """The state dict of a file, out of the wrappings that training scripts put around it."""
    if not file.is_file():
        raise _refused(architecture, f"no weights file {file}")
    try:
        state: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise _refused(architecture, f"{file} is not a weights file of tensors only: {error}") from error
    for wrapping in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapping), Mapping):
            state = state[wrapping]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _refused(architecture, f"{file} holds no state dict: expected a mapping from names to tensors")
    return {str(key).removeprefix("module."): value for key, value in state.items()}
