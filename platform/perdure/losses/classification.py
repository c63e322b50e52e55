"""Cross-entropy over some classes of a growing classifier, and over another classifier's softened answer.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 5, Eq. (5.1) and (5.3); the second is Learning without
Forgetting (Li and Hoiem, ECCV 2016). B rows, C classes of the classifier, n classes that take part.
"""

from torch import Tensor

from perdure.losses.unit import full_precision

__all__ = ["cross_entropy_over", "softened_cross_entropy"]


def cross_entropy_over(logits: Tensor, labels: Tensor, class_ids: Tensor) -> Tensor:
    """Cross-entropy of the softmax over the given classes only, usually those of the task being learned (5.1).

        L = -(1/B) sum_i  log( exp(l_i[y_i]) / sum_{c in class_ids} exp(l_i[c]) )

    The logits of all other classes neither change the value nor get a gradient, so old classifier rows stay where they are.

    Args:
        logits: (B, C) l.
        labels: (B,) int64 y, each one of class_ids.
        class_ids: (n,) int64, no repeats, each below C.
    Returns:
        () mean over the rows; 0, still differentiable, for B = 0.
    Raises:
        ValueError: shapes differ, a label is not among class_ids, a class id is not below C.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or class_ids.ndim != 1:
        raise ValueError(
            f"cross_entropy_over: got logits {tuple(logits.shape)}, labels {tuple(labels.shape)}, class_ids {tuple(class_ids.shape)}; "
            "it needs (B, C), (B,) and (n,)."
        )
    logits = full_precision(logits)
    if len(labels) == 0:
        return logits.sum() * 0.0
    if len(class_ids) == 0 or int(class_ids.max()) >= logits.shape[1] or int(class_ids.min()) < 0:
        raise ValueError(
            f"cross_entropy_over: class_ids {_some(class_ids)} for a classifier of {logits.shape[1]} classes; call grow() before."
        )
    is_own_Bn = labels[:, None] == class_ids
    if not bool(is_own_Bn.any(dim=1).all()):
        strangers = labels[~is_own_Bn.any(dim=1)].unique()
        raise ValueError(f"cross_entropy_over: labels {_some(strangers)} are not among the classes that are learned, {_some(class_ids)}.")
    log_prob_Bn = logits[:, class_ids].log_softmax(dim=1)
    return -log_prob_Bn[is_own_Bn].mean()


def softened_cross_entropy(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Cross-entropy of the student's softened softmax against the teacher's (5.3).

        L = -(1/B) sum_i sum_c  p_ic log q_ic,        p = softmax(teacher / T), q = softmax(student / T)

    At teacher = student this is the entropy of p, not 0, and its gradient is 0.

    Args:
        teacher_logits: (B, n), over the old classes; no gradient flows into them.
        student_logits: (B, n), over the same classes.
        temperature: T > 0, in units of a logit.
    Returns:
        () mean over the rows; 0, still differentiable, for B = 0 or n = 0.
    Raises:
        ValueError: shapes differ, or T is not above 0.
    """
    if teacher_logits.ndim != 2 or teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"softened_cross_entropy: got teacher {tuple(teacher_logits.shape)} and student {tuple(student_logits.shape)}; "
            "it needs (B, n) twice."
        )
    if temperature <= 0:
        raise ValueError(f"softened_cross_entropy: temperature={temperature}; it must be above 0.")
    student_logits = full_precision(student_logits)
    if student_logits.numel() == 0:
        return student_logits.sum() * 0.0
    p_Bn = (full_precision(teacher_logits.detach()) / temperature).softmax(dim=1)
    log_q_Bn = (student_logits / temperature).log_softmax(dim=1)
    return -(p_Bn * log_q_Bn).sum(dim=1).mean()


def _some(ids: Tensor) -> str:
    """The first few of many numbers."""
    shown = [str(int(number)) for number in ids[:8]]
    return "[" + ", ".join([*shown, "..."] if len(ids) > 8 else shown) + "]"
