"""The numbers of one task's training, and the learning rate as a pure function of the step."""

import math
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["Schedule", "learning_rate", "make_optimizer", "random_seed"]

_TRUNK = ".image.trunk."  # of the name of a parameter: `encoders.encoder.Encoder` calls its image tower and that one's network so
_WARM_UP = 0.15  # share of a one-cycle schedule that climbs
_MASK = (1 << 63) - 1


@dataclass(frozen=True)
class Schedule:
    """How one task is trained."""

    epochs: int
    batch_size: int = 128
    per_class: int = 4
    lr: float = 1e-3
    backbone_lr: float | None = None  # peak rate of the image tower's trunk; None = lr
    optimizer: str = "adamw"
    weight_decay: float = 5e-4
    schedule: str = "one_cycle"
    clip_norm: float | None = None
    crop: int = 4
    flip: bool = True
    max_steps: int | None = None
    checkpoint_every: int = 200
    log_every: int = 1
    seed: int = 0


def learning_rate(kind: str, peak: float, step: int, num_steps: int) -> float:
    """The rate at a step, 0 <= step < num_steps.

    `one_cycle`: linear from a tenth of the peak over the first 15 % of the steps, then half a cosine to 0; `cosine`: the cosine
    alone; `constant`.
    """
    if kind == "constant":
        return peak
    warm = round(_WARM_UP * num_steps) if kind == "one_cycle" else 0
    if step < warm:
        return peak * (0.1 + 0.9 * step / warm)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, num_steps - warm)))


def make_optimizer(trained: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW, Adam (decay as an L2 term of the gradient) or SGD with momentum 0.9.

    Weight decay on matrices and kernels only, not on biases, norms and scalars. Each group carries the rate that the schedule makes
    rise and fall as `peak`: `backbone_lr` for the trunk of every image tower among the trained modules, `lr` for all else.

    Args:
        trained: an encoder, or several under names of their own; what has no gradient is left out.
        schedule: the numbers.
    Raises:
        ValueError: an optimizer that is none of the three.
    """
    backbone_lr = schedule.lr if schedule.backbone_lr is None else schedule.backbone_lr
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            peak = backbone_lr if _TRUNK in f".{name}" else schedule.lr
            decay = schedule.weight_decay if parameter.ndim > 1 else 0.0
            members.setdefault((peak, decay), []).append(parameter)
    groups = [
        {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), parameters in sorted(members.items(), key=lambda member: member[0], reverse=True)
    ]
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=schedule.lr, momentum=0.9, nesterov=True)
    if schedule.optimizer == "adam":
        return torch.optim.Adam(groups, lr=schedule.lr, fused=True)
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=schedule.lr, fused=True)
    raise ValueError(f"optimizer '{schedule.optimizer}'; known: adamw, adam, sgd")


def random_seed(*counters: int) -> int:
    """A seed from counters such as (seed, task, step, rank): same counters, same draw, so resuming needs no saved RNG state.

    A 64-bit multiply-xor mix; neighbouring counters give unrelated seeds.
    """
    state = 0x9E3779B97F4A7C15
    for counter in counters:
        state = ((state ^ (counter + 0x7F4A7C15)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
        state ^= state >> 29
    return state & _MASK
