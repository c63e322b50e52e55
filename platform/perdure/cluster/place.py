"""Where the driver runs, for the processes that Ray starts elsewhere (Train and Tune change their working directory); where Ray stores."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from perdure.settings import refuse_credentials, settings

__all__ = ["Place", "storage_of"]


@dataclass(frozen=True)
class Place:
    """The driver's folder and settings, so that relative paths of a config mean the same in every process of a run."""

    folder: str
    runs: str
    cache: str
    registry: str | None
    storage: str | None

    @classmethod
    def here(cls) -> Self:
        """This process's."""
        now = settings()
        return cls(str(Path.cwd()), str(now.runs.resolve()), str(now.cache.resolve()), _absolute(now.registry), _absolute(now.storage))

    def enter(self) -> None:
        """Take it on. On a node without that folder (its copy of the working directory lies elsewhere) only the settings."""
        if os.path.isdir(self.folder):
            os.chdir(self.folder)
        os.environ["PERDURE_RUNS"] = self.runs
        os.environ["PERDURE_CACHE"] = self.cache
        for name, value in (("PERDURE_REGISTRY", self.registry), ("PERDURE_STORAGE", self.storage)):
            if value is not None:
                os.environ[name] = value


def storage_of(run_folder: Path) -> str:
    """Where Ray Train keeps the checkpoints of a run: below PERDURE_STORAGE by the run's name, else in the run's folder.

    Raises:
        ConfigError: PERDURE_STORAGE is a URL that carries credentials, which Ray would write down with it.
    """
    storage = _absolute(settings().storage)
    if storage is None:
        return str((run_folder / "ray").resolve())
    return f"{refuse_credentials('PERDURE_STORAGE', storage).rstrip('/')}/{run_folder.name}"


def _absolute(place: str | None) -> str | None:
    """A folder as it is called from everywhere; a URL as it is."""
    return place if place is None or "://" in place else str(Path(place).resolve())
