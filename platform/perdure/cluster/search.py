"""Optuna's tree-structured Parzen estimator as Tune's search, for both objectives at once where the knee of their front is asked for."""

from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from ray.tune.search.optuna import OptunaSearch

from perdure.tuning import SearchSpace, SweepConfig
from perdure.tuning.config import OBJECTIVES

__all__ = ["optuna_search"]

_PLACE = "values"  # of the searched options in a trial's config


def optuna_search(sweep: SweepConfig, begun: list[dict[str, Any]]) -> OptunaSearch:
    """A search that proposes what was begun at an earlier time first, in that order, and then goes on from what comes of it.

    The study is in memory: trials that are over repeat what they reported, so it is told of them anew. What a trial that was stopped early
    reported last counts as its result.

    Args:
        sweep: best=knee searches both objectives, best=metric that figure alone.
        begun: values of the trials so far.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    both = sweep.best == "knee"
    return OptunaSearch(
        {f"{_PLACE}/{key}": _distribution(space) for key, space in sweep.search.items()},
        metric=list(OBJECTIVES) if both else "metric",
        mode=["max"] * len(OBJECTIVES) if both else sweep.mode,
        points_to_evaluate=[{f"{_PLACE}/{key}": value for key, value in values.items()} for values in begun],
        seed=sweep.seed + len(begun),  # with the same one it would begin with the random draws that it began with before
    )


def _distribution(space: SearchSpace) -> BaseDistribution:
    if space.choice is not None:
        return CategoricalDistribution(space.choice)
    low, high = space.uniform or space.loguniform or (0.0, 1.0)
    return FloatDistribution(low, high, log=space.loguniform is not None)
