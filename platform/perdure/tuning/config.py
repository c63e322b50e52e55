"""The configuration of a sweep: a base run, what to search in it, under which protocol, and how to choose."""

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from perdure.catalog import readable
from perdure.config import RunConfig, Section, parse, put, read_yaml
from perdure.errors import ConfigError
from perdure.tuning.protocols import Oracle, Protocol, TwoPhase

__all__ = ["OBJECTIVES", "SearchSpace", "StopEarly", "SweepConfig", "load_sweep"]

OBJECTIVES = ("retention", "gain")
"""What pulls against each other; both are to be large."""


class SearchSpace(Section):
    """The values that a sweep may give one option: exactly one of the three."""

    choice: tuple[Any, ...] | None = Field(default=None, min_length=1, description="one of these")
    uniform: tuple[float, float] | None = Field(default=None, description="a number between the two")
    loguniform: tuple[float, float] | None = Field(default=None, description="the same, every factor as likely as any other")

    @model_validator(mode="after")
    def _one_of_three(self) -> "SearchSpace":
        if [self.choice, self.uniform, self.loguniform].count(None) != 2:
            raise ValueError("give exactly one of choice, uniform, loguniform")
        low, high = self.uniform or self.loguniform or (1.0, 2.0)
        if not low < high or (self.loguniform and low <= 0):
            raise ValueError(f"[{low}, {high}] is no range{'' if low < high else ', the lower end comes first'}")
        return self

    def examples(self) -> tuple[Any, ...]:
        """Every choice, or the ends of the range: what a check can try."""
        return self.choice or self.uniform or self.loguniform or ()


class StopEarly(Section):
    """Asynchronous successive halving (ASHA) on what a trial reports after each task: the weaker ones learn no further task."""

    after: int = Field(
        default=2, ge=2, description="tasks after which trials are compared first; then after 1 / keep times as many, and so on"
    )
    keep: float = Field(default=0.5, gt=0, lt=1, description="share of the trials that go on each time")


