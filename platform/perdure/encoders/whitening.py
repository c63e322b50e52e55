"""PCA with whitening: a head that is fitted to an encoder's embeddings after it was trained, and belongs to that encoder version.

Letters: B rows, n rows to fit on, D embedding, d embedding after the head.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Whitening", "WhiteningOptions", "fit_whitening"]

_FLOOR = 1e-12  # of a variance of unit rows: what float32 cannot tell from none


class WhiteningOptions(BaseModel):
    """How the head is fitted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: Annotated[int, Field(ge=1)] | None = Field(default=None, description="d, principal components that are kept; null = all D")
    eps: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="added to each variance, as a share of their mean; the larger, the less is whitened",
    )


class Whitening(nn.Module):
    """z' = W (z - mu), then unit length.

    Jegou, Chum, "Negative evidences and co-occurences in image retrieval: the benefit of PCA and whitening", ECCV 2012, section 3. No
    loss sees it and it has no parameters: mu and W are buffers, which are saved with the weights.

    Args:
        mean: (D,) mu.
        projection: (d, D) W.
    """

    mean: Tensor
    projection: Tensor

    def __init__(self, mean: Tensor, projection: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)

    @property
    def dim(self) -> int:
        """What is left of D."""
        return self.projection.shape[0]

    def project(self, rows: Tensor) -> Tensor:
        """(B, D) unit rows -> (B, d) float32 of W (z - mu), not yet of unit length."""
        with torch.autocast(rows.device.type, enabled=False):
            return (rows.float() - self.mean) @ self.projection.T

    def forward(self, rows: Tensor) -> Tensor:
        """(B, D) unit rows -> (B, d) float32 unit rows; a row that is mu itself has no direction and becomes zeros."""
        return functional.normalize(self.project(rows), dim=1)


def fit_whitening(parts: Sequence[Tensor], *, dim: int | None, eps: float) -> Whitening:
    """The whitening of a set of embeddings.

        W = diag(lambda + eps mean(lambda))^(-1/2) U^T          (U, lambda): the eigenvectors of the covariance, the largest d of them

    With eps = 0 the projected rows have the identity as their covariance. A task has few classes, so that a few directions hold nearly
    all of the variance, and the others hold noise beside what later classes will need; eps says how far those are blown up.

    Deviations: eps (a share, so that it does not depend on how many directions there are), where the paper has none. The same rows give
    the same W: each eigenvector has the sign that makes its largest entry positive.

    Args:
        parts: (n, D) unit rows of pictures and, where there is text, another (n', D) of captions. Each part counts the same, however
            many rows it has: one space, one transform.
        dim: d, at most D; None = D.
        eps: see above; 0 or more.
    Returns:
        the head, on the CPU, in float32.
    Raises:
        ValueError: no rows, parts of different D, or more dimensions than there are.
    """
    widths = {part.shape[1] if part.ndim == 2 and len(part) else 0 for part in parts}
    if len(widths) != 1 or 0 in widths or (dim is not None and not 1 <= dim <= max(widths)):
        found = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(f"fit_whitening: dim={dim} of rows {found or 'none'}; it needs parts (n >= 1, D) of one D, and dim in 1..D.")
    rows = [part.detach().cpu().double() for part in parts]
    mu = torch.stack([part.mean(dim=0) for part in rows]).mean(dim=0)
    covariance = torch.stack([(part - mu).T @ (part - mu) / len(part) for part in rows]).mean(dim=0)
    variances, directions = torch.linalg.eigh(covariance)  # ascending; (D,) and (D, D), a column each
    variances, directions = variances.flip(0).clamp_min(0), directions.flip(1)
    signs = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)).sign()
    scale = (variances + eps * variances.mean() + _FLOOR).rsqrt()
    projection = (directions * signs * scale).T[:dim]
    return Whitening(mu.float(), projection.float().contiguous())
