"""Trackers: where the numbers of a run go. JSONL first (one line a step, for machines), TensorBoard beside it when asked."""

import json
import time
from pathlib import Path
from typing import Any, Protocol

__all__ = ["JsonlTracker", "NullTracker", "TensorBoardTracker", "Tracker", "Trackers", "last_step"]


class Tracker(Protocol):
    """Takes named numbers as they come."""

    def log(self, kind: str, values: dict[str, Any]) -> None:
        """Record one line: `kind` is "step", "task", "train" ...; values are numbers, strings or None."""
        ...

    def close(self) -> None:
        """Flush and let go of files."""
        ...


class NullTracker:
    """Remembers nothing."""

    def log(self, kind: str, values: dict[str, Any]) -> None:
        """Drop the line."""

    def close(self) -> None:
        """Nothing to close."""


class JsonlTracker:
    """One JSON object a line, appended, so that a resumed run continues the same file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def log(self, kind: str, values: dict[str, Any]) -> None:
        """Append the line with the time in seconds since the epoch."""
        self._file.write(json.dumps({"kind": kind, "time_s": round(time.time(), 3), **values}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardTracker:
    """Scalars for TensorBoard (needs the `tensorboard` package); strings are left to the JSONL."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # an optional dependency, imported where it is asked for

        self._writer = SummaryWriter(str(folder))

    def log(self, kind: str, values: dict[str, Any]) -> None:
        """Write every number under `kind/name` at its own `step`."""
        step = int(values.get("global_step", values.get("step", 0)))
        for name, value in values.items():
            if isinstance(value, int | float) and not name.endswith("step"):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class Trackers:
    """Several trackers as one."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def log(self, kind: str, values: dict[str, Any]) -> None:
        """Hand the line to each."""
        for tracker in self._trackers:
            tracker.log(kind, values)

    def close(self) -> None:
        """Close each."""
        for tracker in self._trackers:
            tracker.close()


def last_step(log_file: Path, task_index: int) -> dict[str, Any] | None:
    """The newest step of a task in a run's JSONL, read from the end of the file."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(0, log_file.stat().st_size - 4096))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines[:-1]):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("kind") == "step" and record.get("task") == task_index:
            return record
    return None
