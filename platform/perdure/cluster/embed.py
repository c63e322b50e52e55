"""Many items through an encoder on the workers of a cluster: an `Embed` (`retrieval.embedding`) by Ray actors.

Each worker holds the encoder. Batches go out in their order, two for each worker at a time, and come back in that order, so memory is
bounded by the workers, not by the gallery. A worker that dies is replaced and its batches are computed again: nothing is lost, and nothing
changes, because a batch has the same vectors wherever it is computed. With a folder to keep parts in, every batch that is done is a file
named by a hash of the encoder and of the batch: who begins again, after whatever happened, computes what is left.
"""

import hashlib
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from perdure.cluster.room import wait_for_room
from perdure.cluster.train import ray_cluster
from perdure.config import RunConfig, WorkersConfig
from perdure.encoders.encoder import Encoder
from perdure.errors import PerdureError, Unavailable
from perdure.progress import Progress
from perdure.retrieval.embedding import Batch, Embed, embed_batch, embed_here

__all__ = ["SMALL", "RayEmbedder", "embedder"]

SMALL = 5_000  # items: fewer are embedded in the driver's process before workers have started
_AHEAD = 2  # batches that a worker has: one in work, one at hand


@contextmanager
def embedder(config: RunConfig, items: int, progress: Progress, *, keep: Path | None = None) -> Generator[Embed]:
    """Where so many items are embedded: on workers where the config asks for two or more and there are many items, else in this process.

    Args:
        config: its `workers`.
        items: how many there are at least.
        progress: see `RayEmbedder`.
        keep: see `RayEmbedder`; the parts are removed when the block ends well.
    """
    if config.workers.most < 2 or items < SMALL:
        yield embed_here
        return
    with ray_cluster(config), RayEmbedder(config.workers, progress, keep=keep) as made:
        progress.say(f"embedding on {config.workers.most} workers")
        yield made
        made.forget()


class RayEmbedder:
    """Call it as an `Embed`, inside a block; its workers stay while it is called with the same encoder, and go at the end of the block.

    Args:
        workers: how many, and what each may take. As many as there is room for begin; elastic ones join while it goes on.
        progress: of waiting for room.
        keep: folder for parts; None: a call that is interrupted begins anew.
    """

    def __init__(self, workers: WorkersConfig, progress: Progress, *, keep: Path | None = None) -> None:
        self._workers = workers
        self._progress = progress
        self._keep = keep
        self._encoder: Encoder | None = None
        self._crew: _Crew | None = None
        self._stamp = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._crew is not None:
            self._crew.dismiss()
        self._crew = self._encoder = None

    def __call__(self, encoder: Encoder, batches: Iterable[Batch]) -> Iterator[NDArray[np.float32]]:
        """The vectors of each batch, in order.

        Raises:
            Unavailable: no room for the workers, or more of them died than `workers.max_failures`.
            BadQuery: see `embed_batch`.
        """
        crew = self._crew_of(encoder)
        waiting: deque[_Piece] = deque()
        try:
            for batch in batches:
                piece = _Piece(batch, self._part(batch))
                waiting.append(piece)
                if piece.vectors is None:
                    crew.give(piece)
                while len(waiting) > _AHEAD * self._workers.most or (waiting and waiting[0].vectors is not None):
                    yield crew.finished(waiting.popleft())
            while waiting:
                yield crew.finished(waiting.popleft())
        finally:
            if waiting:  # nobody asks for the rest
                self.__exit__()

    def _crew_of(self, encoder: Encoder) -> "_Crew":
        """The workers that hold an encoder; those that held another one go."""
        if self._crew is None or self._encoder is not encoder:
            self.__exit__()
            wait_for_room(self._workers, self._progress)
            held = ray.put(encoder)
            self._encoder, self._crew = encoder, _Crew(self._workers, lambda: _start(self._workers, held))
            self._stamp = b"" if self._keep is None else _digest(encoder)
        return self._crew

    def forget(self) -> None:
        """Remove the parts: what they were kept for is done."""
        if self._keep is not None:
            shutil.rmtree(self._keep, ignore_errors=True)

    def _part(self, batch: Batch) -> Path | None:
        if self._keep is None:
            return None
        total = hashlib.sha256(self._stamp)
        for each in [batch] if isinstance(batch, np.ndarray) else batch:
            content = each.encode() if isinstance(each, str) else each if isinstance(each, bytes) else np.ascontiguousarray(each).tobytes()
            total.update(f"{type(each).__name__} {len(content)} ".encode() + content)
        return self._keep / f"{total.hexdigest()}.npy"


