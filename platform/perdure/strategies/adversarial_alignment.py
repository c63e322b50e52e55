"""Adversarial alignment: pairs learned so that nobody can tell a picture's embedding from a caption's.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 4, Eq. (4.4) to (4.15), Algorithm 1 and section 4.5.4.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from perdure.encoders.encoder import Encoder
from perdure.losses import (
    batch_triplet,
    bidirectional_triplet,
    cross_entropy_over,
    projected_logits,
    projection_kl,
    symmetric_posterior_kl,
    unit_rows,
)
from perdure.losses.ranges import Count
from perdure.records import Embedded
from perdure.strategies.adversary import Adversary, Paradigm
from perdure.strategies.ranking import PositiveFloat, Ranking, Weight
from perdure.strategies.strategy import Strategy, TaskContext

__all__ = ["ALIGNMENT_RANKING", "AdversarialAlignment"]

ALIGNMENT_RANKING = Ranking(cross_entropy=3.0, mining="all", pairs=3.0)


class AdversarialAlignment(Strategy):
    """L = L_ce + L_di + L_kl + L_tr + L_s for the encoders and the classifier, L_c for the adversary (4.15).

    The terms by their names in the log: `cross_entropy` L_ce (4.10) and `imbalance` L_di (4.11), over the task's classes, of features
    that are projected on each other; `projection` L_kl (4.9); L_tr (4.14) as `pairs`, inter-modality (4.12), and `triplet`,
    intra-modality (4.13), the sum over both modalities; `entropy` L_s (4.4) and `modality` L_c (4.5), see `Adversary`.

    The ablations of Table 4.4: baseline 1 is imbalance=0, projection=0, adversary=none; baseline 2 projection=0, adversary=none;
    baseline 3 adversary=none. Protects nothing of earlier tasks. Without captions only the ranking terms are left.

    Raises:
        ConfigError: ranking.metric is given; it has no part in (4.15).
    Deviations: the thesis has no weights (all are 1), mines the hardest triplets and has one margin, 0.5; from random weights hard mining
    pulls all pictures into one point, so every triplet that violates counts, pairs with margin 0.2, and L_ce and pairs weigh 3. L_kl and
    L_s weigh 0.1 and 0.05: with 1 each costs many points (docs/reproductions.md). It names
    instances as labels; here they are the dataset's classes, which are instances where each item is a class of its own. L_ce is a mean
    of both directions' means. See the losses and `Adversary` for more.
    """

    name = "adversarial_alignment"
    own_objective = True

    def __init__(
        self,
        *,
        imbalance: Weight = 1.0,
        temperature: PositiveFloat = 4.0,
        projection: Weight = 0.1,
        adversary: Paradigm = "unified",
        entropy: Weight = 0.05,
        every: Count = 5,
        reversal: Weight = 0.05,
        ranking: Ranking = ALIGNMENT_RANKING,
    ) -> None:
        super().__init__(ranking=ranking)
        ranking.refuse_metric(self.name)
        self._imbalance = imbalance
        self._temperature = temperature
        self._projection = projection
        self._paradigm: Paradigm = adversary
        self._entropy = entropy
        self._every = every
        self._reversal = reversal
        self._adversary: Adversary | None = None

    def begin_task(self, encoder: Encoder, task: TaskContext) -> None:
        """A fresh adversary: what gives a modality away changes as the encoders do."""
        super().begin_task(encoder, task)
        self._adversary = None
        if self._paradigm != "none" and encoder.text is not None:
            self._adversary = Adversary(
                encoder.joint_dim, paradigm=self._paradigm, every=self._every, seed=task.seed, reversal=self._reversal
            )

    def trained(self) -> Mapping[str, nn.Module]:
        """The adversary, beside what the ranking trains."""
        own: dict[str, nn.Module] = {} if self._adversary is None else {"adversary": self._adversary}
        return {**super().trained(), **own}

    def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """See the class."""
        if batch.text is None:
            return self.ranking_terms(encoder, batch)
        terms = self._classified(encoder, batch, batch.text) | self._triplets(batch, batch.text)
        if self._projection > 0:
            terms["projection"] = self._projection * projection_kl(batch.image, batch.text, batch.labels)
        if self._adversary is not None:
            told = self._adversary.terms(batch.image, batch.text, batch.step)
            terms |= {name: self._entropy * term if name == "entropy" else term for name, term in told.items()}
        return terms

    def end_task(self, encoder: Encoder) -> None:
        """Let go of the adversary."""
        self._adversary = None

    def _classified(self, encoder: Encoder, batch: Embedded, text: Tensor) -> dict[str, Tensor]:
        """L_ce and L_di."""
        both = projected_logits(batch.image, text, encoder.classifier.weight)
        classes = torch.arange(both[0].shape[1]) if self._class_ids is None else self._class_ids
        classes = classes.to(batch.labels.device)
        terms: dict[str, Tensor] = {}
        if self._ranking.cross_entropy > 0:
            directions = [cross_entropy_over(logits, batch.labels, classes) for logits in both]
            terms["cross_entropy"] = self._ranking.cross_entropy * torch.stack(directions).mean()
        if self._imbalance > 0:
            image, caption = (logits[:, classes] for logits in both)
            terms["imbalance"] = self._imbalance * symmetric_posterior_kl(image, caption, temperature=self._temperature)
        return terms

    def _triplets(self, batch: Embedded, text: Tensor) -> dict[str, Tensor]:
        """L_tr: inter-modality, and within each modality."""
        rank, image, caption = self._ranking, unit_rows(batch.image), unit_rows(text)
        terms: dict[str, Tensor] = {}
        if rank.triplet > 0:
            within = [batch_triplet(each, batch.labels, margin=rank.margin, mining=rank.chosen_mining) for each in (image, caption)]
            terms["triplet"] = rank.triplet * torch.stack(within).sum()
        if rank.pairs > 0:
            same = batch.labels if rank.pair_negatives == "other_classes" else None
            terms["pairs"] = rank.pairs * bidirectional_triplet(image, caption, margin=rank.pair_margin, mining=rank.pair_mining, same=same)
        return terms
