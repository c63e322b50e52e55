"""Ray Train: one run per task, the loop of `training/loop.py` on every worker, checkpoints through Ray's storage: a folder, or S3.

The run of task k is named by the task and the configuration, so a driver that starts again with the same name finds its checkpoints
and goes on; whether a task is *finished* is asked of the registry, never of Ray.
"""

import logging
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import torch
from ray import train
from ray.train.collective import barrier
from ray.train.torch import TorchConfig, TorchTrainer

from perdure import pipeline
from perdure.cluster.place import Place, storage_of
from perdure.cluster.resume import last_good_state
from perdure.cluster.room import wait_for_room
from perdure.config import RunConfig, parse
from perdure.errors import PerdureError, Unavailable
from perdure.identity import fingerprint
from perdure.progress import Progress
from perdure.settings import settings
from perdure.tracking import last_step
from perdure.training.gather import ALONE, Distributed

__all__ = ["learn_with_ray", "ray_cluster"]

log = logging.getLogger(__name__)

_KNOCK_S = 10.0  # for an address to answer


@contextmanager
def ray_cluster(config: RunConfig) -> Generator[None]:
    """Attach to the cluster that the environment names, or start a local one big enough for the run and stop it at the end."""
    if ray.is_initialized():
        yield
        return
    address = settings().ray_address
    if address:
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=True)
        except OSError as error:  # a ConnectionError is one
            raise Unavailable(f"no Ray cluster answers at {address} (PERDURE_RAY, else RAY_ADDRESS): {_last_line(error)}") from None
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a private cluster on loopback; clusters set their own mode
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves its workers beside anything else that computes
        cpus = max(os.cpu_count() or 1, round(config.workers.most * config.workers.cpus + 0.5))
        # "local": with no address Ray would join whatever cluster runs here, or ran here and left its address behind.
        ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise an OSError when nobody listens at HOST:PORT; Ray would end the whole process after a minute, without a word of ours."""
    host, colon, port = address.rpartition(":")
    if colon and host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def learn_with_ray(config: RunConfig, task_index: int, registry: str, run_folder: Path, progress: Progress) -> Path:
    """A `pipeline.Learner`: the task as a Ray Train run with `workers.num` workers.

    Returns:
        the folder of the finished task's outcome (the last checkpoint).
    Raises:
        PerdureError: a worker met one of ours, such as a DataError.
        Unavailable: there was no room for the workers within `workers.start_timeout_s`; or the run failed more often than
            `workers.max_failures`, then the message holds the first worker's error.
    """
    workers = config.workers
    wait_for_room(workers, progress)
    cores = int(ray.cluster_resources().get("CPU", 1))
    threads = workers.threads or max(1, min(cores, os.cpu_count() or 1) // workers.most)
    name, storage = f"task-{task_index}-{fingerprint(config)[:12]}", storage_of(run_folder)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": config.plain(),
            "task": task_index,
            "registry": str(registry) if "://" in registry else str(Path(registry).resolve()),
            "run_folder": str(run_folder.resolve()),
            "place": Place.here(),
            "threads": threads,
            "begin": None if "://" in storage else last_good_state(Path(storage) / name),  # for a run that Train knows nothing of
        },
        torch_config=TorchConfig(backend=None, timeout_s=max(1, round(workers.collective_timeout_s))),
        scaling_config=train.ScalingConfig(
            num_workers=workers.num,  # a tuple is elastic
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})},
        ),
        run_config=train.RunConfig(
            name=name,
            storage_path=storage,
            failure_config=train.FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
            # Threads that spin while they wait for each other cost a busy machine more than they save an idle one.
            worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}},
        ),
    )
    with _followed(run_folder / "log.jsonl", task_index, progress):
        try:
            result = trainer.fit()
        except train.TrainingFailedError as error:
            raise _failed(task_index, error) from error
    assert result.checkpoint is not None
    if isinstance(result.checkpoint.filesystem, pyarrow.fs.LocalFileSystem):
        return Path(result.checkpoint.path)
    outcome = run_folder / "ray" / f"outcome-{task_index:03d}"
    shutil.rmtree(outcome, ignore_errors=True)
    return Path(result.checkpoint.to_directory(outcome))


def _worker(loop: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    torch.set_num_threads(loop["threads"])
    loop["place"].enter()
    config = parse(loop["config"])
    context = train.get_context()
    found = train.get_checkpoint()
    with ExitStack() as folders:
        state = loop["begin"] if found is None else Path(folders.enter_context(found.as_directory()))  # a download, if not from a folder
        if state is not None and (state / pipeline.OUTCOME).exists():
            finished = found or train.Checkpoint.from_directory(state)
            train.report({"finished": 1}, checkpoint=finished if context.get_world_rank() == 0 else None)
            return
        folder = folders.enter_context(tempfile.TemporaryDirectory())
        pipeline.learn_task(
            config,
            loop["task"],
            loop["registry"],
            out=Path(folder),
            workers=Distributed(meet=barrier) if context.get_world_size() > 1 else ALONE,
            checkpoints=_RayCheckpoints(state),
            tracker=pipeline.open_tracker(config, Path(loop["run_folder"])) if context.get_world_rank() == 0 else None,
        )
        _report({"finished": 1}, Path(folder))


class _RayCheckpoints:
    """States reported to Ray Train: rank 0 hands the folder over, the others take part in the barrier."""

    def __init__(self, found: Path | None) -> None:
        self._found = found

    def latest(self) -> Path | None:
        return self._found

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            if train.get_context().get_world_rank() == 0:
                write(Path(folder))
            _report({"step": step}, Path(folder))


def _report(metrics: dict[str, Any], folder: Path) -> None:
    first = train.get_context().get_world_rank() == 0
    train.report(metrics, checkpoint=train.Checkpoint.from_directory(str(folder)) if first else None)


@contextmanager
def _followed(log_file: Path, task_index: int, progress: Progress) -> Generator[None]:
    """Drive the progress bar from the JSONL that rank 0 writes, where the driver can see that file."""
    over = threading.Event()

    def follow() -> None:
        while not over.wait(0.5):
            line = last_step(log_file, task_index)
            if line is not None:
                progress.step(int(line["step"]), int(line["num_steps"]), float(line["loss"]))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _failed(task_index: int, error: train.TrainingFailedError) -> PerdureError:
    """What a failed run means for the person who started it. Ray wraps a worker's error several times."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    told = next((f"worker {rank}: {_last_line(inner)}" for rank, inner in failures.items()), _last_line(error))
    mendable = any(isinstance(getattr(inner, "_base_exc", None), PerdureError) for inner in failures.values())
    kind = PerdureError if mendable else Unavailable
    return kind(f"task {task_index} failed on Ray: {told}")


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
