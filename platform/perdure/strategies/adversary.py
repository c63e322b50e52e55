"""Who tells pictures from captions by their embeddings, and what the encoders learn from that.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 4: section 4.4.1 and Algorithm 1 (unified), section 4.5.4
(separate). B pairs, D embedding.
"""

import itertools
import math
from typing import Literal

import torch
from torch import Tensor, nn

from perdure.losses import modality_cross_entropy, negative_entropy, reverse_gradient, unit_rows

__all__ = ["Adversary", "Paradigm", "fully_connected"]

Paradigm = Literal["unified", "separate", "none"]
_MODALITIES = 2


def fully_connected(*widths: int, seed: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers of these widths with ReLU (and dropout) between them; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
        for low, high in itertools.pairwise(widths[1:]):
            layers += [nn.ReLU(), nn.Dropout(dropout), nn.Linear(low, high)]
    return nn.Sequential(*layers)


class Adversary(nn.Module):
    """One network that both classifies and says how sure it is ("unified"), or one for each ("separate").

    - unified: the encoders minimise its negative entropy L_s (4.4) while its weights stand still; its weights minimise the cross-entropy
      L_c (4.5) of embeddings that stand still, in one step out of `every`.
    - separate: an uncertainty predictor and the encoders minimise L_s together; a classifier minimises L_c, whose gradient reaches the
      encoders with its sign reversed, so that they maximise it.

    Args:
        embedding_dim: D.
        paradigm: "unified" or "separate".
        every: of how many steps one trains the unified network.
        seed: of the weights.
        reversal: of "separate", how much of the classifier's gradient reaches the encoders, reversed.
    Deviations: reversed as a whole (1), that gradient has no end: encoders do not hide where an embedding came from but pretend the
    other, grow, and learn nothing else. So a twentieth of it reaches them, and embeddings come to both networks at one length, sqrt(D).
    The thesis gives the number of layers but not their widths (512 -> 256 -> 2 in ch. 3, kept here). The step of the network
    is taken on the last batch of the encoders' `every`, not on one of its own.
    """

    def __init__(self, embedding_dim: int, *, paradigm: Paradigm, every: int, seed: int, reversal: float = 0.05) -> None:
        super().__init__()
        self.every = every
        self.reversal = reversal
        self.classifier = fully_connected(embedding_dim, 512, 256, _MODALITIES, seed=seed)
        self.predictor = fully_connected(embedding_dim, 512, 256, _MODALITIES, seed=seed + 1) if paradigm == "separate" else None

    def terms(self, image: Tensor, text: Tensor, step: int) -> dict[str, Tensor]:
        """L_s as `entropy`, and L_c as `modality` in the steps that have it.

        Args:
            image: (B, D) Z_i.
            text: (B, D) Z_t.
            step: of the task, from 0.
        """
        if self.predictor is not None:
            image, text = (math.sqrt(each.shape[1]) * unit_rows(each) for each in (image, text))
            reversed_logits = [self.classifier(reverse_gradient(each, self.reversal)) for each in (image, text)]
            return {"entropy": _both(self.predictor(image), self.predictor(text)), "modality": modality_cross_entropy(reversed_logits)}
        fixed = {name: parameter.detach() for name, parameter in self.classifier.named_parameters()}
        answers: list[Tensor] = [torch.func.functional_call(self.classifier, fixed, (each,)) for each in (image, text)]
        terms = {"entropy": _both(*answers)}
        if (step + 1) % self.every == 0:
            terms["modality"] = modality_cross_entropy([self.classifier(each.detach()) for each in (image, text)])
        return terms


def _both(image: Tensor, text: Tensor) -> Tensor:
    return negative_entropy(image) + negative_entropy(text)
