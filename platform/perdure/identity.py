"""What makes two runs the same: hashes of configurations, and the names that runs take."""

import hashlib
import json
from pathlib import Path
from typing import Any

from perdure.config import RunConfig, parse
from perdure.errors import ConfigError
from perdure.files import write_whole
from perdure.settings import refuse_fleeting

__all__ = ["claim", "fingerprint", "first_task_fingerprint", "refuse_other"]

# Options that came later, and the value with which a run is the one that it was before: then they are no part of a hash.
_NEWER = {
    "backbone_lr": None,
    "first_backbone_lr": None,
    "task_order": None,
    "whitening": None,
    "metric": None,
    "projection": "separate",
    "hash_bits": None,
    "joint": None,
    "validation": None,
    "tags": None,
    "payload": [],
    "gallery": "test",
    "others": False,
    "teacher": {"adapts": False, "mirrored": False},
}


def fingerprint(config: RunConfig) -> str:
    """A hash of everything that decides what a run computes: not where it is stored, nor how it is spread or indexed."""
    plain = config.plain()
    for free in ("workers", "registry", "index", "gates"):
        plain.pop(free)
    for free in ("log_every", "tensorboard", "checkpoint_every", "start_from"):
        plain["train"].pop(free)
    stream = plain["stream"]
    inner = ((stream, "kind"), (stream, "dataset"), (plain["strategy"], "ranking"))  # before what holds them
    for holder, key in (*inner, (plain, "train"), (plain, "stream"), (plain, "encoder"), (plain, "strategy")):
        if holder.get(key):
            holder[key] = _as_before(holder[key])
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def first_task_fingerprint(config: RunConfig, *, own_objective: bool = False) -> str:
    """A hash of what decides the first task's encoder: the strategy only by its ranking terms, later tasks' numbers left out.

    Args:
        config: with every option written out.
        own_objective: whether the strategy learns a first task by more than the ranking terms; then all of it counts.
    """
    plain = config.plain()
    train = plain["train"]
    kind, ranking = plain["stream"]["kind"], plain["strategy"].get("ranking")
    of_later_tasks = ("step", "tasks", "task_order") if kind.get("task_order") is None else ()
    validation = plain["stream"]["validation"]
    backbone_lr = train["backbone_lr"] if train["first_backbone_lr"] is None else train["first_backbone_lr"]
    first = {
        "seed": plain["seed"],
        "dataset": _as_before(plain["stream"]["dataset"]),
        "on_bad_item": plain["stream"]["on_bad_item"],
        **({} if validation is None else {"held_out": validation["share"]}),
        "kind": {key: value for key, value in kind.items() if key not in of_later_tasks},
        "encoder": _as_before(plain["encoder"]),
        **({"strategy": plain["strategy"]} if own_objective else {}),
        "ranking": ranking and _as_before(ranking),
        "epochs": train["epochs"] if train["first_epochs"] is None else train["first_epochs"],
        "lr": train["lr"] if train["first_lr"] is None else train["first_lr"],
        **({} if backbone_lr is None else {"backbone_lr": backbone_lr}),
        **{
            key: train[key]
            for key in ("max_steps", "batch_size", "per_class", "optimizer", "weight_decay", "schedule", "clip_norm", "precision")
        },
        **{key: train[key] for key in ("crop", "flip", "freeze_batch_norm")},
    }
    return hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()


def _as_before(section: dict[str, Any]) -> dict[str, Any]:
    """A section without the later options that change nothing."""
    return {key: value for key, value in section.items() if key not in _NEWER or value != _NEWER[key]}


def claim(folder: Path, config: RunConfig) -> None:
    """Take a run's name: the first run of a name leaves its config, later ones must have the same (see `refuse_other`)."""
    refuse_other(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.json", json.dumps(config.plain(), indent=1))


def refuse_other(folder: Path, config: RunConfig) -> None:
    """Let a run pass whose name is free, or taken by the same configuration.

    Raises:
        ConfigError: the name is taken by another configuration; every key that differs is told. Or the folder ends with the job.
    """
    path = refuse_fleeting("PERDURE_RUNS", folder) / "config.json"
    if path.exists():
        earlier = parse(json.loads(path.read_text()))
        if fingerprint(earlier) != fingerprint(config):
            before, now = _flat(earlier.plain()), _flat(config.plain())
            changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
            lines = [
                f"{key}: was {before.get(key)!r}, now {now.get(key)!r}"
                for key in changed
                if not key.startswith(("workers.", "registry", "index.", "gates."))
            ]
            raise ConfigError(
                f"run '{config.name}' exists with another configuration in {folder}; choose another name=..., or remove that folder", lines
            )


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in plain.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
