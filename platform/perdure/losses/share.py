"""How strongly one loss pulls on the embeddings beside the others, and a bound on it.

Ours, not the thesis's: a weight says nothing about what a loss does until one knows how large its gradient is beside the gradients
that it is added to, and that differs between streams by more than ten times (docs/decisions/0010-share-of-the-pull.md).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from perdure.losses.unit import full_precision

__all__ = ["share_factor"]


def share_factor(term: Tensor, others: Tensor, embeddings: Sequence[Tensor], *, share: float) -> Tensor:
    """By what a loss is to be multiplied so that its gradient on the embeddings is at most a share of the gradient of the others.

        min(1, share * ||d others / dZ|| / ||d L / dZ||)

    The factor is a number, no gradient flows through it. Its value follows every step; with Z the whole batch, gathered, it does not
    depend on the number of workers. What it costs is a second pass backward through the losses, none through the encoder.

    Args:
        term: () L, a function of the embeddings.
        others: () the sum of the losses that it is added to.
        embeddings: Z, the tensors of shape (B, D) (pictures; captions) that both were computed from.
        share: at least 0; 0.25: a quarter of the pull of the others.
    Returns:
        () in 0..1. 1 where nothing is differentiated (no graph), or where L pulls on nothing.
    Raises:
        ValueError: share is negative.
    """
    if share < 0:
        raise ValueError(f"share_factor: share={share}; 0 or more.")
    leaves = [each for each in embeddings if each.requires_grad]
    if not leaves or not term.requires_grad or not torch.is_grad_enabled():
        return torch.ones_like(others)
    pull, allowed = _norm_of_gradient(term, leaves), share * _norm_of_gradient(others, leaves)
    return torch.where(pull > allowed, allowed / pull, torch.ones_like(pull))


def _norm_of_gradient(loss: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """() the Euclidean norm of d loss / d embeddings, over all of them together; 0 where it does not depend on them."""
    if not loss.requires_grad:
        return loss.new_zeros(())
    gradients = torch.autograd.grad(loss, embeddings, retain_graph=True, materialize_grads=True)
    return torch.stack([full_precision(gradient).square().sum() for gradient in gradients]).sum().sqrt()
