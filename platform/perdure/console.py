"""What a person sees: lines, a progress bar at a terminal, and errors without a traceback.

Machines read the JSONL of the run; when the output is not a terminal, only the lines are printed.
"""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from perdure.errors import PerdureError

__all__ = ["ConsoleProgress", "guarded"]


class ConsoleProgress:
    """Lines on standard output, and one bar below them at a terminal."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._started = time.monotonic()
        self._bar: Progress | None = None
        self._row: TaskID | None = None

    def say(self, line: str) -> None:
        """Print a line with the seconds since the start."""
        self.close()
        self._console.print(f"[{time.monotonic() - self._started:6.1f} s] {line}", markup=False)

    def step(self, done: int, total: int, loss: float) -> None:
        """Move the bar of the current task's training."""
        self._move(f"training, loss {loss:.3f}", done + 1, total)

    def count(self, what: str, done: int, total: int) -> None:
        """Move the bar of something else."""
        self._move(what, done, total)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._row = None

    def _move(self, what: str, done: int, total: int) -> None:
        if not self._console.is_terminal:
            return
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
            self._row = self._bar.add_task(what, total=total)
        assert self._row is not None
        self._bar.update(self._row, description=what, completed=done, total=total)
        if done >= total:
            self.close()


def guarded(main: Callable[[list[str]], Any], arguments: list[str] | None = None) -> int:
    """Run a command: 0 when it succeeds; 2 and one clean message on standard error for what a user can mend; 130 on Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        main(sys.argv[1:] if arguments is None else arguments)
    except PerdureError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
        return 130
    return 0
