"""What Ray Train left of a run, before Train is asked to go on with it.

Train lists its checkpoints in `checkpoint_manager_snapshot.json` and writes that file in place: a driver that dies while it does
leaves half of it, and Train then refuses to start the run at all (ray 2.60). So the file is looked at first.
"""

import json
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from perdure.encoders.storage import WEIGHTS
from perdure.pipeline import OUTCOME
from perdure.training.checkpoint import STATE, STATE_TENSORS

__all__ = ["is_whole", "last_good_state"]

log = logging.getLogger(__name__)

_SNAPSHOT = "checkpoint_manager_snapshot.json"


def last_good_state(run: Path) -> Path | None:
    """Where to begin when Train cannot go on with a run by itself; None when it can, or when there is nothing to go on with.

    A run whose snapshot does not read, or names a checkpoint that is not whole, is moved aside (`<run>.damaged-1`), with a warning that
    says what was wrong. Until a fresh run has a snapshot of its own, what lies aside is what there is to begin with.

    Args:
        run: the folder of a Train run on a local file system (an object store shows a file when it is complete).
    Returns:
        the folder of the newest whole state there, to be given to the workers of a fresh run.
    """
    snapshot = run / _SNAPSHOT
    if snapshot.exists():
        problem = _problem(snapshot)
        if problem is None:
            return None
        aside = next(place for number in range(1, 10_000) if not (place := run.with_name(f"{run.name}.damaged-{number}")).exists())
        run.rename(aside)
        log.warning("%s: %s; moved to %s, nothing in it is lost", snapshot, problem, aside.name)
    places = [place for aside in run.parent.glob(f"{run.name}.damaged-*") for place in aside.iterdir() if place.is_dir()]
    whole = sorted((place for place in places if is_whole(place)), key=_progress)
    if places:
        log.warning(
            "%s begins %s", run.name, f"from {whole[-1].name}, the newest whole checkpoint" if whole else "anew: no checkpoint is whole"
        )
    return whole[-1] if whole else None


def _problem(snapshot: Path) -> str | None:
    try:
        named = _names(json.loads(snapshot.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        return f"cannot be read ({type(error).__name__}), as after a stop while it was written"
    broken = [name for name in named if not is_whole(snapshot.parent / name)]
    return f"names {', '.join(broken)}, which is missing or incomplete" if broken else None


def _names(record: dict[str, Any]) -> list[str]:
    """The checkpoints that a snapshot says are there."""
    latest = record["latest_checkpoint_result"]
    return sorted({each["checkpoint_dir_name"] for each in [*record["checkpoint_results"], *([latest] if latest else [])]})


def is_whole(folder: Path) -> bool:
    """A task's outcome, or a state, of which the record and the tensors read: a copy that was cut short may have either alone."""
    record, tensors = (OUTCOME, f"encoder/{WEIGHTS}") if (folder / OUTCOME).exists() else (STATE, STATE_TENSORS)
    try:
        json.loads((folder / record).read_text())
        with safe_open(str(folder / tensors), framework="pt"):
            return True
    except (OSError, ValueError, SafetensorError):
        return False


def _progress(folder: Path) -> tuple[bool, int]:
    """An outcome is behind every state, and a state behind those of fewer steps."""
    if (folder / OUTCOME).exists():
        return True, 0
    return False, int(json.loads((folder / STATE).read_text())["step"])