class SweepConfig(Section):
    """A search over some options of a run."""

    name: str = Field(default="sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="trials are runs called NAME-...")
    base: dict[str, Any] = Field(default_factory=dict, description="a run config, or the path of one relative to the sweep's file")
    overrides: tuple[str, ...] = Field(
        default=(), description="a.b=value overrides of the base, in the trials and in the run that is chosen"
    )
    protocol: Protocol = Field(description="what the trials may look at")
    search: dict[str, SearchSpace] = Field(min_length=1, description="dotted key of the run -> its values")
    order: Literal["random", "grid", "optuna"] = Field(
        default="random", description="grid: every combination of choices once; trials is not used. optuna: a TPE that learns from trials"
    )
    trials: int = Field(default=8, ge=1, le=10_000)
    of: str | None = Field(default=None, description="metric that retention and gain are of; null = the report's main one")
    best: Literal["knee", "metric"] = Field(
        default="knee", description="which trial is written: the knee of the front, or the best by metric"
    )
    metric: str = Field(
        default="last_average",
        description="figure that trials are sorted by, and stopped early by: retention, gain, or a key of the report's summary "
        "(by_metric.NAME.KEY for another metric's)",
    )
    mode: Literal["max", "min"] = "max"
    stop_early: StopEarly | None = Field(default=None, description="stop weak trials between tasks; null = every trial runs to its end")
    concurrent: int = Field(default=1, ge=1, le=1024, description="trials at the same time")
    seed: int = Field(default=0, ge=0, description="of the search; the seed of the runs is theirs")

    @model_validator(mode="after")
    def _fits_together(self) -> "SweepConfig":
        ranges = [key for key, space in self.search.items() if space.choice is None]
        if self.order == "grid" and ranges:
            raise ValueError(f"order=grid needs choices, and {', '.join(ranges)} has a range; name the values, or set order: random")
        plain = (str, int, float, bool)
        odd = [key for key, space in self.search.items() if any(not isinstance(value, plain) for value in space.choice or ())]
        if self.order == "optuna" and odd:
            raise ValueError(f"order=optuna takes numbers, words and true or false, and {', '.join(odd)} has others; set order: random")
        if self.order == "optuna" and self.concurrent > 1 and not ranges:
            raise ValueError("order=optuna over choices alone may propose what is being tried already; set concurrent: 1, or order: grid")
        if not self.protocol.judged_on_old and self.metric not in OBJECTIVES:
            raise ValueError(
                f"metric={self.metric}: protocol {self.protocol.name} may not look at earlier tasks, which that figure is about; "
                f"choose {' or '.join(OBJECTIVES)}"
            )
        return self

    @property
    def num_trials(self) -> int:
        """How many there will be: of choices alone, no more than there are combinations."""
        choices = [len(space.choice) for space in self.search.values() if space.choice is not None]
        combinations = math.prod(choices) if len(choices) == len(self.search) else None
        return self.trials if combinations is None else combinations if self.order == "grid" else min(self.trials, combinations)

    def trial(self, values: dict[str, Any], name: str) -> RunConfig:
        """The run of one trial: the base, its overrides, the protocol's, then these values by their dotted keys.

        Raises:
            ConfigError: as for `parse`.
        """
        return self._run((*self.overrides, *self.protocol.overrides()), values, name)

    def chosen(self, values: dict[str, Any], name: str) -> RunConfig:
        """The run that values are chosen for: the base, its overrides and the values, and nothing of the protocol's.

        Raises:
            ConfigError: as for `parse`.
        """
        return self._run(self.overrides, values, name)

    def _run(self, overrides: tuple[str, ...], values: dict[str, Any], name: str) -> RunConfig:
        raw = parse(self.base, list(overrides), source=name).plain()
        problems = [problem for key, value in values.items() for problem in put(raw, key, value)]
        if problems:
            raise ConfigError(name, problems)
        return parse({**raw, "name": name}, source=name)


def load_sweep(path: str | Path, overrides: list[str] | None = None) -> SweepConfig:
    """Read a sweep's YAML; its base is read, overridden and checked, and every searched key is tried in it.

    `overrides` are overrides of the base run, after the file's own; they override what a tuning stream (`two_phase`) sets, too.

    Raises:
        ConfigError: the file or its base is missing or wrong, a searched value does not fit the run, or the tuning stream is the one that
            is judged; all at once.
    """
    path = Path(path)
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise ConfigError(str(path), [f"a sweep is a mapping of keys, found {type(raw).__name__}"])
    base = raw.get("base", {})
    if isinstance(base, str):
        raw = {**raw, "base": read_yaml(path.parent / base)}
    try:
        sweep = SweepConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(str(path), readable(error, "", SweepConfig.model_fields)) from None
    sweep = sweep.model_copy(update={"overrides": (*sweep.overrides, *(overrides or []))})
    if isinstance(sweep.protocol, TwoPhase):
        protocol = sweep.protocol.model_copy(update={"set": (*sweep.protocol.set, *(overrides or []))})
        sweep = sweep.model_copy(update={"protocol": protocol})
    parse(sweep.base, [*sweep.overrides, *sweep.protocol.overrides()], source=f"{path}: base")
    problems = _problems(sweep)
    if problems:
        raise ConfigError(str(path), problems)
    return sweep


def _problems(sweep: SweepConfig) -> list[str]:
    """Searched values that do not fit the run, and a tuning stream that is no other."""
    problems: list[str] = []
    for key, space in sweep.search.items():
        for value in space.examples():
            try:
                sweep.trial({key: value}, sweep.name)
            except ConfigError as error:
                problems += [f"search.{key} = {value!r}: {problem}" for problem in error.problems]
    tuned, judged = sweep.trial({}, sweep.name).stream, sweep.chosen({}, sweep.name).stream
    same = (tuned.dataset, tuned.kind, tuned.validation) == (judged.dataset, judged.kind, judged.validation)
    if same and not isinstance(sweep.protocol, Oracle):
        problems.append(
            "protocol.set: the tuning stream is the very stream that is judged; change stream.dataset or stream.kind, set "
            "stream.validation={share: 0.2}, or say so: protocol: {name: oracle}"
        )
    return problems
