"""Inversion: pictures of old classes, made from what an encoder remembers of them, for no picture of them is kept.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 7, Eq. (7.4), (7.5) and Algorithm 2, lines 12 to 16; after
Yin et al., "Dreaming to distill", CVPR 2020. n pictures, K classes, P pictures of each, B of a batch, D embedding, C classes known.
"""

import logging
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from perdure.errors import ConfigError
from perdure.losses import batch_norm_distance, channel_statistics, cluster_margin, unit_rows
from perdure.losses.ranges import Count, Fraction, NonNegative, Positive

__all__ = ["InversionOptions", "Inverted", "batch_norm_layers", "invert", "starting_noise"]

log = logging.getLogger(__name__)

_MEAN, _STD, _WIDEST = 0.5, 0.25, 2.0  # a picture is 0.5 + 0.25 z with z in -2..2, so z starts as a tower expects its pictures
_LINES = 4  # of the log, for each batch

BelowOne = Annotated[float, Field(ge=0, lt=1)]
Logits = Callable[[Tensor], Tensor]
"""(B, D) embeddings before normalisation -> (B, C) logits."""


class InversionOptions(BaseModel):
    """How many pictures, and how they are made.

    The thesis: targets cluster, iterations 2000, betas 0.9 and 0.999, decay false, jitter 0, flip false.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pictures: Count = Field(default=400, description="n in all, spread evenly over the old classes")
    per_class: Count = Field(default=4, description="fewer than this of a class are never made: rather a random choice of the classes")
    iterations: Count = Field(default=120, description="steps of Adam; the thesis 2000")
    batch_size: Count = Field(default=256, description="pictures that are made together, for the memory; also the most of one class")
    lr: Positive = Field(default=0.5, description="of Adam, in standard deviations of a picture's colours")
    betas: tuple[BelowOne, BelowOne] = Field(default=(0.5, 0.9), description="of Adam; the thesis' are torch's, 0.9 and 0.999")
    decay: bool = Field(default=True, description="lr falls to 0 along half a cosine; false: it stays, as in the thesis")
    batch_norm: NonNegative = Field(default=0.01, description="weight of (7.4)")
    targets: Literal["auto", "cluster", "classifier", "both"] = Field(
        default="auto",
        description="what makes a class of pictures: (7.5), the classifier's answer, or both; auto: the classifier, if trained",
    )
    cluster: NonNegative = Field(default=0.1, description="weight of (7.5), on unit rows")
    margin: NonNegative = Field(default=1.0, description="Delta of (7.5), in units of a distance between unit rows")
    classifier: NonNegative = Field(default=1.0, description="weight of the cross-entropy to the class")
    total_variation: NonNegative = Field(default=0.0, description="weight of the mean squared difference between neighbouring places")
    jitter: Fraction = Field(default=0.0625, description="pictures are looked at shifted by up to this share of their side, anew each step")
    flip: bool = Field(default=True, description="and mirrored every other time")

    def by_class(self, *, classifier: bool) -> bool:
        """Whether a classifier, where there is one, makes the class of a picture; else the numbers are names of clusters."""
        return self.targets != "cluster" and (classifier or self.targets != "auto")


@dataclass(frozen=True, eq=False)
class Inverted:
    """Pictures that an encoder takes for its classes."""

    pictures: Tensor  # (n, 3, H, W) float16 in [0, 1], on the CPU, class after class
    labels: Tensor  # (n,) int64, equally many of each class
    curve: Tensor  # (iterations,) float32, (7.4) without its weight, a mean over the batches

    def draw(self, count: int, generator: torch.Generator, *, per_class: int = 4) -> Tensor:
        """(count',) rows for a training batch: `per_class` of each drawn class, or more where that would not give `count` in all.

        count' is less than `count` only where there are fewer pictures.
        """
        each = int((self.labels == self.labels[0]).sum())
        num_classes = len(self.labels) // each
        taken = min(each, max(per_class, -(-count // num_classes)))
        classes = torch.randperm(num_classes, generator=generator)[: -(-count // taken)]
        members = torch.rand(len(classes), each, generator=generator).argsort(dim=1)[:, :taken]
        return (classes[:, None] * each + members).flatten()[:count]


def batch_norm_layers(tower: nn.Module) -> list[_BatchNorm]:
    """The layers of an image tower that keep running statistics.

    Raises:
        ConfigError: there is none.
    """
    layers = [layer for layer in tower.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None]
    if not layers:
        raise ConfigError(
            "pictures from an encoder",
            [
                "they are made from the running statistics of BatchNorm layers, and this encoder has none (networks with LayerNorm, such "
                "as vit and convnext, keep no memory of their data): choose a backbone with BatchNorm (resnet, densenet, efficientnet, "
                "small_resnet), or strategy.inversion=null to do without such pictures"
            ],
        )
    return layers


def invert(
    tower: nn.Module, classes: Tensor, options: InversionOptions, *, image_size: int, seed: int, logits: Logits | None = None
) -> Inverted:
    """Make pictures of some classes from a frozen image tower alone.

        z <- argmin  weight * L_bn(z) + weight * L_cluster(z) + weight * cross-entropy(logits(z), class) + weight * total variation(z)

    starting at Gaussian noise, by Adam, with the colours held in [0, 1]. Each batch keeps the pictures as they were looked at when its
    loss was least, not those of the last step. `auto` in the targets is for the caller to resolve; without it the classifier is used
    where `logits` are given. With `cluster` alone the numbers of the classes are names of clusters that the pictures form; with the
    classifier they are the classes of these numbers.

    The forward pass uses the ambient autocast, all losses full precision.

    Args:
        tower: (B, 3, H, W) in [0, 1] -> (B, D) before normalisation; in evaluation mode and without gradient.
        classes: (c,) int64 that are known; K of them are made, P of each.
        options: how many, by which losses, and how long; 0 < P <= batch_size.
        image_size: H and W.
        seed: of every draw.
        logits: the classifier; it is not asked with targets = cluster.
    Raises:
        ConfigError: the tower has no running statistics; or the targets need logits, and there are none.
        FloatingPointError: no loss of a batch was finite.
    Deviations: the classifier as a target, shifts and mirror images, Adam's betas and the decay, none of which the thesis has; distances
        of (7.5) between unit rows; the best pictures by their loss where the thesis takes the last. Why: of pictures of 25 classes of
        CIFAR-100, 100 to 150 iterations, another encoder, trained by itself, recognised 5 % (clusters), 41 % (the classifier), 70 %
        (shifts and mirror images), 84 % (betas and decay); 4 % is chance.
    """
    layers = batch_norm_layers(tower)
    by_class = options.by_class(classifier=logits is not None)
    if by_class and logits is None:
        raise ConfigError("pictures from an encoder", [f"targets={options.targets} needs a classifier, and there is none; use cluster"])
    labels, batches = _planned(classes, options, whole_classes=not by_class, seed=seed)
    device = next((parameter.device for parameter in tower.parameters()), torch.device("cpu"))
    pictures = torch.empty(len(labels), 3, image_size, image_size, dtype=torch.float16)
    curve = torch.zeros(options.iterations)
    with _watched(layers) as met:
        objective = _Objective(tower, met, options, logits if by_class else None)
        for number, rows in enumerate(batches):
            generator = torch.Generator().manual_seed(_batch_seed(seed, number))
            start = _noise(len(rows), image_size, generator).to(device)
            made, distances = _descend(objective, start, labels[rows].to(device), generator, f"{number + 1} of {len(batches)}")
            pictures[rows] = made.cpu().to(torch.float16)
            curve += torch.tensor(distances) / len(batches)
    return Inverted(pictures, labels, curve)


def starting_noise(count: int, options: InversionOptions, *, image_size: int, seed: int) -> Tensor:
    """(count, 3, H, W) in [0, 1], pictures that the first batch of `invert` with this seed started from; at most a batch of them."""
    generator = torch.Generator().manual_seed(_batch_seed(seed, 0))
    return _pictures(_noise(min(count, options.batch_size), image_size, generator))


def _planned(classes: Tensor, options: InversionOptions, *, whole_classes: bool, seed: int) -> tuple[Tensor, list[Tensor]]:
    """(n,) the class of each picture, class after class, and the rows of each batch.

    All classes are mixed in every batch, whose statistics are compared with those of a mixture; but (7.5) speaks of whole classes.
    """
    generator = torch.Generator().manual_seed(_batch_seed(seed, -1))
    num_classes = max(1, min(len(classes), options.pictures // options.per_class))
    chosen = classes.cpu()[torch.randperm(len(classes), generator=generator)[:num_classes]].sort().values
    each = max(1, min(options.pictures // num_classes, options.batch_size))
    grid_KP = torch.arange(num_classes * each).view(num_classes, each)
    if whole_classes:
        mixed_KP = grid_KP[torch.randperm(num_classes, generator=generator)]
        batches = [part.flatten() for part in mixed_KP.split(max(1, options.batch_size // each))]
    else:
        batches = list(grid_KP.T.flatten().chunk(-(-grid_KP.numel() // options.batch_size)))
    return chosen.repeat_interleave(each), batches


@dataclass(eq=False)
class _Met:
    """What the layers met in the last forward pass, and what they remember: a mean and a variance of each layer, in running order."""

    now: list[tuple[Tensor, Tensor]]
    remembered: list[tuple[Tensor, Tensor]]


class _Objective:
    """What is minimised, as a function of a batch of pictures."""

    def __init__(self, tower: nn.Module, met: _Met, options: InversionOptions, logits: Logits | None) -> None:
        self.options = options
        self._tower = tower
        self._met = met
        self._logits = logits

    def __call__(self, pictures: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """() the loss, and () (7.4) without its weight."""
        options = self.options
        self._met.now, self._met.remembered = [], []
        embeddings = self._tower(pictures)
        with torch.autocast(pictures.device.type, enabled=False):
            distance = batch_norm_distance(self._met.now, self._met.remembered)
            loss = options.batch_norm * distance
            if self._logits is not None:
                loss = loss + options.classifier * cross_entropy(self._logits(embeddings), labels)
            if self._logits is None or options.targets == "both":
                loss = loss + options.cluster * cluster_margin(unit_rows(embeddings), labels, margin=options.margin)
            if options.total_variation > 0:
                loss = loss + options.total_variation * _total_variation(pictures)
        return loss, distance.detach()


def _descend(objective: _Objective, start: Tensor, labels: Tensor, generator: torch.Generator, which: str) -> tuple[Tensor, list[float]]:
    """The best pictures (B, 3, H, W) on the way down, as they were looked at, and (7.4) of each iteration."""
    options = objective.options
    z = start.contiguous(memory_format=torch.channels_last).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=options.lr, betas=options.betas)
    least, best = float("inf"), None
    distances: list[float] = []
    for iteration in range(options.iterations):
        shown = _looked_at(_pictures(z), options, generator)
        loss, distance = objective(shown, labels)
        value = float(loss.detach())
        distances.append(float(distance))
        if value < least:
            least, best = value, shown.detach().clone()
        (z.grad,) = torch.autograd.grad(loss, z)
        optimizer.param_groups[0]["lr"] = options.lr * (
            0.5 + 0.5 * math.cos(math.pi * iteration / options.iterations) if options.decay else 1
        )
        optimizer.step()
        with torch.no_grad():
            z.clamp_(-_WIDEST, _WIDEST)
        if (iteration + 1) % -(-options.iterations // _LINES) == 0 or iteration + 1 == options.iterations:
            log.info("inversion: batch %s, iteration %d: BatchNorm %.3g, loss %.3g", which, iteration + 1, distances[-1], value)
    if best is None:
        raise FloatingPointError(f"inversion: no loss of batch {which} was finite; lower strategy.inversion.lr, or check the encoder")
    return best, distances


def _looked_at(pictures: Tensor, options: InversionOptions, generator: torch.Generator) -> Tensor:
    """The pictures shifted around their edges and mirrored, all of them alike."""
    side = pictures.shape[-1]
    furthest = int(options.jitter * side)
    down, across = torch.randint(-furthest, furthest + 1, (2,), generator=generator).tolist()
    mirrored = options.flip and bool(torch.rand((), generator=generator) < 0.5)
    shifted = pictures.roll((down, across), (2, 3)) if furthest else pictures
    return shifted.flip(3) if mirrored else shifted


def _pictures(z: Tensor) -> Tensor:
    return (_MEAN + _STD * z).clamp(0, 1)


def _noise(count: int, side: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 3, side, side, generator=generator).clamp(-_WIDEST, _WIDEST)


def _total_variation(pictures: Tensor) -> Tensor:
    return sum((pictures.diff(dim=dim).square().mean() for dim in (2, 3)), pictures.new_zeros(()))


def _batch_seed(seed: int, number: int) -> int:
    return (seed * 1_000_003 + number + 1) % 2**63


@contextmanager
def _watched(layers: Sequence[_BatchNorm]) -> Generator[_Met]:
    """The statistics of what the layers are given, as they run."""
    met = _Met([], [])

    def hook(layer: _BatchNorm, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert layer.running_mean is not None and layer.running_var is not None
        met.now.append(channel_statistics(inputs[0]))
        met.remembered.append((layer.running_mean, layer.running_var))

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield met
    finally:
        for handle in handles:
            handle.remove()
