"""Cross-modal projection: a picture as far as its caption goes, and the other way round; similarities and classes by it.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 4, Eq. (4.1) to (4.3) and (4.6) to (4.11), after Zhang and
Lu, "Deep Cross-Modal Projection Learning for Image-Text Matching", ECCV 2018. N pairs, D embedding, C classes; row j of the texts
describes picture j. Embeddings come before normalisation: how long one is, is how sure it is of its direction.
"""

from torch import Tensor

from perdure.losses.unit import full_precision, inner_products, unit_rows

__all__ = ["projected", "projected_logits", "projection_kl", "symmetric_posterior_kl"]

_EPSILON = 1e-8  # "a small constant to avoid division by zero"; the thesis gives no value


def projected(embeddings: Tensor, onto: Tensor) -> Tensor:
    """z_j->k = <z_j, zbar_k> zbar_k of each row and its partner (4.1): the part of z_j along z_k.

    Args:
        embeddings: (N, D) z.
        onto: (N, D) z_k, whose directions zbar are taken.
    Returns:
        (N, D) of length |<z_j, zbar_k>|.
    Raises:
        ValueError: the shapes differ.
    """
    _check("projected", embeddings, onto)
    directions = unit_rows(onto)
    return (full_precision(embeddings) * directions).sum(dim=1, keepdim=True) * directions


def projection_kl(image: Tensor, text: Tensor, labels: Tensor, *, epsilon: float = _EPSILON) -> Tensor:
    """Kullback-Leibler divergence of projected similarities from those of the labels, in both directions (4.6 to 4.9).

        A_i->t = Z_i normalize(Z_t)^T,   A_t->i = Z_t normalize(Z_i)^T,   P = softmax of the rows of A,   Q = softmax of the rows of Y Y^T
        L_kl = (1/N) sum_jk P_i->t log(P_i->t / (Q + eps)) + (1/N) sum_jk P_t->i log(P_t->i / (Q + eps))

    Every pair of the batch takes part, the positive and the negative ones.

    Args:
        image: (N, D) Z_i.
        text: (N, D) Z_t.
        labels: (N,) int64, one class each, or (N, C) 0 or 1, several; Y Y^T counts the common ones.
        epsilon: eps > 0.
    Returns:
        () sum of both directions, each a mean over rows; 0, still differentiable, for N < 2.
    Raises:
        ValueError: shapes differ, epsilon is not above 0.
    Reading: (4.6) to (4.8) do not say what the sum below runs over; rows, as in the projection learning that (4.9) is taken from.
    """
    _check("projection_kl", image, text)
    if labels.ndim not in (1, 2) or len(labels) != len(image):
        raise ValueError(f"projection_kl: got labels {tuple(labels.shape)} for {len(image)} pairs; it needs (N,) or (N, C).")
    if epsilon <= 0:
        raise ValueError(f"projection_kl: epsilon={epsilon}; it must be above 0.")
    if len(image) < 2:
        return (full_precision(image).sum() + full_precision(text).sum()) * 0.0
    many = full_precision(labels) if labels.ndim == 2 else None
    common_NN = (labels[:, None] == labels).float() if many is None else many @ many.T
    log_q = (common_NN.to(full_precision(image).dtype).softmax(dim=1) + epsilon).log()
    total = full_precision(image).new_zeros(())
    for similarity in (inner_products(image, unit_rows(text)), inner_products(text, unit_rows(image))):
        log_p = similarity.log_softmax(dim=1)
        total = total + (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()
    return total


def projected_logits(image: Tensor, text: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """W^T z_i->t and W^T z_t->i with columns W of unit length: what the cross-entropies of (4.10) and (4.11) are taken of.

    Args:
        image: (N, D) Z_i.
        text: (N, D) Z_t.
        weight: (C, D) W, one row per class, of any length.
    Returns:
        twice (N, C).
    Raises:
        ValueError: shapes differ.
    """
    _check("projected_logits", image, text)
    if weight.ndim != 2 or weight.shape[1] != image.shape[1]:
        raise ValueError(f"projected_logits: got weight {tuple(weight.shape)} for embeddings {tuple(image.shape)}; it needs (C, D).")
    columns = unit_rows(weight)
    return inner_products(projected(image, text), columns), inner_products(projected(text, image), columns)


def symmetric_posterior_kl(image_logits: Tensor, text_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """How far apart the class posteriors of the two directions are at a temperature, times tau squared (4.11).

        p = softmax(W^T z_i->t / tau),  q = softmax(W^T z_t->i / tau),      L_di = (tau^2 / N) sum_j KL(p_j || q_j) + KL(q_j || p_j)

    tau^2 keeps the size of the gradient where it is as tau grows.

    Args:
        image_logits: (N, C) of z_i->t.
        text_logits: (N, C) of z_t->i.
        temperature: tau > 0; the thesis's best is 4 (Table 4.5).
    Returns:
        () mean over the rows; 0, still differentiable, for N = 0.
    Raises:
        ValueError: shapes differ, tau is not above 0.
    Reading: as printed each term divides a distribution by itself and is 0; the two directions are compared with each other.
    Deviations: logarithms of softmax on both sides in place of a small constant below.
    """
    _check("symmetric_posterior_kl", image_logits, text_logits)
    if temperature <= 0:
        raise ValueError(f"symmetric_posterior_kl: temperature={temperature}; it must be above 0.")
    if len(image_logits) == 0:
        return (full_precision(image_logits).sum() + full_precision(text_logits).sum()) * 0.0
    log_p, log_q = ((full_precision(each) / temperature).log_softmax(dim=1) for each in (image_logits, text_logits))
    return temperature**2 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=1).mean()


def _check(loss: str, image: Tensor, text: Tensor) -> None:
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"{loss}: got {tuple(image.shape)} and {tuple(text.shape)}; it needs two of one shape, (N, D).")
