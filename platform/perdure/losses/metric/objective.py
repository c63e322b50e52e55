"""A metric loss at work in one task: its parameters, its miner, its memory of earlier batches. B rows, D embedding, M rows of memory."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from perdure.losses.metric import METRIC_LOSSES, MINERS, ON_RAW_ROWS, PER_CLASS
from perdure.losses.metric.library import library
from perdure.losses.unit import full_precision, unit_rows

__all__ = ["MetricObjective"]


class MetricObjective(nn.Module):
    """A loss of `METRIC_LOSSES` for the classes of one task.

    Proxies and boundaries are made for these classes alone, and anew in each task: a class of an earlier task has no items in this one,
    so its proxy could only push, and it would push away from where the class was for the encoder before.

    A memory (cross-batch memory, Wang, Zhang, Huang and Scott, CVPR 2020) keeps the embeddings of the last M rows; a batch is compared
    with all of them, its own among them. It starts empty with each task, and in evaluation mode it is neither read nor written.

    Whatever is drawn, first parameters and random triplets, depends on the given seeds and not on the global generators, so all workers
    of a run have the same loss. What must survive a stop is in `state_dict`: parameters, the memory and where it is written next.

    Args:
        name: in `METRIC_LOSSES`.
        options: of that loss.
        class_ids: (n,) int64, the classes of the task.
        embedding_dim: D.
        seed: of the first parameters.
        miner: name and options of an entry in `MINERS`; None: the loss sees all pairs.
        memory: M; None: a batch is compared with itself.
    Raises:
        ConfigError: an unknown name or option.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        class_ids: Tensor,
        embedding_dim: int,
        seed: int,
        miner: tuple[str, Mapping[str, Any]] | None = None,
        memory: int | None = None,
    ) -> None:
        super().__init__()
        self._name = name
        self.class_ids: Tensor
        self.register_buffer("class_ids", class_ids.detach().cpu().unique(), persistent=False)  # sorted
        with _drawing(seed, torch.device("cpu")):
            given = (len(self.class_ids), embedding_dim) if name in PER_CLASS else ()
            self.loss = METRIC_LOSSES.build(name, options, *given)
        self.miner = None if miner is None else MINERS.build(*miner)
        self.queue = None if memory is None else library().losses.CrossBatchMemory(self.loss, embedding_dim, memory, miner=self.miner)

    def forward(self, embeddings: Tensor, labels: Tensor, seed: int = 0) -> Tensor:
        """The loss of a global batch.

        Args:
            embeddings: (B, D), before normalisation.
            labels: (B,) int64 class ids.
            seed: of what is drawn in this step.
        Returns:
            () the loss; 0, still differentiable, when there is nothing to compare.
        Raises:
            ValueError: a label that is no class of the task, where the loss has parameters for each; a batch larger than the memory.
        """
        if self._name in PER_CLASS:
            labels = self._places(labels)
        with torch.autocast(embeddings.device.type, enabled=False), _drawing(seed, embeddings.device):
            rows = full_precision(embeddings) if self._name in ON_RAW_ROWS else unit_rows(embeddings)
            if self.queue is None or not self.training:
                return self.loss(rows, labels, None if self.miner is None else self.miner(rows, labels))
            if len(rows) > self.queue.memory_size:
                raise ValueError(
                    f"metric loss '{self._name}': a batch has {len(rows)} rows, but the memory keeps {self.queue.memory_size}; "
                    "set ranking.metric.memory to a few times train.batch_size"
                )
            return self.queue(rows, labels)

    def get_extra_state(self) -> Tensor:
        """(2,) int64: the row of the memory that is written next, and whether all have been; the library keeps both to itself."""
        return torch.tensor([0, 0] if self.queue is None else [self.queue.queue_idx, int(self.queue.has_been_filled)])

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what `get_extra_state` gave."""
        if self.queue is not None:
            self.queue.queue_idx, self.queue.has_been_filled = int(state[0]), bool(state[1])

    def _places(self, labels: Tensor) -> Tensor:
        """(B,) class ids -> (B,) 0..n-1, their places among the classes of the task."""
        places = torch.searchsorted(self.class_ids, labels).clamp_max(len(self.class_ids) - 1)
        strange = labels[self.class_ids[places] != labels]
        if len(strange):
            raise ValueError(
                f"metric loss '{self._name}' has parameters for the classes {self.class_ids.tolist()} of the task, "
                f"but the batch has labels {strange.unique().tolist()}; give it the task's own rows only"
            )
        return places


@contextmanager
def _drawing(seed: int, device: torch.device) -> Generator[None]:
    """Random numbers of a seed; afterwards the global generators go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
