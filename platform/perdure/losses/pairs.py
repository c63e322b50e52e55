"""Bi-directional triplet loss between images and their captions.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), Eq. (4.12); the same form in Wang, Herranz and van de
Weijer, "Continual learning in cross-modal retrieval", CVPRW 2021. B pairs, D embedding.
"""

from typing import Literal

import torch
from torch import Tensor

from perdure.losses.triplet import mean_of_violations
from perdure.losses.unit import full_precision, inner_products

__all__ = ["PairMining", "bidirectional_triplet"]

PairMining = Literal["hard", "all"]


def bidirectional_triplet(
    image: Tensor,
    text: Tensor,
    *,
    margin: float = 0.2,
    mining: PairMining = "all",
    same: Tensor | None = None,
    within: Tensor | None = None,
) -> Tensor:
    """Keep each picture nearer to its own caption than to other captions, and each caption to its own picture (4.12).

        L = mean of  max(0, margin - S_ii + S_ij)   +   mean of  max(0, margin - S_ii + S_ji),        S_ij = <x_i, y_j>,  j != i

    "hard" takes for each i the j with the largest term, "all" every term above 0 (the mean is over these only).

    Args:
        image: (B, D) x, rows of unit length.
        text: (B, D) y, rows of unit length; row i describes picture i.
        margin: in units of an inner product, 0 or more.
        mining: see above.
        same: (B,) int64, such as the row of the dataset; two pairs with equal numbers are never each other's negatives. Without it
            every other pair is a negative.
        within: (B,) int64, such as the task that a pair came with; only pairs with equal numbers are each other's negatives.
    Returns:
        () sum of both means; 0, still differentiable, when no pair has a negative.
    Raises:
        ValueError: shapes differ, a negative margin, an unknown mining.
    Deviations: means where the paper sums, so the scale does not follow B.
    """
    numbers = {name: each for name, each in (("same", same), ("within", within)) if each is not None}
    if image.ndim != 2 or image.shape != text.shape or any(each.shape != image.shape[:1] for each in numbers.values()):
        raise ValueError(
            f"bidirectional_triplet: got images {tuple(image.shape)}, texts {tuple(text.shape)}"
            + "".join(f" and {name} {tuple(each.shape)}" for name, each in numbers.items())
            + "; it needs (B, D) twice, and (B,)."
        )
    if margin < 0:
        raise ValueError(f"bidirectional_triplet: margin={margin}; it must be 0 or more.")
    if mining not in ("hard", "all"):
        raise ValueError(f"bidirectional_triplet: mining='{mining}'; known: hard, all.")
    similarity_BB = inner_products(image, text)
    same = torch.arange(len(image), device=image.device) if same is None else same
    negative_BB = same[:, None] != same
    if within is not None:
        negative_BB &= within[:, None] == within
    if not bool(negative_BB.any()):
        return (full_precision(image).sum() + full_precision(text).sum()) * 0.0
    own_B = similarity_BB.diagonal()
    to_captions_BB = margin - own_B[:, None] + similarity_BB
    to_pictures_BB = margin - own_B[:, None] + similarity_BB.T
    if mining == "all":
        return mean_of_violations(to_captions_BB, negative_BB) + mean_of_violations(to_pictures_BB, negative_BB)
    has_negative_B = negative_BB.any(dim=1)
    hardest = [terms.masked_fill(~negative_BB, -torch.inf).amax(dim=1)[has_negative_B] for terms in (to_captions_BB, to_pictures_BB)]
    return hardest[0].clamp_min(0).mean() + hardest[1].clamp_min(0).mean()
