"""How far a batch is from the statistics that the BatchNorm layers of a network remember of their data.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 7, Eq. (7.4); after Yin et al., "Dreaming to distill",
CVPR 2020. B rows, C_l channels of layer l.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from perdure.losses.unit import full_precision

__all__ = ["batch_norm_distance", "channel_statistics"]


def channel_statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the (biased) variance of each channel, over the batch and all places: E[x] and E[x^2] - E[x]^2.

    Sums over rows of channels are several times faster than `torch.var_mean` where the layout is channels last.

    Args:
        inputs: (B, C) or (B, C, ...), what a BatchNorm layer is given.
    Returns:
        (C,) and (C,) in full precision, with gradient.
    Raises:
        ValueError: there are no rows, or no channels to speak of.
    """
    if inputs.ndim < 2 or inputs.numel() == 0:
        raise ValueError(f"channel_statistics: got {tuple(inputs.shape)}; it needs (B, C, ...) with something in it.")
    rows_NC = full_precision(inputs).movedim(1, -1).flatten(0, -2)  # N = B times the places
    mean = rows_NC.sum(dim=0) / len(rows_NC)
    return mean, rows_NC.square().sum(dim=0) / len(rows_NC) - mean.square()


def batch_norm_distance(batch: Sequence[tuple[Tensor, Tensor]], remembered: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The squared distance between the statistics of a batch and the running statistics, summed over the layers (7.4).

        L = sum_l  ||mu_l - running_mean_l||^2 + ||var_l - running_var_l||^2

    The weight of (7.4), 0.01 in the thesis, is the caller's.

    Args:
        batch: for each layer (C_l,) mu_l and (C_l,) var_l, from `channel_statistics`.
        remembered: for each layer (C_l,) its running mean and (C_l,) its running variance; no gradient flows into them.
    Returns:
        () the sum.
    Raises:
        ValueError: there is no layer, or the shapes differ.
    """
    shapes = [[tuple(mean.shape), tuple(variance.shape)] for mean, variance in batch]
    expected = [[tuple(mean.shape), tuple(variance.shape)] for mean, variance in remembered]
    if not shapes or shapes != expected:
        raise ValueError(
            f"batch_norm_distance: got layers {shapes} and remembered {expected}; it needs one (C,) and (C,) or more, the same."
        )
    gaps = [
        full_precision(now) - full_precision(then.detach())
        for pair, kept in zip(batch, remembered, strict=True)
        for now, then in zip(pair, kept, strict=True)
    ]
    return torch.stack([gap.square().sum() for gap in gaps]).sum()