@dataclass(eq=False)
class _Piece:
    """One batch on its way; its vectors are there from the start where an earlier call left its part."""

    batch: Batch
    part: Path | None
    worker: Any = None
    answer: Any = None  # of Ray, to be waited for
    vectors: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.part is not None and self.part.exists():
            self.vectors = np.load(self.part, allow_pickle=False)

    def keep(self) -> None:
        """Write the part whole: beside it first, then by a rename."""
        if self.part is not None and self.vectors is not None:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            beside = self.part.with_name(f"{uuid.uuid4().hex}.writing")
            with beside.open("wb") as file:
                np.save(file, self.vectors, allow_pickle=False)
            beside.replace(self.part)


@dataclass(eq=False)
class _Crew:
    """Workers, those who have begun and those who wait for room; what each of them has to do."""

    workers: WorkersConfig
    start: Callable[[], Any]
    busy: dict[Any, list[_Piece]] = field(default_factory=dict[Any, list[_Piece]])  # by worker that has begun
    coming: dict[Any, Any] = field(default_factory=dict[Any, Any])  # answer to "ready?" -> worker
    deaths: int = 0

    def give(self, piece: _Piece) -> None:
        """Hand a batch to the worker with the least to do."""
        self._welcome()
        worker = min(self.busy, key=lambda each: len(self.busy[each]))
        self.busy[worker].append(piece)
        piece.worker, piece.answer = worker, worker.embed.remote(piece.batch)

    def finished(self, piece: _Piece) -> NDArray[np.float32]:
        """The vectors of a batch, computed again where its worker died."""
        while piece.vectors is None:
            try:
                piece.vectors = np.array(ray.get(piece.answer))  # a copy: the store's room is given back
                self.busy[piece.worker].remove(piece)
                piece.keep()
            except (RayActorError, ObjectLostError) as error:  # lost: computed by then, on a node that has died
                self._bury(piece.worker, error)
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, PerdureError) else error from None
        return piece.vectors

    def dismiss(self) -> None:
        """Let all of them go."""
        for worker in [*self.busy, *self.coming.values()]:
            ray.kill(worker)

    def _welcome(self) -> None:
        """Ask for as many workers as may be, and take in those who have begun; wait while there is none."""
        while len(self.busy) + len(self.coming) < self.workers.most:
            worker = self.start()
            self.coming[worker.ready.remote()] = worker
        end = time.monotonic() + self.workers.start_timeout_s
        while True:
            begun, _ = ray.wait(list(self.coming), num_returns=max(1, len(self.coming)), timeout=0) if self.coming else ([], [])
            for answer in begun:
                worker = self.coming.pop(answer)
                try:
                    ray.get(answer)
                    self.busy[worker] = []
                except RayActorError as error:
                    self._count(error)
            if self.busy:
                return
            if time.monotonic() > end:
                raise Unavailable(
                    f"none of {self.workers.most} workers began in workers.start_timeout_s={self.workers.start_timeout_s:g} s"
                )
            if self.coming:
                ray.wait(list(self.coming), num_returns=1, timeout=1)
            else:
                return self._welcome()

    def _bury(self, worker: Any, error: RayError) -> None:
        """Hand what a dead worker had to the others, in its order."""
        self._count(error)
        for piece in self.busy.pop(worker, []):
            self.give(piece)

    def _count(self, error: RayError) -> None:
        self.deaths += 1
        if self.deaths > self.workers.max_failures:
            told = str(error).strip().splitlines()[0]
            raise Unavailable(f"{self.deaths} workers died while they embedded (workers.max_failures={self.workers.max_failures}): {told}")


@ray.remote(max_restarts=0)
class _Embedder:
    """One worker."""

    def __init__(self, encoder: Encoder, threads: int, on_gpu: bool) -> None:
        torch.set_num_threads(threads)
        self._encoder = encoder.cuda() if on_gpu else encoder

    def ready(self) -> bool:
        """Answers when it has begun."""
        return True

    def embed(self, batch: Batch) -> NDArray[np.float32]:
        """See `embed_batch`."""
        return embed_batch(self._encoder, np.array(batch) if isinstance(batch, np.ndarray) else batch)  # Ray's arrays are read-only


def _start(workers: WorkersConfig, encoder: Any) -> Any:
    """A worker that begins when there is room for it."""
    threads = workers.threads or max(1, round(workers.cpus))
    environment = {"env_vars": {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}}
    made = _Embedder.options(num_cpus=workers.cpus, num_gpus=workers.gpus, runtime_env=environment)
    return made.remote(encoder, threads, workers.gpus > 0)


def _digest(encoder: Encoder) -> bytes:
    """Of the weights and of the description."""
    total = hashlib.sha256(repr(encoder.describe()).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        total.update(name.encode() + tensor.detach().cpu().double().numpy().tobytes())
    return total.digest()
