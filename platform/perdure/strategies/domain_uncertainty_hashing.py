"""Cross-modal hashing by domain uncertainty: codes of bits that say what is alike, and not where they came from.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 3, Eq. (3.1) to (3.7).
"""

import logging
import math
from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from perdure.encoders.encoder import Encoder
from perdure.errors import ConfigError
from perdure.losses import (
    binary_codes,
    multi_label_cross_entropy,
    multi_level_similarity,
    negative_entropy,
    pair_likelihood,
    quantisation,
    unit_rows,
)
from perdure.losses.ranges import Fraction
from perdure.records import Embedded
from perdure.strategies.adversary import fully_connected
from perdure.strategies.ranking import Weight
from perdure.strategies.strategy import Examples, Strategy, TaskContext

__all__ = ["DomainUncertaintyHashing"]

_MODALITIES = 2
log = logging.getLogger(__name__)


class DomainUncertaintyHashing(Strategy):
    """L = a L_d + b L_pairs + c L_l + d L_m + e L_q (3.7), of real-valued features F, G and of codes H = tanh(.) of both modalities.

    The terms by their names in the log: `domain` L_d (3.2) of a predictor of the modality on features and of one on codes; `pairs`
    L_pairs (3.5) and `levels` L_m (3.3), each on features and on codes; `labels` L_l (3.6) of one predictor that both modalities share;
    `quantisation` L_q (3.1).

    With `alternating`, as in the thesis, the image side learns in even steps while the text side stands still, in odd ones the text side
    does; the predictors learn in all. Without, both sides learn in every step, by the same gradients: a step sees both sides as they were.

    Labels are an item's tags, or its class where it has none (`labels: class` takes the class always). There are no ranking terms. Protects
    nothing of earlier tasks; the predictors begin anew with each.

    Nearly all pairs are of different classes, and what tells L_pairs so at once is a bit that is the same for all pictures and the opposite
    for all captions. Such bits rank nothing but hold matching codes apart, too, by a third of their length, so that a lookup by radius
    finds nothing. So when a task is learned, the bits in which a picture and its own caption mostly differ get the other sign in captions.

    Raises:
        ConfigError: (when a task begins) the encoder has no hash heads, or the stream no captions.
    Deviations: features come into all terms at the length of a code of ones, sqrt(K); free in length, one modality outgrew the other, and
    the image side died (docs/reproductions.md has the figures of this and of `alternating`, which is off by default because a step then
    teaches one side only). The thesis sums over items, pairs and bits, with weights 100, 1, 1, 0.1, 1; here those are means, so that no
    weight follows the size of a batch or the length of a code (labels are summed, an item has few), and the weights are 1, 1, 1, 0.1, 0.1:
    from random weights, more of L_d or L_q fixes the signs before anything is told apart. It drops nine of ten units of the predictors
    out; here `dropout` is 0 by default, because small predictors are learned from scratch. It alternates between whole phases; here
    between steps.
    """

    name = "domain_uncertainty_hashing"
    own_objective = True
    reads_tags = True

    def __init__(
        self,
        *,
        domain: Weight = 1.0,
        pairs: Weight = 1.0,
        label: Weight = 1.0,
        levels: Weight = 0.1,
        quantisation: Weight = 0.1,
        labels: Literal["tags", "class"] = "tags",
        dropout: Fraction = 0.0,
        alternating: bool = False,
    ) -> None:
        super().__init__()
        self._weights = {"domain": domain, "pairs": pairs, "labels": label, "levels": levels, "quantisation": quantisation}
        self._labels = labels
        self._dropout = dropout
        self._alternating = alternating
        self._predictors: nn.ModuleDict | None = None
        self._task: TaskContext | None = None

    def classifies(self, tasks: int) -> bool:
        """Never: labels have a predictor of their own, the encoder's classifier is not trained."""
        return False

    def begin_task(self, encoder: Encoder, task: TaskContext) -> None:
        """Fresh predictors."""
        super().begin_task(encoder, task)
        if encoder.hashing is None or encoder.text is None:
            lacking = "encoder.hash_bits is null" if encoder.hashing is None else "the stream has no captions"
            raise ConfigError(
                f"strategy '{self.name}'", [f"it learns codes of pictures and captions, but {lacking}; set encoder.hash_bits"]
            )
        self._task = task
        num_labels = self._num_labels(task)
        labels = fully_connected(encoder.joint_dim, 512, 256, num_labels, seed=task.seed + 2, dropout=self._dropout)
        nn.init.constant_(cast(nn.Linear, labels[-1]).bias, -math.log(max(num_labels - 1, 1)))  # one label of all, until it knows better
        self._predictors = nn.ModuleDict(
            {
                "labels": labels,
                "features": fully_connected(encoder.joint_dim, 512, 256, _MODALITIES, seed=task.seed, dropout=self._dropout),
                "codes": fully_connected(encoder.hashing.bits, 512, 256, _MODALITIES, seed=task.seed + 1, dropout=self._dropout),
            }
        )

    def trained(self) -> Mapping[str, nn.Module]:
        """The predictors."""
        return {} if self._predictors is None else {"predictors": self._predictors}

    def loss_terms(self, encoder: Encoder, batch: Embedded) -> dict[str, Tensor]:
        """See the class."""
        heads, predictors = encoder.hashing, self._predictors
        if batch.text is None or heads is None or predictors is None:
            raise ValueError(f"{self.name} needs pictures with captions, an encoder with hash heads, and a task that was begun")
        image_stands, text_stands = self._alternating and batch.step % 2 == 1, self._alternating and batch.step % 2 == 0
        embedded = _still(batch.image, image_stands), _still(batch.text, text_stands)
        image_codes = _still(heads(embedded[0], "image"), image_stands)  # a head belongs to its side
        text_codes = _still(heads(embedded[1], "text"), text_stands)
        image, text = (math.sqrt(heads.bits) * unit_rows(each) for each in embedded)
        labels = self._of(batch)
        told = [multi_label_cross_entropy(predictors["labels"](each), labels) for each in (image, text)]
        unsure = [
            negative_entropy(predictor(each))
            for predictor, sides in ((predictors["features"], (image, text)), (predictors["codes"], (image_codes, text_codes)))
            for each in sides
        ]
        terms = {
            "domain": torch.stack(unsure).sum(),
            "pairs": pair_likelihood(image, text, labels, labels) + pair_likelihood(image_codes, text_codes, labels, labels),
            "labels": labels.shape[1] * torch.stack(told).sum(),
            "levels": multi_level_similarity(image, text, labels, labels) + multi_level_similarity(image_codes, text_codes, labels, labels),
            "quantisation": quantisation(image_codes) + quantisation(text_codes),
        }
        return {name: self._weights[name] * term for name, term in terms.items() if self._weights[name] > 0}

    def consolidate(self, encoder: Encoder, examples: Examples) -> None:
        """Turn the bits of captions that are mostly the opposite of the pictures'."""
        heads = encoder.hashing
        assert heads is not None
        agreement = torch.zeros(heads.bits, device=encoder.device)
        with torch.no_grad():
            for batch in examples.batches(size=64, per_class=1, count=16):
                image, text = encoder(*batch.inputs)
                agreement += (binary_codes(heads(image, "image")) * binary_codes(heads(text, "text"))).sum(dim=0)
        heads.turn(agreement < 0)
        log.info("%s: %d of %d bits turned in captions", self.name, int((agreement < 0).sum()), heads.bits)

    def end_task(self, encoder: Encoder) -> None:
        """Let go of the predictors."""
        self._predictors = None

    def _num_labels(self, task: TaskContext) -> int:
        return task.num_tags if self._labels == "tags" else int(task.class_ids.max()) + 1

    def _of(self, batch: Embedded) -> Tensor:
        """(B, C) of 0 and 1."""
        if self._labels == "tags":
            if batch.tags is None:
                raise ValueError(f"{self.name} learns from tags, but the batch came without; see Strategy.reads_tags")
            return batch.tags
        assert self._task is not None
        return nn.functional.one_hot(batch.labels, self._num_labels(self._task)).float()


def _still(tensor: Tensor, still: bool) -> Tensor:
    return tensor.detach() if still else tensor
