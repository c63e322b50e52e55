"""The numbers of one task's training, and the learning rate as a pure function of the step."""

import math
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["Schedule", "learning_rate", "make_optimizer", "random_seed"]

_WARM_UP = 0.15  # share of a one-cycle schedule that climbs
_MASK = (1 << 63) - 1


@dataclass(frozen=True)
class Schedule:
    """How one task is trained."""

    epochs: int
    batch_size: int = 128
    per_class: int = 4
    lr: float = 1e-3
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


def make_optimizer(encoder: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW or SGD with momentum 0.9; weight decay on matrices and kernels only, not on biases, norms and scalars."""
    parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=schedule.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=schedule.lr, fused=True)


def random_seed(*counters: int) -> int:
    """A seed from counters such as (seed, task, step, rank): same counters, same draw, so resuming needs no saved RNG state.

    A 64-bit multiply-xor mix; neighbouring counters give unrelated seeds.
    """
    state = 0x9E3779B97F4A7C15
    for counter in counters:
        state = ((state ^ (counter + 0x7F4A7C15)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
        state ^= state >> 29
    return state & _MASK
