"""The records of a sweep's trials: what each reported, so that the same command again goes on where it stopped.

A trial is known by its values: they name it, and with it the run that it is. So a trial that was interrupted goes on as any run does, and
one that is over repeats what it reported. One JSON file for each, written by the process of the trial.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perdure.errors import ConfigError
from perdure.files import write_whole
from perdure.tuning.config import SweepConfig

__all__ = ["TrialRecord", "Trials", "trial_name"]

_MAY_CHANGE = ("trials", "concurrent", "best")  # of a sweep's file, between two times that it is run


def trial_name(sweep: str, values: dict[str, Any]) -> str:
    """The name of the trial with some values, and of its run."""
    return f"{sweep}-{hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:10]}"


@dataclass
class TrialRecord:
    """What is known of one trial."""

    name: str
    number: int  # in the order in which trials began
    values: dict[str, Any]
    reports: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])  # figures after each task
    of: int | None = None  # tasks that there are to learn
    stopped: bool = False  # by the scheduler, after its last report
    error: str | None = None

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.stopped or (self.of is not None and len(self.reports) == self.of)


class Trials:
    """The records in `runs/<sweep>/trials/`.

    Args:
        folder: `runs/<sweep>`.
    """

    def __init__(self, folder: Path) -> None:
        self._sweep = folder
        self._folder = folder / "trials"

    def claim(self, sweep: SweepConfig) -> None:
        """Take the sweep's name: the first sweep of a name leaves its config, later ones must have the same.

        Raises:
            ConfigError: it is taken by another sweep; the keys that differ are told.
        """
        path, now = self._sweep / "config.json", sweep.model_dump(mode="json")
        if path.exists():
            before = json.loads(path.read_text())
            other = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key) and key not in _MAY_CHANGE]
            if other:
                lines = [f"{key}: was {before.get(key)!r}, now {now.get(key)!r}" for key in other]
                problem = f"sweep '{sweep.name}' exists with another configuration in {self._sweep}"
                raise ConfigError(f"{problem}; choose another name, or remove that folder", lines)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(now, indent=1))

    def all(self) -> list[TrialRecord]:
        """Every record, in the order in which the trials began."""
        found = [TrialRecord(**json.loads(path.read_text())) for path in self._folder.glob("*.json")]
        return sorted(found, key=lambda record: record.number)

    def begin(self, name: str, values: dict[str, Any]) -> TrialRecord:
        """The record of a trial, a new one if there is none yet."""
        path = self._folder / f"{name}.json"
        if path.exists():
            return TrialRecord(**json.loads(path.read_text()))
        record = TrialRecord(name, len(list(self._folder.glob("*.json"))), values)
        self.save(record)
        return record

    def save(self, record: TrialRecord) -> None:
        """Write a record in place of what was there."""
        write_whole(self._folder / f"{record.name}.json", json.dumps(asdict(record), indent=1))
