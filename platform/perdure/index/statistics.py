"""The first two moments of a segment's vectors: what a score means in this segment, for each query.

For a query q and the N vectors x of a segment, the scores q.x over the whole segment have

    mean(q) = q . mu                 mu    = 1/N sum x
    std(q)  = sqrt(q^T Sigma q)      Sigma = 1/N sum (x - mu)(x - mu)^T

exactly, so standardising needs no scan of the gallery: D^2 numbers a segment, D^2 operations a query.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from perdure.errors import Corrupt

__all__ = ["STD_FLOOR", "SegmentStatistics"]

STD_FLOOR = 1e-3  # of an inner product of unit vectors; below it a segment cannot tell its items apart (one item, a collapsed encoder)
_CHUNK = 65536


@dataclass(frozen=True, eq=False)
class SegmentStatistics:
    """mu (D,) and Sigma (D, D), float64, of the N vectors of a segment."""

    count: int
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, vectors: NDArray[np.float32]) -> Self:
        """The moments of (N, D) vectors, N >= 1."""
        mean = vectors.mean(axis=0, dtype=np.float64)
        covariance = np.zeros((vectors.shape[1], vectors.shape[1]))
        for start in range(0, len(vectors), _CHUNK):
            centred = vectors[start : start + _CHUNK].astype(np.float64) - mean
            covariance += centred.T @ centred
        return cls(len(vectors), mean, covariance / len(vectors))

    @classmethod
    def pooled(cls, parts: "Sequence[SegmentStatistics]") -> "SegmentStatistics":
        """The moments of all vectors of several segments, one at least, exactly.

        mu = sum_i n_i mu_i / N        Sigma = sum_i n_i (Sigma_i + mu_i mu_i^T) / N - mu mu^T
        """
        if len(parts) == 1:
            return parts[0]
        count = sum(part.count for part in parts)
        mean = np.sum([part.count * part.mean for part in parts], axis=0) / count
        second = np.sum([part.count * (part.covariance + np.outer(part.mean, part.mean)) for part in parts], axis=0) / count
        return SegmentStatistics(count, mean, second - np.outer(mean, mean))

    def mean_std(self, queries: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(Q,) mean and (Q,) standard deviation of each query's scores over the whole segment; std at least STD_FLOOR."""
        wide = queries.astype(np.float64)
        variance = np.einsum("qd,qd->q", wide @ self.covariance, wide)
        return wide @ self.mean, np.maximum(np.sqrt(np.maximum(variance, 0.0)), STD_FLOOR)

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file({"count": np.array([self.count]), "mean": self.mean, "covariance": self.covariance}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; Corrupt when it cannot be read."""
        try:
            tensors = load_file(path)
            return cls(int(tensors["count"][0]), tensors["mean"], tensors["covariance"])
        except Exception as error:  # safetensors raises its own SafetensorError, KeyError or OSError for a damaged file
            raise Corrupt(f"{path}: not the statistics of a segment ({error})") from None
