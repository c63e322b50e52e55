"""What a person sees: lines, a progress bar at a terminal, and errors without a traceback.

Machines read the JSONL of the run. When the output is not a terminal (the log of a submitted job), there are lines in place of the bar: the
first, the last, and one every half minute.
"""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from perdure.errors import Held, PerdureError, Unavailable

__all__ = ["EXIT_CODES", "ConsoleProgress", "guarded"]

EXIT_CODES = {
    0: "it is done",
    1: "an error that nobody foresaw, with a traceback: a defect of Perdure, or of the machine",
    2: "it cannot be done as it was asked: the command, configuration, data set or registry; the message says what to do",
    3: "not now: no cluster, no room, too many deaths of workers, or another driver has the run; the same command may do it later",
    130: "interrupted by Ctrl-C; the same command goes on from the last checkpoint",
}
"""What each exit code of a job and of `perdure` means."""

_QUIET_S = 30.0  # between two lines in place of a moving bar


class ConsoleProgress:
    """Lines on standard output, and one bar below them at a terminal."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._started = time.monotonic()
        self._bar: Progress | None = None
        self._row: TaskID | None = None
        self._said: tuple[str, int, float] = ("", 0, 0.0)  # in place of the bar: of which work, how far it was, and when

    def say(self, line: str) -> None:
        """Print a line with the seconds since the start."""
        self.close()
        self._console.print(f"[{time.monotonic() - self._started:6.1f} s] {line}", markup=False)

    def step(self, done: int, total: int, loss: float) -> None:
        """Move the bar of the current task's training."""
        self._move("training", f"training, loss {loss:.3f}", done + 1, total)

    def count(self, what: str, done: int, total: int) -> None:
        """Move the bar of something else."""
        self._move(what, what, done, total)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._row = None

    def _move(self, work: str, what: str, done: int, total: int) -> None:
        if not self._console.is_terminal:
            self._tell_now_and_then(work, f"{what}: {done}/{total}", done, over=done >= total)
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

    def _tell_now_and_then(self, work: str, line: str, done: int, *, over: bool) -> None:
        """A line for a log: when a work begins and ends, and when half a minute has passed."""
        last, before, said = self._said
        begins = work != last or done < before
        if begins or (done > before and (over or time.monotonic() - said >= _QUIET_S)):
            self._said = (work, done, time.monotonic())
            self.say(line)


def guarded(main: Callable[[list[str]], Any], arguments: list[str] | None = None) -> int:
    """Run a command; its exit code, see `EXIT_CODES`. What a user can mend is one clean message on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        main(sys.argv[1:] if arguments is None else arguments)
    except PerdureError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, Held | Unavailable) else 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
        return 130
    return 0
