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

    @classmethod
    def here(cls) -> Self:
        """This process's."""
        now = settings()
        registry = now.registry
        if registry is not None and "://" not in registry:
            registry = str(Path(registry).resolve())
        return cls(str(Path.cwd()), str(now.runs.resolve()), str(now.cache.resolve()), registry)

    def enter(self) -> None:
        """Take it on. On a node without that folder (its copy of the working directory lies elsewhere) only the settings."""
        if os.path.isdir(self.folder):
            os.chdir(self.folder)
        os.environ["PERDURE_RUNS"] = self.runs
        os.environ["PERDURE_CACHE"] = self.cache
        if self.registry is not None:
            os.environ["PERDURE_REGISTRY"] = self.registry
