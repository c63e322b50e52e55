"""How far embeddings have moved from where a teacher puts them.

The L2 baseline of Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 5 and 6; called feature or embedding
distillation elsewhere. B rows, D embedding.
"""

from torch import Tensor

from perdure.losses.unit import full_precision

__all__ = ["l2_distance"]


def l2_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Squared distance between the teacher's and the student's embedding of the same item, a mean over items.

        L = (1/B) sum_i ||r_i - f_i||^2

    On unit rows this is 2 - 2 cos, from 0 to 4 whatever D is; it holds coordinates, not only neighbourhoods, so new queries can
    still be compared with old gallery vectors.

    Args:
        teacher: (B, D) r; no gradient flows into it.
        student: (B, D) f.
    Returns:
        () mean over the rows; 0, still differentiable, for B = 0.
    Raises:
        ValueError: shapes differ.
    """
    if teacher.ndim != 2 or teacher.shape != student.shape:
        raise ValueError(f"l2_distance: got teacher {tuple(teacher.shape)} and student {tuple(student.shape)}; it needs (B, D) twice.")
    moved = full_precision(student) - full_precision(teacher.detach())
    return moved.square().sum() / max(len(student), 1)
