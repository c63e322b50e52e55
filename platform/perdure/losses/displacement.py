"""How far embeddings have moved from where a teacher puts them.

The L1 and L2 baselines of Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 5 to 7; called feature or
embedding distillation elsewhere. B rows, D embedding.
"""

from torch import Tensor

from perdure.losses.unit import full_precision

__all__ = ["l1_distance", "l2_distance"]


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
    return _moved("l2_distance", teacher, student).square().sum() / max(len(student), 1)


def l1_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Sum of the absolute differences between the teacher's and the student's embedding of the same item, a mean over items.

        L = (1/B) sum_i sum_d |r_id - f_id|

    For a displacement of length s it is between s (along one axis) and s sqrt(D) (along all alike), so on unit rows from 0 to
    2 sqrt(D). Its pull on an embedding has the same strength however near the teacher is, and none where they are equal.

    Args:
        teacher: (B, D) r; no gradient flows into it.
        student: (B, D) f.
    Returns:
        () mean over the rows; 0, still differentiable, for B = 0.
    Raises:
        ValueError: shapes differ.
    """
    return _moved("l1_distance", teacher, student).abs().sum() / max(len(student), 1)


def _moved(loss: str, teacher: Tensor, student: Tensor) -> Tensor:
    """(B, D) from where the teacher puts the items to where the student does."""
    if teacher.ndim != 2 or teacher.shape != student.shape:
        raise ValueError(f"{loss}: got teacher {tuple(teacher.shape)} and student {tuple(student.shape)}; it needs (B, D) twice.")
    return full_precision(student) - full_precision(teacher.detach())
