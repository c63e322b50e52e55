"""pytorch-metric-learning, imported when the first part of it is built.

Importing it brings scipy.stats along and takes two seconds; a run without such a part need not wait for it.
"""

from types import SimpleNamespace
from typing import Any

__all__ = ["library"]


def library() -> Any:
    """The rooms of the package that parts are taken from: `distances`, `losses`, `miners`, `regularizers`."""
    from pytorch_metric_learning import distances, losses, miners, regularizers

    return SimpleNamespace(distances=distances, losses=losses, miners=miners, regularizers=regularizers)
