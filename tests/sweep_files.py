"""A sweep small enough for a test, on which fine-tuning forgets: drawn scenes of eight classes, learned in the process of the trial."""

from pathlib import Path
from typing import Any

import yaml

BASE: dict[str, Any] = {
    "stream": {
        "dataset": {"name": "scenes", "items": 640, "classes": 8, "size": 24},
        "kind": {"name": "class_incremental", "first": 4, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 6, "embedding_dim": 8, "text": "none"},
    "train": {"epochs": 6, "first_epochs": 16, "lr": 0.03, "first_lr": 0.01, "batch_size": 16, "per_class": 4, "precision": "fp32"},
    "strategy": {"name": "l2", "max_share": None},
    "workers": 0,
}


def write_sweep(folder: Path, **changes: Any) -> Path:
    """A sweep over two weights of `l2`, the strong one first, as a file."""
    sweep = {
        "name": "few",
        "base": BASE,
        "protocol": {"name": "first_tasks", "tasks": 2, "held_out": 0.3},
        "search": {"strategy.weight": {"choice": [100.0, 0.0]}},
        "order": "grid",
        **changes,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return path
