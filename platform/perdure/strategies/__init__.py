"""Strategies: one continual method per file."""

from perdure.catalog import Catalog
from perdure.strategies.correlation import CorrelationDistillation
from perdure.strategies.fine_tune import FineTune
from perdure.strategies.joint import Joint
from perdure.strategies.l2 import L2Distillation
from perdure.strategies.lwf import LearningWithoutForgetting
from perdure.strategies.ranking import Ranking
from perdure.strategies.strategy import Strategy, TaskContext

__all__ = ["STRATEGIES", "Ranking", "Strategy", "TaskContext"]

STRATEGIES: Catalog[Strategy] = Catalog(
    "strategy",
    {
        "fine_tune": FineTune,
        "joint": Joint,
        "lwf": LearningWithoutForgetting,
        "l2": L2Distillation,
        "correlation": CorrelationDistillation,
    },
)
