"""Correlation distillation: keep who is similar to whom, not where they are.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 6, Eq. (6.4) and (6.5). B rows, D embedding.
"""

from typing import Literal

import torch
from torch import Tensor

from perdure.losses.unit import full_precision, inner_products

__all__ = ["Diagonal", "cross_modal_gram_kl", "gram_kl"]

Diagonal = Literal["drop", "keep"]


def gram_kl(teacher: Tensor, student: Tensor, *, temperature: float = 0.5, diagonal: Diagonal = "drop") -> Tensor:
    """Kullback-Leibler divergence between the softmax rows of the teacher's and the student's Gram matrix (6.4, 6.5).

        G = F F^T,        L = (1/B) sum_i  KL( softmax(G_old[i] / tau)  ||  softmax(G_new[i] / tau) )

    For small changes this is 1 / (2 tau^2) times the variance of G_new[i] - G_old[i] under the teacher's softmax: a mean over rows
    of a mean over columns, so neither the value nor the gradient of the whole follows B.

    Args:
        teacher: (B, D) F_old, rows of unit length; no gradient flows into it. Its D may differ from the student's.
        student: (B, D) F_new, rows of unit length.
        temperature: tau > 0, in units of an inner product. Rows of cosines are almost flat at 1; at 0.1 only near neighbours count.
        diagonal: "drop" leaves out G[i, i]. It is 1 for every unit row, so it teaches nothing, yet at a small tau it takes most of
            the softmax (a share that shrinks with B) and the neighbours get the rest. "keep" is the equation as printed.
    Returns:
        () mean over the rows; 0, still differentiable, when B < 2.
    Raises:
        ValueError: the lengths differ, tau is not above 0, an unknown diagonal.
    Deviations: rows of unit length, a temperature and the choice for the diagonal; the thesis prints raw inner products at 1.
    """
    _check("gram_kl", temperature, teacher, student)
    if diagonal not in ("drop", "keep"):
        raise ValueError(f"gram_kl: diagonal='{diagonal}'; known: drop, keep.")
    if len(student) < 2:
        return full_precision(student).sum() * 0.0
    teacher_BB = inner_products(teacher.detach(), teacher.detach())
    student_BB = inner_products(student, student)
    if diagonal == "drop":
        teacher_BB, student_BB = _without_diagonal(teacher_BB), _without_diagonal(student_BB)
    return _row_kl(teacher_BB, student_BB, temperature)


def cross_modal_gram_kl(
    teacher_image: Tensor,
    teacher_text: Tensor,
    student_image: Tensor,
    student_text: Tensor,
    *,
    temperature: float = 0.5,
    diagonal: Diagonal = "drop",
) -> Tensor:
    """The mean of the divergence (6.5) over four Gram matrices: image-image, text-text, image-text and text-image.

    The diagonal of the last two holds the similarity of a picture to its own caption, which is knowledge, so it always stays.

    Args:
        teacher_image: (N, D) rows of unit length; no gradient flows into it. N >= B: pictures without a caption come last.
        teacher_text: (B, D) the same; row i describes picture i.
        student_image: (N, D) rows of unit length.
        student_text: (B, D) rows of unit length.
        temperature: tau > 0, in units of an inner product.
        diagonal: of image-image and text-text, see `gram_kl`.
    Returns:
        () mean over the rows and the four matrices; without the last two when B < 2.
    Raises:
        ValueError: the lengths differ, tau is not above 0, an unknown diagonal.
    """
    _check("cross_modal_gram_kl", temperature, teacher_image, student_image)
    _check("cross_modal_gram_kl", temperature, teacher_text, student_text)
    if len(student_text) > len(student_image):
        raise ValueError(f"cross_modal_gram_kl: got {len(student_image)} pictures and {len(student_text)} captions; no more of these.")
    within = [
        gram_kl(teacher, student, temperature=temperature, diagonal=diagonal)
        for teacher, student in ((teacher_image, student_image), (teacher_text, student_text))
    ]
    if len(student_text) < 2:
        return within[0] + within[1]
    teacher_BB = inner_products(teacher_image.detach(), teacher_text.detach())
    student_BB = inner_products(student_image, student_text)
    across = [_row_kl(teacher_BB, student_BB, temperature), _row_kl(teacher_BB.T, student_BB.T, temperature)]
    return (within[0] + within[1] + across[0] + across[1]) / 4


def _row_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """(1/B) sum_i KL(softmax(teacher_i / tau) || softmax(student_i / tau)) of (B, N) similarities, by log-probabilities on both sides."""
    log_p = (teacher / temperature).log_softmax(dim=1)
    log_q = (student / temperature).log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


def _without_diagonal(square: Tensor) -> Tensor:
    """(B, B) -> (B, B - 1). Cutting it out, where -inf would do for a softmax, avoids 0 * (inf - inf) in the divergence."""
    size = len(square)
    off = ~torch.eye(size, dtype=torch.bool, device=square.device)
    return square[off].view(size, size - 1)


def _check(loss: str, temperature: float, *embeddings: Tensor) -> None:
    shapes = [tuple(one.shape) for one in embeddings]
    if any(len(shape) != 2 or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"{loss}: got embeddings of shapes {', '.join(map(str, shapes))}; it needs (B, D) with one B.")
    if temperature <= 0:
        raise ValueError(f"{loss}: temperature={temperature}; it must be above 0.")
