"""Workers without processes, for tests that compare what two do with what one does."""

import threading
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["Together"]


class Together:
    """Two workers as two threads of this process; `test_gather.py` has the real processes."""

    num = 2

    def __init__(self, rank: int, barrier: threading.Barrier, table: list[list[Tensor]]) -> None:
        self.rank = rank
        self._barrier = barrier
        self._table = table

    def slice_of(self, size: int) -> slice:
        return slice(0, size // 2) if self.rank == 0 else slice(size // 2, size)

    def gather(self, rows: Tensor, size: int) -> Tensor:
        parts = self._exchanged([rows.detach().clone()])
        own = 2 * rows - rows.detach() if rows.requires_grad else rows  # the value of one, the gradient of two: see `Distributed`
        return torch.cat([own if rank == self.rank else part for rank, (part,) in enumerate(parts)])

    def average(self, tensors: Iterable[Tensor]) -> None:
        listed = list(tensors)
        parts = self._exchanged([each.detach().clone() for each in listed])
        for each, one, other in zip(listed, *parts, strict=True):
            each.detach().copy_((one + other) / 2)

    def meet(self) -> None:
        self._barrier.wait(60)

    def _exchanged(self, mine: list[Tensor]) -> list[list[Tensor]]:
        self._table[self.rank] = mine
        self._barrier.wait(60)
        parts = list(self._table)
        self._barrier.wait(60)
        return parts
