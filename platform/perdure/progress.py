"""What a person sees of a run that takes long."""

import logging
from typing import Protocol

__all__ = ["Progress", "SilentProgress"]

log = logging.getLogger(__name__)


class Progress(Protocol):
    """What a person at a terminal sees of a long run."""

    def say(self, line: str) -> None:
        """One line of plain text."""
        ...

    def step(self, done: int, total: int, loss: float) -> None:
        """The training of the current task is at a step."""
        ...

    def count(self, what: str, done: int, total: int) -> None:
        """Something else that takes time: decoding, embedding."""
        ...


class SilentProgress:
    """Says nothing; log records still go to `logging`."""

    def say(self, line: str) -> None:
        """To the log."""
        log.info(line)

    def step(self, done: int, total: int, loss: float) -> None:
        """Nothing."""

    def count(self, what: str, done: int, total: int) -> None:
        """Nothing."""
