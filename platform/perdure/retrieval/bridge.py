"""A bridge between two encoders: an orthogonal map that brings a query of the newer one to where the older one would have put it.

    q_s = B_s+1 B_s+2 .. B_T q_T,        B_h = argmin over B^T B = 1 of  sum over items i of task h  || B f_h(i) - f_h-1(i) ||^2

f_h(i): the unit embedding of a training item of task h by the encoder after task h. With O, N the rows of the older and the newer encoder
and O^T N = U S V^T, the minimum is B = U V^T (Schonemann, Psychometrika 1966). Items of the new task are what both encoders can see while
nothing of an earlier one is read. An orthogonal map keeps every inner product, so the newer encoder's own ranking is untouched.

One map for pictures and one for captions, as for `QueryDrift`, in whose place it can stand. Ours: all of it but the equation. n items, Q
queries, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from perdure.errors import BadQuery
from perdure.records import QueryModality
from perdure.retrieval.hop import Hop

__all__ = ["QUERY_BRIDGE", "QueryBridge", "orthogonal_map"]

QUERY_BRIDGE = "query_bridge.safetensors"  # beside the weights of an encoder version, of the hop from its parent


@dataclass(frozen=True, eq=False)
class QueryBridge(Hop):
    """B of one hop, or of several. Arrays are (D, D)."""

    called: ClassVar[str] = "query bridge"

    @classmethod
    def over(cls, hops: Sequence["QueryBridge"]) -> Self:
        """The product over hops, one at least, newest first; without text where one of them is."""
        image, text = hops[0].image, hops[0].text
        for hop in hops[1:]:
            image = hop.image @ image
            text = None if text is None or hop.text is None else hop.text @ text
        return cls(image, text)

    def taken_from(self, queries: NDArray[np.float32], modality: QueryModality) -> NDArray[np.float32]:
        """(Q, D) unit rows of the newer encoder -> (Q, D) unit rows where the older one would have put them.

        Raises:
            BadQuery: texts, but this bridge is of pictures alone.
        """
        turn = self.image if modality == "image" else self.text
        if turn is None:
            raise BadQuery("no bridge was fitted for texts, because the encoder had no text tower; search by image or by item id")
        return (queries @ turn.T).astype(np.float32)


def orthogonal_map(before: NDArray[np.float32], after: NDArray[np.float32]) -> NDArray[np.float32]:
    """(D, D) B from n items: (n, D) unit rows of the old encoder and of the new one; where nothing decides it, nothing is turned.

    Of all minima the one nearest to no turn is taken: O^T N + eps 1 in place of O^T N, eps small beside what was measured.
    """
    dim = before.shape[1]
    product = before.astype(np.float64).T @ after.astype(np.float64) + 1e-8 * max(len(before), 1) * np.eye(dim)
    left, _, right = np.linalg.svd(product)
    return (left @ right).astype(np.float32)
