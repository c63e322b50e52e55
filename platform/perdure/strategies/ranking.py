"""The objective that every strategy learns the new task with: ranking within the task, and classifying it."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.errors import ConfigError
from perdure.losses import Mining, PairMining, batch_triplet, bidirectional_triplet, cross_entropy_over, unit_rows
from perdure.losses.metric import PER_CLASS
from perdure.losses.metric.objective import MetricObjective
from perdure.losses.ranges import NonNegative, Positive
from perdure.records import Embedded
from perdure.strategies.metric import MetricPart

__all__ = ["DEFAULT_RANKING", "PositiveFloat", "Ranking", "Weight"]

Weight = NonNegative
PositiveFloat = Positive


class Ranking(BaseModel):
    """Weights and options of the terms; a weight of 0 leaves a term out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    triplet: Weight = Field(default=1.0, description="weight of (5.2), triplets between the classes of the batch")
    cross_entropy: Weight = Field(default=1.0, description="weight of (5.1), softmax over the task's own classes")
    pairs: Weight = Field(default=1.0, description="weight of (4.12), images against captions, where the stream has text")
    margin: Weight = Field(default=0.5, description="of the triplets, in units of an inner product of unit rows")
    mining: Mining | Literal["auto"] = Field(
        default="auto",
        description="which triplets count: hard, semi_hard or all that violate the margin; auto: hard beside a cross_entropy, else all",
    )
    pair_margin: Weight = Field(default=0.2, description="of the pairs")
    pair_mining: PairMining = Field(default="all", description="which pairs count: hard or all that violate the margin")
    pair_negatives: Literal["all", "other_classes", "within_task"] = Field(
        default="all",
        description="other_classes: captions of the same class are never negatives, for streams whose captions only name the class; "
        "within_task: pairs of different tasks are never negatives of each other, which only joint has in one batch",
    )
    metric: MetricPart | None = Field(
        default=None, description="one more loss on the pictures, by name, with weight, miner and memory; usually with triplet: 0"
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> "Ranking":
        if self.triplet == self.cross_entropy == self.pairs == self._metric_weight == 0:
            raise ValueError(
                "triplet, cross_entropy and pairs are all 0 and there is no metric, so nothing would be learned; give one of them a weight"
            )
        return self

    def metric_objective(self, class_ids: Tensor, embedding_dim: int, seed: int) -> MetricObjective | None:
        """What `metric` needs in one task beside its options; None where it has no weight. A strategy keeps it, for this is shared."""
        return self.metric.objective(class_ids, embedding_dim, seed) if self.metric is not None and self._metric_weight > 0 else None

    def terms(
        self, encoder: Encoder, batch: Embedded, class_ids: Tensor | None, metric: MetricObjective | None = None
    ) -> dict[str, Tensor]:
        """The weighted terms of a global batch: triplet, cross_entropy, pairs, and `metric` by its loss's name; what does not apply is out.

        Made-up pictures, where the batch has them, are of old classes. They take part in the triplets (7.6), and in a metric that has no
        parameters for each class, because those are for the classes of the task.

        Args:
            encoder: the student, for its classifier.
            batch: (B, D) embeddings before normalisation.
            class_ids: (n,) int64, the classes of the softmax; None = every class that the classifier has.
            metric: what `metric_objective` made for this task.
        Raises:
            ValueError: nothing applies (only `pairs` has a weight, and the batch has no text), or `metric` has a weight and is missing.
        """
        terms: dict[str, Tensor] = {}
        pictures, labels = _with_made_up(batch)
        if self.triplet > 0:
            terms["triplet"] = self.triplet * batch_triplet(unit_rows(pictures), labels, margin=self.margin, mining=self.chosen_mining)
        if self.cross_entropy > 0:
            logits = encoder.classifier(batch.image)
            classes = torch.arange(logits.shape[1]) if class_ids is None else class_ids
            terms["cross_entropy"] = self.cross_entropy * cross_entropy_over(logits, batch.labels, classes.to(batch.labels.device))
        if self.pairs > 0 and batch.text is not None:
            terms["pairs"] = self.pairs * bidirectional_triplet(
                unit_rows(batch.image),
                unit_rows(batch.text),
                margin=self.pair_margin,
                mining=self.pair_mining,
                same=batch.labels if self.pair_negatives == "other_classes" else None,
                within=batch.tasks if self.pair_negatives == "within_task" else None,
            )
        if self.metric is not None and self._metric_weight > 0:
            if metric is None:
                raise ValueError(f"ranking: the metric '{self.metric.name}' has a weight, but nobody began it; see Strategy.ranking_terms")
            rows = (batch.image, batch.labels) if self.metric.name in PER_CLASS else (pictures, labels)
            terms[self.metric.name] = self.metric.weight * metric(*rows, batch.seed)
        if not terms:
            raise ValueError("ranking: only 'pairs' has a weight, but the batch has no text; give triplet or cross_entropy a weight")
        return terms

    def refuse_metric(self, strategy: str) -> None:
        """For a strategy whose objective has no place for one.

        Raises:
            ConfigError: there is a metric.
        """
        if self.metric is not None:
            raise ConfigError(f"strategy '{strategy}'", [f"ranking.metric={self.metric.name} has no part in it; leave it out"])

    @property
    def _metric_weight(self) -> float:
        return 0.0 if self.metric is None else self.metric.weight

    @property
    def chosen_mining(self) -> Mining:
        """A classifier holds the classes apart while hard triplets do their work; without one they collapse an untrained encoder."""
        if self.mining != "auto":
            return self.mining
        return "hard" if self.cross_entropy > 0 else "all"


def _with_made_up(batch: Embedded) -> tuple[Tensor, Tensor]:
    """(B + B', D) embeddings of all pictures, before normalisation, and their labels (B + B',)."""
    if batch.synthetic is None or batch.synthetic_labels is None:
        return batch.image, batch.labels
    return torch.cat([batch.image, batch.synthetic]), torch.cat([batch.labels, batch.synthetic_labels])


DEFAULT_RANKING = Ranking()
