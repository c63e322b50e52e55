"""Which modality an embedding came from: a discriminator learns to tell, the encoders learn to leave it undecided.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 3, Eq. (3.2), and ch. 4, Eq. (4.4) and (4.5), section 4.5.4.
N rows, M modalities.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from perdure.losses.unit import full_precision

__all__ = ["modality_cross_entropy", "negative_entropy", "reverse_gradient"]


def negative_entropy(logits: Tensor) -> Tensor:
    """Minus the Shannon entropy of what a discriminator says of each row (3.2, 4.4): least where it cannot tell.

        L_s = (1/N) sum_j sum_m P_jm log P_jm,        P = softmax(logits)

    The minimum, -log M, is the uniform answer. Where the discriminator is sure there is almost no slope, which is why it may take but one
    step to several of the encoders (Algorithm 1). Of (4.4) this is one modality's half; add the other's.

    Args:
        logits: (N, M) the discriminator's.
    Returns:
        () nats, in -log M .. 0; 0, still differentiable, for N = 0.
    Raises:
        ValueError: not (N, M) with M >= 2.
    Deviations: (3.2) is printed as a sum over rows; here, as in (4.4), a mean.
    """
    _check("negative_entropy", logits)
    if len(logits) == 0:
        return full_precision(logits).sum() * 0.0
    log_p = full_precision(logits).log_softmax(dim=1)
    return (log_p.exp() * log_p).sum(dim=1).mean()


def modality_cross_entropy(logits: Sequence[Tensor]) -> Tensor:
    """How badly a discriminator tells M modalities apart (4.5).

        L_c = - sum_m (1/N_m) sum_j log P^m_jm,        P^m = softmax(logits[m])

    Args:
        logits: for each modality m the discriminator's (N_m, M) of the rows that came from it. (4.5) has pictures, then captions.
    Returns:
        () nats, at least 0: a sum over modalities of means over rows; one without rows adds 0.
    Raises:
        ValueError: not M entries of (N_m, M).
    """
    for each in logits:
        _check("modality_cross_entropy", each)
        if each.shape[1] != len(logits):
            raise ValueError(f"modality_cross_entropy: {len(logits)} modalities, but logits {tuple(each.shape)}; it needs (N, M) of each.")
    if len(logits) < 2:
        raise ValueError(f"modality_cross_entropy: got {len(logits)} modalities; one cannot be told from others.")
    return torch.stack([_surprise(each, m) for m, each in enumerate(logits)]).sum()


def reverse_gradient(embeddings: Tensor, scale: float = 1.0) -> Tensor:
    """The embeddings themselves on the way forward; on the way back, the gradient times -scale.

    Between the encoders and a discriminator it lets one backward pass teach both: the discriminator to tell the modalities apart, the
    encoders to keep it from doing so (section 4.5.4; Ganin and Lempitsky, ICML 2015).

    Args:
        embeddings: of any shape.
        scale: at least 0; 0 stops the gradient.
    Raises:
        ValueError: scale is negative.
    """
    if scale < 0:
        raise ValueError(f"reverse_gradient: scale={scale}; 0 or more.")
    return cast(Tensor, _Reversed.apply(embeddings, scale))


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return embeddings.view_as(embeddings)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


def _surprise(logits: Tensor, modality: int) -> Tensor:
    logits = full_precision(logits)
    return -logits.log_softmax(dim=1)[:, modality].mean() if len(logits) else logits.sum() * 0.0


def _check(loss: str, logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"{loss}: got logits {tuple(logits.shape)}; it needs (N, M) with two modalities or more.")
