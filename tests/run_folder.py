"""Where the tests of runs run: a folder of their own, whatever the environment says."""

from pathlib import Path

import pytest

__all__ = ["enter"]


def enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Go there; decoded pictures are kept there, too."""
    patch.chdir(folder)
    patch.setenv("PERDURE_CACHE", str(folder / "cache"))
    for name in ("PERDURE_REGISTRY", "PERDURE_RUNS"):
        patch.delenv(name, raising=False)
