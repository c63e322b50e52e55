"""Unit rows and their inner products, in full precision also under autocast.

Inner products of unit rows lie in -1..1 and are then divided by small temperatures or compared within small margins; bfloat16
keeps about 1/256 of them, which is the size of the effect that distillation is about. So every similarity is computed in float32.
"""

import torch
from torch import Tensor

__all__ = ["full_precision", "inner_products", "unit_rows"]


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor as float32; float64 stays as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def unit_rows(embeddings: Tensor) -> Tensor:
    """Scale every row to length 1: z / max(||z||, 1e-6).

    A row of zeros stays zero, and the gradient there is finite.

    Args:
        embeddings: (B, D).
    Returns:
        (B, D) float32 (float64 for float64).
    """
    embeddings = full_precision(embeddings)
    return embeddings / torch.linalg.vector_norm(embeddings, dim=-1, keepdim=True).clamp_min(1e-6)


def inner_products(rows: Tensor, columns: Tensor) -> Tensor:
    """S_ij = <rows_i, columns_j>, never in reduced precision.

    Args:
        rows: (B, D).
        columns: (N, D).
    Returns:
        (B, N) float32 (float64 for float64).
    """
    with torch.autocast(rows.device.type, enabled=False):
        return full_precision(rows) @ full_precision(columns).T
