"""Protocols: what a sweep may look at while it chooses the options of a run.

Options that were chosen on the stream and the test split that they are then judged on say little about a stream that nobody has seen
yet (Cha and Cho, "Hyperparameters in continual learning: a reality check", arXiv 2403.09066; Lee et al., arXiv 2404.06466). So a sweep
names a protocol, which is a set of overrides of the base run for its trials, and a word on which figures of a trial may judge it.
`first_tasks` is the use that Chaudhry et al. (A-GEM, ICLR 2019) make of the first tasks of a stream, `two_phase` that of Cha and Cho;
what `current_task_validation` means where retention is asked for, too, is a specification of our own, see `tuning.objectives`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from perdure.config import Section

__all__ = ["CurrentTaskValidation", "FirstTasks", "Oracle", "Protocol", "TwoPhase"]

_Share = Annotated[float, Field(gt=0, lt=1, description="of each class's train items, held out by a hash of the id")]


class FirstTasks(Section):
    """The first tasks of the stream, and no item of the test split: a fresh run over them may measure old tasks, too."""

    judged_on_old: ClassVar[bool] = True
    looks_at: ClassVar[str] = (
        "Train items of the first tasks alone: each class's held-out share measures, the rest is learned. No test item and no item of a "
        "later task is read."
    )

    name: Literal["first_tasks"]
    tasks: int = Field(default=2, ge=2, description="of the stream, from its start")
    held_out: _Share = 0.2

    def overrides(self) -> tuple[str, ...]:
        """What is another in a trial than in the base run."""
        return _validation(self.held_out, self.tasks)


class CurrentTaskValidation(Section):
    """The whole stream, each task judged by its own held-out train items while it is the current one, and by nothing of earlier tasks."""

    judged_on_old: ClassVar[bool] = False
    looks_at: ClassVar[str] = (
        "Train items of each task while it is the current one: each class's held-out share measures, the rest is learned. No test item is "
        "read. No figure of an earlier task judges a trial: what it retains is estimated on the current task's held-out items."
    )

    name: Literal["current_task_validation"]
    tasks: int | None = Field(default=None, ge=2, description="only the first so many; null = the whole stream")
    held_out: _Share = 0.2

    def overrides(self) -> tuple[str, ...]:
        """What is another in a trial than in the base run."""
        return _validation(self.held_out, self.tasks)


class TwoPhase(Section):
    """Tuned on one stream, judged on another, which is the base's."""

    judged_on_old: ClassVar[bool] = True
    looks_at: ClassVar[str] = "The tuning stream, its test split included. Nothing of the evaluation stream, which is the base's, is read."

    name: Literal["two_phase"]
    set: tuple[str, ...] = Field(min_length=1, description="a.b=value overrides of the base that make the tuning stream")

    def overrides(self) -> tuple[str, ...]:
        """What is another in a trial than in the base run."""
        return self.set


class Oracle(Section):
    """Judged on the very stream and test split that the result will be judged on: an upper bound, no way to choose; it is stamped."""

    judged_on_old: ClassVar[bool] = True
    looks_at: ClassVar[str] = "The stream of the base and its test split: what is chosen here has seen what it will be judged on."

    name: Literal["oracle"]

    def overrides(self) -> tuple[str, ...]:
        """Nothing."""
        return ()


Protocol = Annotated[FirstTasks | CurrentTaskValidation | TwoPhase | Oracle, Field(discriminator="name")]


def _validation(held_out: float, tasks: int | None) -> tuple[str, ...]:
    return (f"stream.validation={{share: {held_out}, tasks: {'null' if tasks is None else tasks}}}",)
