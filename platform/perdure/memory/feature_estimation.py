"""Feature estimation: what an encoder that was not kept might have said, from the oldest one at hand and two numbers per task.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 6, Eq. (6.7) to (6.9). B rows, D embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from perdure.memory.accuracy_drift import AccuracyDrift

__all__ = ["estimate_features"]


def estimate_features(embeddings: Tensor, drifts: Sequence[AccuracyDrift], generator: torch.Generator, *, k: float = 1.0) -> list[Tensor]:
    """Virtual embeddings by the encoders of all tasks before the last one, from that of the last, t - 1 (6.7 to 6.9).

        F[s - 1] = F[s] + k alpha * F[s],        alpha_id ~ U(drop_s, gain_s) for every element,        s = t - 1, ..., 1

    Every step uses what was recorded when task s was learned, and starts from the estimate of the step before.

    Args:
        embeddings: (B, D) F[t - 1] of the encoder that is at hand.
        drifts: (t - 1,) of the tasks 1..t - 1, in that order.
        generator: of alpha, on the CPU whatever the embeddings' device is: the same draws everywhere.
        k: scales the step; the thesis takes 1.
    Returns:
        (t - 1) tensors (B, D): F[t - 2], ..., F[0].
    Deviations: drop > gain, when learning did more good to the old classes than to the new, gives the same range from the other side.
    """
    virtual: list[Tensor] = []
    for drift in reversed(drifts):
        low, high = sorted((drift.drop, drift.gain))
        uniform_BD = torch.rand(embeddings.shape, generator=generator).to(embeddings)
        alpha_BD = low + (high - low) * uniform_BD
        embeddings = embeddings + k * alpha_BD * embeddings
        virtual.append(embeddings)
    return virtual
