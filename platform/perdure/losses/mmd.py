"""Maximum mean discrepancy: the embeddings as a whole stay where the teacher's are, each single one may move.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 5, Eq. (5.5). B rows, D embedding, M bandwidths.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from perdure.losses.unit import full_precision

__all__ = ["BANDWIDTHS", "mmd"]

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def mmd(teacher: Tensor, student: Tensor, *, bandwidths: Sequence[float] = BANDWIDTHS, epsilon: float = 1e-6) -> Tensor:
    """Distance between the distributions of the teacher's and of the student's embeddings, by their means in a kernel space (5.5).

        MMD = (1/B) [ sum_ij k(r_i, r_j) - 2 sum_ij k(r_i, f_j) + sum_ij k(f_i, f_j) ]^(1/2)
        k(a, b) = sum_m exp( -||a - b||^2 / (2 s_m^2) ),        s_m = bandwidths[m] * median of ||r_i - r_j|| over i < j

    A student starts as its teacher, where the bracket is 0. It is quadratic around there, so its root is a cone: the pull has one
    strength whatever the distance, and no direction at the tip, where the root's own slope is infinite. Hence

        L = (MMD^2 + epsilon)^(1/2) - epsilon^(1/2)

    which is MMD^2 / (2 epsilon^(1/2)) far below epsilon^(1/2), with a gradient of 0 at the tip, and MMD - epsilon^(1/2) far above.

    Args:
        teacher: (B, D) r; no gradient flows into it.
        student: (B, D) f.
        bandwidths: (M,) above 0, in units of the teacher's median distance (of two middle ones the smaller; 1 where that is 0).
        epsilon: above 0, in units of MMD^2.
    Returns:
        () in 0..sqrt(2 M); 0, still differentiable, for B = 0.
    Raises:
        ValueError: shapes differ, no bandwidth or one that is not above 0, epsilon is not above 0.
    Deviations: the bandwidths, which the thesis does not give, and epsilon. The yardstick is the teacher's alone, a number through which
        no gradient flows: a student that is spread wider does not measure its own way with a longer one.
    """
    if teacher.ndim != 2 or teacher.shape != student.shape:
        raise ValueError(f"mmd: got teacher {tuple(teacher.shape)} and student {tuple(student.shape)}; it needs (B, D) twice.")
    if not bandwidths or min(bandwidths) <= 0 or epsilon <= 0:
        raise ValueError(f"mmd: bandwidths={tuple(bandwidths)}, epsilon={epsilon}; it needs at least one bandwidth, and all above 0.")
    student = full_precision(student)
    if len(student) == 0:
        return student.sum() * 0.0
    teacher = full_precision(teacher.detach())
    within_BB = _distances(teacher, teacher)
    scales = [factor * _median_off_diagonal(within_BB) for factor in bandwidths]
    cross_BB = _kernel(_distances(teacher, student), scales)
    # Cell by cell, so that nothing is left of rounding where teacher and student are the same.
    squared = (_kernel(within_BB, scales) - 2 * cross_BB + _kernel(_distances(student, student), scales)).mean()
    below_zero = (-squared).clamp_min(0).detach()  # by rounding, near the tip; taken off without taking the gradient with it
    return (squared + below_zero + epsilon).sqrt() - epsilon**0.5


def _distances(rows: Tensor, columns: Tensor) -> Tensor:
    """(B, N) Euclidean, by differences: by inner products a distance below 1e-4 would drown in rounding."""
    with torch.autocast(rows.device.type, enabled=False):
        return torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")


def _median_off_diagonal(distances: Tensor) -> Tensor:
    """() the median over i < j; 1 where there is no such pair, or it is 0."""
    first, second = torch.triu_indices(*distances.shape, offset=1, device=distances.device)
    if len(first) == 0:
        return distances.new_ones(())
    median = distances[first, second].median()
    return torch.where(median > 0, median, torch.ones_like(median))


def _kernel(distances: Tensor, scales: Sequence[Tensor]) -> Tensor:
    """(B, N) distances -> (B, N) the sum of a Gaussian kernel over its widths."""
    squared = distances.square()
    return torch.stack([(-squared / (2 * scale.square())).exp() for scale in scales]).sum(dim=0)
