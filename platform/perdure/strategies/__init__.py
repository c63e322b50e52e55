"""Strategies: one continual method per file."""

from perdure.catalog import Catalog
from perdure.strategies.adversarial_alignment import AdversarialAlignment
from perdure.strategies.alasso import ALASSO
from perdure.strategies.compatible import CompatibleTraining
from perdure.strategies.correlation import CorrelationDistillation
from perdure.strategies.correlation_all_teachers import CorrelationAllTeachers
from perdure.strategies.domain_uncertainty_hashing import DomainUncertaintyHashing
from perdure.strategies.dual import DualDistillation
from perdure.strategies.ewc import EWC
from perdure.strategies.feature_extraction import FeatureExtraction
from perdure.strategies.fine_tune import FineTune
from perdure.strategies.joint import Joint
from perdure.strategies.l1 import L1Distillation
from perdure.strategies.l2 import L2Distillation
from perdure.strategies.lwf import LearningWithoutForgetting
from perdure.strategies.lwf_expert import LearningWithoutForgettingWithExpert
from perdure.strategies.mas import MAS
from perdure.strategies.meta_sequential import MetaSequential
from perdure.strategies.mmd import MMDDistillation
from perdure.strategies.nce_ewc import NCEWithEWC
from perdure.strategies.ranking import Ranking
from perdure.strategies.strategy import Strategy, TaskContext

__all__ = ["STRATEGIES", "Ranking", "Strategy", "TaskContext"]

STRATEGIES: Catalog[Strategy] = Catalog(
    "strategy",
    {
        "fine_tune": FineTune,
        "joint": Joint,
        "feature_extraction": FeatureExtraction,
        "lwf": LearningWithoutForgetting,
        "lwf_expert": LearningWithoutForgettingWithExpert,
        "l1": L1Distillation,
        "l2": L2Distillation,
        "mmd": MMDDistillation,
        "compatible": CompatibleTraining,
        "correlation": CorrelationDistillation,
        "correlation_all_teachers": CorrelationAllTeachers,
        "dual": DualDistillation,
        "ewc": EWC,
        "mas": MAS,
        "alasso": ALASSO,
        "nce_ewc": NCEWithEWC,
        "adversarial_alignment": AdversarialAlignment,
        "domain_uncertainty_hashing": DomainUncertaintyHashing,
        "meta_sequential": MetaSequential,
    },
)
