"""A third task for the tests of the loop and of the gather: the first that has drifts behind it and an encoder before its parent."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray

from perdure.encoders import Encoder, build_encoder
from perdure.encoders.hashing import HashHeads
from perdure.memory.accuracy_drift import AccuracyDrift
from perdure.strategies import TaskContext

OPTIONS: dict[str, dict[str, object]] = {  # what a strategy does beside its defaults, and fewer items where it measures
    "correlation": {"estimation": True},
    "ewc": {"items": 8, "group": 8},
    "nce_ewc": {"items": 8, "group": 8},
    "mas": {"items": 8},
    "dual": {"inversion": {"pictures": 9, "iterations": 2}},
    "domain_uncertainty_hashing": {"labels": "class"},
    "meta_sequential": {"items": 16},
}
SHARED_LAYERS = ("meta_sequential",)  # they need an encoder with a joint trunk


def equip(name: str, encoder: Encoder) -> None:
    """Give an encoder what a strategy needs beside what all encoders of the tests have."""
    if name == "domain_uncertainty_hashing":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            encoder.hashing = HashHeads(encoder.joint_dim, 8)


def third_task(parent: Encoder, labels: NDArray[np.int64]) -> TaskContext:
    """What a strategy may know of a third task: one drift, and a first encoder that is not the parent's."""

    def ancestor(_: int) -> Encoder:
        elder = copy.deepcopy(parent)
        with torch.no_grad():
            for parameter in elder.parameters():
                parameter.mul_(1.5)
        return elder

    def fresh() -> Encoder:
        """As if it had seen other pictures in a pre-training."""
        encoder = build_encoder(parent.name, parent.options, with_text=parent.text is not None, seed=parent.seed)
        for module in encoder.modules():
            if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean += 0.1
        return encoder

    drifts = (AccuracyDrift(-0.3, 0.9),)
    return TaskContext(2, torch.from_numpy(np.unique(labels)), drifts=drifts, ancestor=ancestor, fresh=fresh, flips=True)
