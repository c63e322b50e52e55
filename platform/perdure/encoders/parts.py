"""The catalogs of this room, and how an encoder is put together from a name and options.

A new encoder is a file with its trunk, an entry here and a line in `ENCODERS`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_serializer, model_validator
from torch import nn

from perdure.catalog import Catalog
from perdure.config import PartConfig
from perdure.encoders.bag_of_words import BagOfWords
from perdure.encoders.bilstm import BiLSTM
from perdure.encoders.classifier import GrowingClassifier
from perdure.encoders.crow import CroW
from perdure.encoders.encoder import Encoder
from perdure.encoders.hashing import HashHeads
from perdure.encoders.image_tower import ImageTower
from perdure.encoders.joint_trunk import JointOptions, JointTrunk, SharedProjection
from perdure.encoders.pooling import MAC, AveragePooling, GeM, Pooling, SPoC
from perdure.encoders.rmac import RMAC
from perdure.encoders.small_resnet import small_resnet_trunk
from perdure.encoders.text_tower import TextTower
from perdure.encoders.torchvision_backbone import torchvision_trunk
from perdure.encoders.whitening import WhiteningOptions
from perdure.errors import ConfigError

__all__ = ["ENCODERS", "POOLINGS", "TEXT_TOWERS", "PoolingPart", "TextPart", "build_encoder", "small_resnet", "torchvision"]

TEXT_TOWERS: Catalog[TextTower] = Catalog("text tower", {"bilstm": BiLSTM, "bag_of_words": BagOfWords})
POOLINGS: Catalog[Pooling] = Catalog("pooling", {"avg": AveragePooling, "mac": MAC, "spoc": SPoC, "gem": GeM, "crow": CroW, "rmac": RMAC})


class TextPart(PartConfig):
    """The text tower: "auto" (a Bi-LSTM where the data has captions), "none", or a name with its options."""

    name: str = Field("auto", description="auto, none, or a name in TEXT_TOWERS")

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in ("auto", "none"):
            problems = TEXT_TOWERS.problems(self.name, self.options)
        else:
            problems = [f"'{self.name}' takes no options, found {', '.join(self.options)}"] if self.options else []
        if problems:
            raise ValueError("; ".join(problems))
        return self


class PoolingPart(PartConfig):
    """The pooling of the last map: a name in `POOLINGS`, with its options."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        problems = POOLINGS.problems(self.name, self.options)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_serializer
    def _plain(self) -> str | dict[str, Any]:
        """The name alone where no option was given, else all options."""
        return {"name": self.name, **POOLINGS.plain(self.name, self.options)} if self.options else self.name

    def build(self) -> Pooling:
        """The module."""
        return POOLINGS.build(self.name, self.options)


Bits = Annotated[int, Field(ge=8, le=4096, multiple_of=8)]
"""Length of a code; bits are kept in bytes."""

_AUTO = TextPart(name="auto")
_AVG, _GEM = PoolingPart(name="avg"), PoolingPart(name="gem")


def small_resnet(
    with_text: bool,
    seed: int = 0,
    *,
    embedding_dim: int = 128,
    image_size: int = 32,
    pooling: PoolingPart = _GEM,
    width: int = 24,
    blocks: int = 1,
    classifier: Literal["cosine", "linear"] = "cosine",
    text: TextPart = _AUTO,
    projection: Literal["separate", "shared"] = "separate",
    whitening: WhiteningOptions | None = None,
    hash_bits: Bits | None = None,
    joint: JointOptions | None = None,
) -> Encoder:
    """An encoder with the small residual network, to be learned from scratch.

    Args:
        with_text: whether the data has captions.
        seed: of the rows that are appended to the classifier and to the words.
        embedding_dim: D.
        image_size: height and width of the pictures.
        pooling: of the last map.
        width: channels of the first stage.
        blocks: residual blocks of each of the three stages.
        classifier: cosine or linear logits.
        text: the text tower.
        projection: what leads into the joint space; see `_dual`.
        whitening: how PCA with whitening is to be fitted after each task; null = not at all.
        hash_bits: K of codes that are stored in place of embeddings; a strategy that hashes learns them. null = none.
        joint: layers behind the towers that all modalities share; null = none, each tower ends in a projection of its own.
    """
    trunk, channels = small_resnet_trunk(width=width, blocks=blocks)
    stem_dim = JointOptions.stem_dim(joint, embedding_dim)
    image = ImageTower(nn.Sequential(trunk, pooling.build()), width=channels, embedding_dim=stem_dim, mean=(0.5,) * 3, std=(0.25,) * 3)
    options = {
        "embedding_dim": embedding_dim,
        "image_size": image_size,
        "pooling": pooling.model_dump(),
        "width": width,
        "blocks": blocks,
        "classifier": classifier,
        "text": text.model_dump(),
        "projection": projection,
        "whitening": whitening and whitening.model_dump(),
        "hash_bits": hash_bits,
        "joint": joint and joint.model_dump(),
    }
    return _dual("small_resnet", options, image, with_text=with_text, seed=seed, text=text, classifier=classifier, joint=joint)


