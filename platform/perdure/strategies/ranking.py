"""The objective that every strategy learns the new task with: ranking within the task, and classifying it."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from perdure.encoders.encoder import Encoder
from perdure.losses import Mining, PairMining, batch_triplet, bidirectional_triplet, cross_entropy_over, unit_rows
from perdure.records import Embedded

__all__ = ["DEFAULT_RANKING", "PositiveFloat", "Ranking", "Weight"]

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
    pair_negatives: Literal["all", "other_classes"] = Field(
        default="all",
        description="other_classes: captions of the same class are never negatives, for streams whose captions only name the class",
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> "Ranking":
        if self.triplet == self.cross_entropy == self.pairs == 0:
            raise ValueError("triplet, cross_entropy and pairs are all 0, so nothing would be learned; give one of them a weight")
        return self

    def terms(self, encoder: Encoder, batch: Embedded, class_ids: Tensor | None) -> dict[str, Tensor]:
        """The weighted terms of a global batch, named triplet, cross_entropy and pairs; those that do not apply are left out.

        Args:
            encoder: the student, for its classifier.
            batch: (B, D) embeddings before normalisation.
            class_ids: (n,) int64, the classes of the softmax; None = every class that the classifier has.
        Raises:
            ValueError: nothing applies (only `pairs` has a weight, and the batch has no text).
        """
        terms: dict[str, Tensor] = {}
        image = unit_rows(batch.image)
        if self.triplet > 0:
            terms["triplet"] = self.triplet * batch_triplet(image, batch.labels, margin=self.margin, mining=self._chosen_mining())
        if self.cross_entropy > 0:
            logits = encoder.classifier(batch.image)
            classes = torch.arange(logits.shape[1]) if class_ids is None else class_ids
            terms["cross_entropy"] = self.cross_entropy * cross_entropy_over(logits, batch.labels, classes.to(batch.labels.device))
        if self.pairs > 0 and batch.text is not None:
            terms["pairs"] = self.pairs * bidirectional_triplet(
                image,
                unit_rows(batch.text),
                margin=self.pair_margin,
                mining=self.pair_mining,
                same=batch.labels if self.pair_negatives == "other_classes" else None,
            )
        if not terms:
            raise ValueError("ranking: only 'pairs' has a weight, but the batch has no text; give triplet or cross_entropy a weight")
        return terms

    def _chosen_mining(self) -> Mining:
        """A classifier holds the classes apart while hard triplets do their work; without one they collapse an untrained encoder."""
        if self.mining != "auto":
            return self.mining
        return "hard" if self.cross_entropy > 0 else "all"


DEFAULT_RANKING = Ranking()
