"""Workers: one global batch over W processes, with the mathematics of one process.

The global batch of B rows is drawn once and cut into W slices. Each worker embeds its slice; `gather` puts the embeddings of all
workers together on every worker; the loss is then computed there on all B rows, exactly as one worker would. Gradients:

    every worker has the same loss L(e_1 .. e_B), so it knows dL/de of all rows, but can backpropagate only its own slice;
    gather's backward hands it W dL/de[own slice], and the mean over the workers of the parameter gradients is then
    (1/W) sum_w W dL/de[w] de[w]/dtheta = dL/dtheta.

The same mean is right for parameters applied after the gather (a classifier), whose full gradient every worker already has. So no
term of any strategy needs to know that there are workers, and no wrapper module is needed.

Letters: B rows of the global batch, W workers, D embedding.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["ALONE", "Alone", "Distributed", "Workers"]


class Workers(Protocol):
    """The processes that share a training step."""

    rank: int
    num: int

    def slice_of(self, size: int) -> slice:
        """The rows of a global batch of `size` that this worker embeds."""
        ...

    def gather(self, rows: Tensor, size: int) -> Tensor:
        """(b, ...) this worker's slice -> (size, ...) the global batch, with gradient to the own slice."""
        ...

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace float tensors, in place, by their means over the workers; all workers pass the same list."""
        ...

    def meet(self) -> None:
        """Wait for all workers, however long one is behind: after work between two steps, which no timeout of a step is made for."""
        ...


class Alone:
    """One process: the global batch is the local one."""

    rank = 0
    num = 1

    def slice_of(self, size: int) -> slice:
        """All rows."""
        return slice(0, size)

    def gather(self, rows: Tensor, size: int) -> Tensor:
        """The rows themselves."""
        assert len(rows) == size
        return rows

    def average(self, tensors: Iterable[Tensor]) -> None:
        """A mean over one is the thing itself."""

    def meet(self) -> None:
        """Nobody else is awaited."""


ALONE = Alone()


class Distributed:
    """The processes of torch.distributed's default group (gloo on CPU, nccl on GPU).

    Args:
        meet: a barrier without the group's timeout.
    """

    def __init__(self, meet: Callable[[], object] = dist.barrier) -> None:
        self._meet = meet
        self.rank = dist.get_rank()
        self.num = dist.get_world_size()

    def meet(self) -> None:
        """See `Workers`."""
        self._meet()

    def slice_of(self, size: int) -> slice:
        """Contiguous slices whose lengths differ by at most one."""
        edges = _edges(size, self.num)
        return slice(edges[self.rank], edges[self.rank + 1])

    def gather(self, rows: Tensor, size: int) -> Tensor:
        """All slices in order; integers travel without gradient."""
        edges = _edges(size, self.num)
        return _Gather.apply(rows.contiguous(), edges, self.rank)  # pyright: ignore[reportReturnType]

    def average(self, tensors: Iterable[Tensor]) -> None:
        """One all-reduce of everything, flattened."""
        parts = [tensor for tensor in tensors if tensor.numel()]
        if not parts:
            return
        flat = torch.cat([part.detach().reshape(-1).float() for part in parts])
        dist.all_reduce(flat)
        flat /= self.num
        for part, mean in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.detach().copy_(mean.view_as(part))


def _edges(size: int, num: int) -> list[int]:
    return [int(edge) for edge in np.linspace(0, size, num + 1).round()]


class _Gather(torch.autograd.Function):
    """All-gather of slices of unequal length: padded to the longest, sent, cut again."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, edges: list[int], rank: int) -> Tensor:
        lengths = [end - start for start, end in pairwise(edges)]
        assert len(rows) == lengths[rank], f"worker {rank} embedded {len(rows)} rows of its slice of {lengths[rank]}"
        ctx.edges, ctx.rank = edges, rank
        padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
        padded[: len(rows)] = rows
        received = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(received, padded)
        return torch.cat([part[:length] for part, length in zip(received, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        own = gradients[0][ctx.edges[ctx.rank] : ctx.edges[ctx.rank + 1]]
        return own * (len(ctx.edges) - 1), None, None
