"""The state of a task being learned, as safetensors + JSON: what is trained, optimiser, strategy, step.

Every random draw is a function of (seed, task, step) and the learning rate is a function of the step, so neither a sampler position
nor the state of a random generator needs saving: the step is both. The teacher is the parent version in the registry.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

__all__ = ["STATE", "STATE_TENSORS", "Checkpoints", "FolderCheckpoints", "NoCheckpoints", "load_state", "save_state"]

STATE = "state.json"
STATE_TENSORS = "state.safetensors"


class Checkpoints(Protocol):
    """Where a task's states go. Every worker calls `save` at the same steps; the store decides who writes."""

    def latest(self) -> Path | None:
        """The folder of the newest complete state, if there is one."""
        ...

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Keep what `write` puts into the folder it is given; a half-written state is never `latest`."""
        ...


class NoCheckpoints:
    """Nothing is kept: tests and benchmarks."""

    def latest(self) -> Path | None:
        """None."""
        return None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Drop it."""


class FolderCheckpoints:
    """States as folders `step-00000200` of a local folder; the last two are kept."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self._folder = folder
        self._keep = keep

    def latest(self) -> Path | None:
        """The highest step; names are given by a rename after the content is complete."""
        states = self._states()
        return states[-1] if states else None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Write beside, rename, forget the oldest."""
        target = self._folder / f"step-{step:08d}"
        beside = self._folder / f".writing-{step:08d}-{os.getpid()}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write(beside)
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
        for old in self._states()[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)

    def _states(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"))


def save_state(
    folder: Path,
    *,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    strategy: Mapping[str, Tensor],
    extra: dict[str, Any],
) -> None:
    """Write a state; `modules` is all that is trained (names without a dot), `extra` is JSON (curves so far, items read)."""
    tensors = {f"{module}.{name}": value for module, each in modules.items() for name, value in each.state_dict().items()}
    tensors |= {f"strategy.{name}": value for name, value in strategy.items()}
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / STATE_TENSORS)
    (folder / STATE).write_text(json.dumps({"step": step, "optimizer": numbers, "extra": extra}))


def load_state(
    folder: Path, *, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """Read a state into the modules and the optimiser.

    Returns:
        the step that comes next, the strategy's state, and `extra`.
    """
    record = json.loads((folder / STATE).read_text())
    by_part: dict[str, dict[str, Tensor]] = {part: {} for part in (*modules, "strategy", "optimizer")}
    for name, value in load_file(folder / STATE_TENSORS).items():
        part, _, rest = name.partition(".")
        by_part[part][rest] = value
    for name, module in modules.items():
        module.load_state_dict(by_part[name])
    state = optimizer.state_dict()
    slots: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in record["optimizer"].items()}
    for name, value in by_part["optimizer"].items():
        index, _, slot = name.partition(".")
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": state["param_groups"]})
    for parameter, values in optimizer.state.items():  # the moments in the memory layout of their parameter, as they were
        for slot, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[slot] = torch.empty_like(parameter).copy_(value)
    return record["step"], by_part["strategy"], record["extra"]
