"""Hashing of two modalities into common binary codes: pairs, degrees of similarity, labels, and how far from binary.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 3, Eq. (3.1) and (3.3) to (3.6). N pictures, N' texts, C labels,
K bits, D embedding. Codes before the sign are H = tanh(.), in -1..1.
"""

import torch
from torch import Tensor
from torch.nn import functional

from perdure.losses.unit import full_precision, inner_products

__all__ = ["binary_codes", "multi_label_cross_entropy", "multi_level_similarity", "pair_likelihood", "quantisation"]


def binary_codes(codes: Tensor) -> Tensor:
    """B = sign(H) with sign(0) = 1: (N, K) of -1 and 1, without gradient."""
    return torch.where(codes.detach() >= 0, 1.0, -1.0).to(codes.dtype)


def quantisation(codes: Tensor) -> Tensor:
    """How far codes lie from their own signs (3.1), one modality's half: mean of (H - sign(H))^2.

    Args:
        codes: (N, K) H.
    Returns:
        () 0 where every entry is -1 or 1, 1 where all are 0; 0, still differentiable, for N = 0.
    Raises:
        ValueError: not (N, K).
    Deviations: a mean over entries where the thesis takes the squared Frobenius norm, so the scale follows neither N nor K.
    """
    if codes.ndim != 2:
        raise ValueError(f"quantisation: got codes {tuple(codes.shape)}; it needs (N, K).")
    codes = full_precision(codes)
    return (codes - binary_codes(codes)).square().mean() if len(codes) else codes.sum() * 0.0


def multi_level_similarity(image: Tensor, text: Tensor, image_labels: Tensor, text_labels: Tensor) -> Tensor:
    """Pairs are as similar as they have labels in common (3.3): mean over pairs of (sigmoid(<F_i, G_j>) - w_ij)^2.

    w_ij is the number of common labels over C. The thesis takes it of real-valued features and of codes H: two calls.

    Args:
        image: (N, D) F, or (N, K) H.
        text: (N', D) G, or (N', K) H.
        image_labels: (N, C) 0 or 1.
        text_labels: (N', C) 0 or 1.
    Returns:
        () in 0..1; 0, still differentiable, without pairs.
    Raises:
        ValueError: shapes disagree.
    Deviations: a mean over pairs where the thesis sums.
    """
    _check("multi_level_similarity", image, text, image_labels, text_labels)
    products = inner_products(image, text)
    weights = inner_products(image_labels, text_labels).to(products.dtype) / max(1, image_labels.shape[1])
    return (products.sigmoid() - weights).square().mean() if products.numel() else products.sum() * 0.0


def pair_likelihood(image: Tensor, text: Tensor, image_labels: Tensor, text_labels: Tensor) -> Tensor:
    """Negative log-likelihood of which pairs have a label in common (3.4, 3.5).

        theta_ij = 1/2 <F_i, G_j>,      L = mean over pairs of  log(1 + e^theta) - S theta

    Args:
        image: (N, D) F, or (N, K) H.
        text: (N', D) G, or (N', K) H.
        image_labels: (N, C) 0 or 1; S_ij is 1 where picture i and text j have one in common, else 0.
        text_labels: (N', C) 0 or 1.
    Returns:
        () at least 0; 0, still differentiable, without pairs.
    Raises:
        ValueError: shapes disagree.
    Reading: (3.5) prints the log-likelihood under a minimum; this is its negative.
    Deviations: a mean over pairs where the thesis sums.
    """
    _check("pair_likelihood", image, text, image_labels, text_labels)
    theta = inner_products(image, text) / 2
    similar = (inner_products(image_labels, text_labels) > 0).to(theta.dtype)
    return (functional.softplus(theta) - similar * theta).mean() if theta.numel() else theta.sum() * 0.0


def multi_label_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of every label (3.6), one modality's half: mean of -l log p - (1 - l) log(1 - p), p = sigmoid(logits).

    Args:
        logits: (N, C) of the label predictor that both modalities share.
        labels: (N, C) 0 or 1.
    Returns:
        () mean over rows and labels; 0, still differentiable, for N = 0.
    Raises:
        ValueError: shapes differ.
    Deviations: a mean over rows and labels where the thesis sums.
    """
    if logits.ndim != 2 or logits.shape != labels.shape:
        raise ValueError(f"multi_label_cross_entropy: got logits {tuple(logits.shape)} and labels {tuple(labels.shape)}; both (N, C).")
    logits = full_precision(logits)
    if logits.numel() == 0:
        return logits.sum() * 0.0
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def _check(loss: str, image: Tensor, text: Tensor, image_labels: Tensor, text_labels: Tensor) -> None:
    shapes = [tuple(each.shape) for each in (image, text, image_labels, text_labels)]
    if any(len(shape) != 2 for shape in shapes) or not (
        shapes[0][1] == shapes[1][1] and shapes[2][1] == shapes[3][1] and shapes[0][0] == shapes[2][0] and shapes[1][0] == shapes[3][0]
    ):
        raise ValueError(
            f"{loss}: got pictures {shapes[0]} with labels {shapes[2]} and texts {shapes[1]} with labels {shapes[3]}; "
            "it needs (N, D) with (N, C) and (N', D) with (N', C)."
        )
