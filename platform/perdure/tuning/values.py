"""The values that a sweep tries, where they do not depend on how trials turn out."""

import itertools
import json
import math
from typing import Any

import numpy as np

from perdure.tuning.config import SearchSpace, SweepConfig

__all__ = ["planned_values"]

_DRAWS = 100  # for each trial, before it is given up to find another combination


def planned_values(sweep: SweepConfig) -> list[dict[str, Any]]:
    """The values of every trial of a random or grid search, no two alike; the same for the same sweep, on any machine.

    More trials of a random search begin with those of fewer: a sweep that is made longer goes on.
    """
    keys, spaces = list(sweep.search), list(sweep.search.values())
    if sweep.order == "grid":
        points = itertools.product(*(space.choice or () for space in spaces))
        return [dict(zip(keys, point, strict=True)) for point in points]
    generator = np.random.default_rng(sweep.seed)
    drawn: dict[str, dict[str, Any]] = {}
    for _ in range(_DRAWS * sweep.num_trials):
        values = {key: _drawn(space, generator) for key, space in sweep.search.items()}
        drawn.setdefault(json.dumps(values, sort_keys=True, default=str), values)
        if len(drawn) == sweep.num_trials:
            break
    return list(drawn.values())


def _drawn(space: SearchSpace, generator: np.random.Generator) -> Any:
    if space.choice is not None:
        return space.choice[int(generator.integers(len(space.choice)))]
    if space.uniform is not None:
        return float(generator.uniform(*space.uniform))
    assert space.loguniform is not None
    low, high = space.loguniform
    return min(max(math.exp(generator.uniform(math.log(low), math.log(high))), low), high)  # exp(log(x)) may miss x by a bit
