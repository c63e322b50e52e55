"""Where the driver runs, for the processes that Ray starts elsewhere: Train and Tune change their working directory."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from perdure.settings import settings

__all__ = ["Place"]


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


def _absolute(place: str | None) -> str | None:
    """A folder as it is called from everywhere; a URL as it is."""
    return place if place is None or "://" in place else str(Path(place).resolve())