def torchvision(
    with_text: bool,
    seed: int = 0,
    *,
    architecture: str,
    weights: str | None = None,
    embedding_dim: int = 128,
    image_size: int = 224,
    pooling: PoolingPart = _AVG,
    classifier: Literal["cosine", "linear"] = "cosine",
    text: TextPart = _AUTO,
    projection: Literal["separate", "shared"] = "separate",
    whitening: WhiteningOptions | None = None,
    hash_bits: Bits | None = None,
    joint: JointOptions | None = None,
) -> Encoder:
    """An encoder on any of torchvision's classification models.

    Args:
        with_text: whether the data has captions.
        seed: of the rows that are appended to the classifier and to the words.
        architecture: torchvision's name of the model, such as "resnet50".
        weights: torchvision's name of pre-trained weights ("DEFAULT"), or a local .pth, .pt or .safetensors file; null = random weights.
        embedding_dim: D.
        image_size: height and width of the pictures.
        pooling: of the last map.
        classifier: cosine or linear logits.
        text: the text tower.
        projection: what leads into the joint space; see `_dual`.
        whitening: how PCA with whitening is to be fitted after each task; null = not at all.
        hash_bits: K of codes that are stored in place of embeddings; a strategy that hashes learns them. null = none.
        joint: layers behind the towers that all modalities share; null = none, each tower ends in a projection of its own.
    """
    trunk = torchvision_trunk(architecture, weights=weights, image_size=image_size, pooling=pooling.build())
    stem_dim = JointOptions.stem_dim(joint, embedding_dim)
    image = ImageTower(trunk.module, width=trunk.width, embedding_dim=stem_dim, mean=trunk.mean, std=trunk.std)
    options = {
        "architecture": architecture,
        "weights": weights,
        "embedding_dim": embedding_dim,
        "image_size": image_size,
        "pooling": pooling.model_dump(),
        "classifier": classifier,
        "text": text.model_dump(),
        "projection": projection,
        "whitening": whitening and whitening.model_dump(),
        "hash_bits": hash_bits,
        "joint": joint and joint.model_dump(),
    }
    return _dual("torchvision", options, image, with_text=with_text, seed=seed, text=text, classifier=classifier, joint=joint)


def _dual(
    name: str,
    options: Mapping[str, Any],
    image: ImageTower,
    *,
    with_text: bool,
    seed: int,
    text: TextPart,
    classifier: Literal["cosine", "linear"],
    joint: JointOptions | None,
) -> Encoder:
    """Join an image tower with the text tower that was asked for and an empty classifier.

    "projection" among the options: "separate", the last layer of each tower leads into the joint space; "shared", it leads to a common
    width, D, from where one linear layer leads there from both, so that what moves it moves both modalities alike. Sharing layers is among
    the means against unequal drift that Wang, Herranz and van de Weijer (CVPR workshops 2021) are said to study; which layers, and of what
    form, could not be verified, so this form is ours.
    """
    dim = int(options["embedding_dim"])
    kept = (options["whitening"] or {}).get("dim")
    if kept is not None and kept > dim:
        raise ConfigError(f"encoder '{name}'", [f"whitening.dim={kept}, but embedding_dim={dim}: whitening cannot add dimensions"])
    if text.name not in ("auto", "none") and not with_text:
        raise ConfigError(
            f"encoder '{name}'",
            [f"text: '{text.name}' was asked for, but the dataset has no captions; name its caption column, or set text: auto"],
        )
    bits = options["hash_bits"]
    if bits is not None and options["whitening"] is not None:
        raise ConfigError(f"encoder '{name}'", [f"hash_bits={bits} and whitening: codes are not whitened; leave one of them out"])
    tower = None
    if with_text and text.name != "none":
        # Another seed than the classifier's, or new words and new classes would get the same rows.
        tower = TEXT_TOWERS.build("bilstm" if text.name == "auto" else text.name, text.options, JointOptions.stem_dim(joint, dim), seed + 1)
    image.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch's stubs lack this form)
    head = GrowingClassifier(dim, kind=classifier, seed=seed)
    trunk: nn.Module | None = None if joint is None else JointTrunk(joint.hidden, dim)
    if options["projection"] == "shared":
        if joint is not None:
            raise ConfigError(f"encoder '{name}'", ["projection=shared and joint: both are layers behind the towers; leave one out"])
        trunk = SharedProjection(dim)
    hashing = None if bits is None else HashHeads(dim, bits)
    size = int(options["image_size"])
    return Encoder(image, tower, head, hashing, joint=trunk, embedding_dim=dim, image_size=size, name=name, options=options, seed=seed)


ENCODERS: Catalog[Encoder] = Catalog("encoder", {"small_resnet": small_resnet, "torchvision": torchvision})


def build_encoder(part_name: str, options: Mapping[str, Any], *, with_text: bool, seed: int) -> Encoder:
    """A fresh encoder with no classes and no words yet; the same seed gives the same weights, bit for bit.

    Args:
        part_name: in `ENCODERS`.
        options: its keyword-only parameters; anything else is refused.
        with_text: whether the data has captions; without them there is no text tower and no vocabulary.
        seed: of all weights.
    Raises:
        ConfigError: an unknown name or option, or a text tower for data without captions.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ENCODERS.build(part_name, options, with_text, seed)
