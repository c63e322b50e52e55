"""Choosing the options of a method without looking at what it will be judged on: protocols, objectives, the front, without Ray.

`cluster.sweep` runs the trials; everything that decides what a trial may see and how it is judged is here.
"""

from perdure.tuning.config import SearchSpace, StopEarly, SweepConfig, load_sweep
from perdure.tuning.front import knee, pareto_front
from perdure.tuning.objectives import OBJECTIVE_DEFINITIONS, figures_of, looked_up
from perdure.tuning.protocols import CurrentTaskValidation, FirstTasks, Oracle, Protocol, TwoPhase
from perdure.tuning.trials import TrialRecord, Trials, trial_name
from perdure.tuning.values import planned_values

__all__ = [
    "OBJECTIVE_DEFINITIONS",
    "CurrentTaskValidation",
    "FirstTasks",
    "Oracle",
    "Protocol",
    "SearchSpace",
    "StopEarly",
    "SweepConfig",
    "TrialRecord",
    "Trials",
    "TwoPhase",
    "figures_of",
    "knee",
    "load_sweep",
    "looked_up",
    "pareto_front",
    "planned_values",
    "trial_name",
]
