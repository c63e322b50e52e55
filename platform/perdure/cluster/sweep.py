"""Ray Tune over the options of a run: every trial learns a whole stream, as far as its protocol lets it see.

    trial (a Tune function) -> run.learn_stream -> per task: a Ray Train run, or in-process when the base says workers=0
                            -> after each task: its figures to Tune

The fine-tuned stream is learned first, once: it is what retention is measured against, and its first encoder is taken over by the trials
whose first tasks are the same. Trials report between their Train runs, so what the scheduler stops holds no placement group; what is
killed in the middle of a task leaves one behind, which `cluster.reclaim` gives back.
"""

import json
import logging
import math
import shutil
import time
from typing import Any

import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from perdure import pipeline
from perdure.checks import check, resolved
from perdure.cluster.place import Place
from perdure.cluster.reclaim import free_orphans
from perdure.cluster.search import optuna_search
from perdure.cluster.train import learn_with_ray
from perdure.config import RunConfig
from perdure.errors import ConfigError, PerdureError
from perdure.files import write_whole
from perdure.identity import first_task_fingerprint
from perdure.progress import Progress
from perdure.report.sweep_page import write_sweep_page
from perdure.run import learn_stream
from perdure.settings import settings
from perdure.strategies import STRATEGIES, Strategy
from perdure.tuning import (
    OBJECTIVE_DEFINITIONS,
    Oracle,
    SweepConfig,
    TrialRecord,
    Trials,
    figures_of,
    knee,
    looked_up,
    pareto_front,
    planned_values,
    trial_name,
)

__all__ = ["run_sweep"]

log = logging.getLogger(__name__)

_ORPHANS_S = 2.0  # between two looks for what killed trials have left


def run_sweep(sweep: SweepConfig, progress: Progress) -> dict[str, Any]:
    """Run the trials (on the Ray that is attached) and write `sweep.json`, `sweep.html` and `best.yaml` in `runs/<sweep>`.

    The same sweep again goes on where it stopped: what is over is not learned again.

    Returns:
        {name, protocol, looks_at, oracle, retention_is: measured or estimated, definitions, of, metric, mode, best_by, reference, trials
        best first, front, knee, best}; of a trial {name, values, retention, gain, metric, figures, learned, of, stopped, error}.
    Raises:
        ConfigError: a searched option does not exist; the name is taken by another sweep; fine-tuning loses nothing that could be kept,
            but the knee is asked for.
        DataError: there is no metric or figure of that name.
        PerdureError: every trial failed; the first reason is told.
    """
    problems = _unfit(sweep)
    if problems:
        raise ConfigError(f"sweep '{sweep.name}'", problems)
    folder = settings().runs / sweep.name
    trials = Trials(folder)
    trials.claim(sweep)
    reference = _reference(sweep)
    progress.say(f"protocol {sweep.protocol.name}: {sweep.protocol.looks_at}")
    progress.say(f"reference: fine_tune, '{reference.name}'")
    report = learn_stream(reference, learner=_learner(reference), progress=progress)
    of = sweep.of or report["summary"]["metric"]
    judged = figures_of(sweep.protocol, report, report, of)
    looked_up(judged, sweep.metric)  # a figure that is not there is told now
    if sweep.best == "knee" and judged["retention"] is None:
        raise ConfigError(
            f"sweep '{sweep.name}'",
            [
                f"best=knee: fine-tuning loses nothing of {of} on old tasks here, so no retention can be told; train for longer (too few "
                "steps learn nothing that could be lost), tune on more tasks or on other ones, or set best: metric"
            ],
        )
    known = trials.all()
    over = sum(record.over for record in known)
    more = f", {over} of them over before" if over else ""
    progress.say(f"{sweep.num_trials} trials over {', '.join(sweep.search)}, {sweep.concurrent} at a time{more}")
    shutil.rmtree(folder / "tune", ignore_errors=True)  # what Tune wrote at an earlier time; nothing of it is read
    _tune(sweep, reference, report, of, trials, progress)
    out = _outcome(sweep, reference.name, judged, of, trials)
    _write(sweep, out)
    return out


def _unfit(sweep: SweepConfig) -> list[str]:
    """What is wrong with the parts of the run, and with each searched value in it."""
    problems = check(sweep.trial({}, sweep.name))
    for key, space in sweep.search.items():
        for value in space.examples():
            found = [problem for problem in check(sweep.trial({key: value}, sweep.name)) if problem not in problems]
            problems += [f"search.{key} = {value!r}: {problem}" for problem in found]
    return problems


def _tune(sweep: SweepConfig, reference: RunConfig, report: dict[str, Any], of: str, trials: Trials, progress: Progress) -> None:
    """All trials, by Tune; what comes of them is in their records."""
    first = first_task_fingerprint(resolved(reference))
    held = {key: report[key] for key in ("metrics", "agreement")}
    trainable = tune.with_parameters(
        _trial, sweep=sweep.model_dump(mode="json"), place=Place.here(), reference=(reference.name, first), report=held, of=of
    )
    learns = sweep.order == "optuna"
    results = tune.Tuner(
        tune.with_resources(trainable, {"CPU": 0.01 if reference.workers.num else 1}),  # Train's workers have resources of their own
        param_space={} if learns else {"values": tune.grid_search(planned_values(sweep))},
        tune_config=tune.TuneConfig(
            num_samples=sweep.num_trials if learns else 1,  # of each planned one
            max_concurrent_trials=sweep.concurrent,
            search_alg=optuna_search(sweep, [record.values for record in trials.all()]) if learns else None,
            scheduler=_scheduler(sweep, len(report["tasks"])),
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str((settings().runs / sweep.name).resolve()),
            verbose=0,
            callbacks=[_Follower(sweep, trials, progress)],
        ),
    ).fit()
    free_orphans()
    for result in results:
        if result.error is not None:  # it is tried again when the sweep is run again
            values = (result.config or {})["values"]
            record = trials.begin(trial_name(sweep.name, values), values)
            record.error = str(result.error).strip().splitlines()[-1]
            trials.save(record)


def _scheduler(sweep: SweepConfig, num_tasks: int) -> Any:
    """First come, first served; or ASHA over the tasks learned."""
    if sweep.stop_early is None:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="learned",
        metric="metric",
        mode=sweep.mode,
        max_t=max(num_tasks, sweep.stop_early.after),
        grace_period=sweep.stop_early.after,
        reduction_factor=1 / sweep.stop_early.keep,
        stop_last_trials=False,
    )


class _Follower(tune.Callback):
    """The driver's side of the trials: says what they report, notes which were stopped, gives back what killed ones held."""

    def __init__(self, sweep: SweepConfig, trials: Trials, progress: Progress) -> None:
        self._sweep = sweep
        self._trials = trials
        self._progress = progress
        self._looked = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps a pickle of all that it was given, a terminal can not be kept, and the records are what is read again."""
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """A line for each task that a trial has learned."""
        figures = ", ".join(f"{key} {100 * result[key]:.1f} %" for key in ("retention", "gain") if not math.isnan(result[key]))
        self._progress.say(f"trial {result['run']}: {result['learned']} of {result['of']} tasks; {figures}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial that ended before its last task was stopped by the scheduler."""
        record = self._trials.begin(trial.last_result["run"], trial.config["values"])
        if not record.over:
            record.stopped = True
            self._trials.save(record)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Now and then, give back what killed trials held."""
        if time.monotonic() - self._looked > _ORPHANS_S:
            found = free_orphans()
            if found:
                log.warning("%d placement group(s) of killed trials given back", found)
            self._looked = time.monotonic()


def _trial(
    space: dict[str, Any], *, sweep: dict[str, Any], place: Place, reference: tuple[str, str], report: dict[str, Any], of: str
) -> None:
    """One trial, in a process of its own, possibly on another node; what is over repeats what it reported."""
    place.enter()
    config = SweepConfig.model_validate(sweep)
    values: dict[str, Any] = space["values"]
    name = trial_name(config.name, values)
    trials = Trials(settings().runs / config.name)
    record = trials.begin(name, values)
    if record.over:
        for at in range(len(record.reports)):
            _report(config, record, at)
        return
    record.reports, record.error = [], None

    def judge(told: dict[str, Any], num_tasks: int) -> None:
        learned = len(record.reports) + 1
        record.of = num_tasks
        record.reports.append({"learned": learned, **figures_of(config.protocol, told, report, of)})
        trials.save(record)
        _report(config, record)

    def on_task(so_far: dict[str, Any]) -> None:
        if len(record.reports) + 1 < so_far["num_tasks"]:  # after the last one, the whole report is judged
            judge(so_far, so_far["num_tasks"])

    run = _run_of(config, values, name, reference)
    whole = learn_stream(run, learner=_learner(run), on_task=on_task)
    judge(whole, len(whole["tasks"]))


def _report(sweep: SweepConfig, record: TrialRecord, at: int = -1) -> None:
    """What a trial reported, to Tune, which knows no None."""
    figures = record.reports[at]
    told = {"retention": figures["retention"], "gain": figures["gain"], "metric": looked_up(figures, sweep.metric)}
    numbers = {key: math.nan if value is None else value for key, value in told.items()}
    tune.report({**numbers, "run": record.name, "learned": figures["learned"], "of": record.of})


def _reference(sweep: SweepConfig) -> RunConfig:
    """Fine-tuning on the stream of the trials, with the ranking terms of the base's strategy."""
    options = sweep.trial({}, sweep.name).strategy.options
    strategy = {"name": "fine_tune", **({"ranking": options["ranking"]} if "ranking" in options else {})}
    return sweep.trial({"strategy": strategy}, f"{sweep.name}-reference")


def _run_of(sweep: SweepConfig, values: dict[str, Any], name: str, reference: tuple[str, str]) -> RunConfig:
    """The run of a trial; the reference's first encoder is taken over where the trial would learn the very same."""
    run = sweep.trial(values, name)
    strategy: Strategy = STRATEGIES.build(run.strategy.name, run.strategy.options)
    run_of_reference, first = reference
    alike = first_task_fingerprint(resolved(run), own_objective=strategy.own_objective) == first
    return sweep.trial({**values, "train.start_from": run_of_reference}, name) if alike else run


def _learner(config: RunConfig) -> pipeline.Learner:
    return learn_with_ray if config.workers.num else pipeline.learn_here


def _outcome(sweep: SweepConfig, reference: str, judged: dict[str, Any], of: str, trials: Trials) -> dict[str, Any]:
    """`sweep.json` of a sweep whose trials are over."""
    rows = [_row(sweep, record) for record in trials.all()]
    whole = [row for row in rows if row["metric"] is not None and not row["stopped"] and row["error"] is None]
    if not whole:
        why = next((row["error"] for row in rows if row["error"]), "none ran to its end")
        raise PerdureError(f"sweep '{sweep.name}': all {len(rows)} trials failed; the first: {why}")
    whole.sort(key=lambda row: row["metric"], reverse=sweep.mode == "max")
    placed = [row for row in whole if row["retention"] is not None and row["gain"] is not None]
    points = [(row["retention"], row["gain"]) for row in placed]
    at_knee = knee(points)
    best = placed[at_knee] if sweep.best == "knee" and at_knee is not None else whole[0]
    retention_is = "measured" if sweep.protocol.judged_on_old else "estimated"
    return {
        "name": sweep.name,
        "protocol": sweep.protocol.model_dump(mode="json"),
        "looks_at": sweep.protocol.looks_at,
        "oracle": isinstance(sweep.protocol, Oracle),
        "retention_is": retention_is,
        "definitions": OBJECTIVE_DEFINITIONS[retention_is],
        "of": of,
        "metric": sweep.metric,
        "mode": sweep.mode,
        "best_by": sweep.best,
        "reference": {"name": reference, "strategy": "fine_tune", **_judged(sweep, judged)},
        "trials": [*whole, *(row for row in rows if row not in whole)],
        "front": [placed[number]["name"] for number in pareto_front(points)],
        "knee": None if at_knee is None else placed[at_knee]["name"],
        "best": {"name": best["name"], "values": best["values"]},
    }


def _row(sweep: SweepConfig, record: TrialRecord) -> dict[str, Any]:
    last = record.reports[-1] if record.reports else None
    return {
        "name": record.name,
        "values": record.values,
        **(dict.fromkeys(("retention", "gain", "metric", "figures")) if last is None else _judged(sweep, last)),
        "learned": len(record.reports),
        "of": record.of,
        "stopped": record.stopped,
        "error": record.error,
    }


def _judged(sweep: SweepConfig, figures: dict[str, Any]) -> dict[str, Any]:
    own = {key: figures[key] for key in ("retention", "gain")}
    return {**own, "metric": looked_up(figures, sweep.metric), "figures": {k: v for k, v in figures.items() if k not in (*own, "learned")}}


def _write(sweep: SweepConfig, out: dict[str, Any]) -> None:
    """`sweep.json`, the page, and the chosen run as a config that jobs/train.py takes."""
    folder = settings().runs / sweep.name
    write_whole(folder / "sweep.json", json.dumps(out, indent=1))
    write_sweep_page(folder / "sweep.html", out)
    best = sweep.chosen(out["best"]["values"], f"{sweep.name}-best")
    how = "the knee of the front of retention and gain" if out["best_by"] == "knee" else f"the best by {sweep.metric}"
    lines = [f"python jobs/train.py {folder / 'best.yaml'}", f"Of {len(out['trials'])} trials, {how}; protocol {sweep.protocol.name}."]
    if out["oracle"]:
        lines.append("ORACLE: chosen on the stream and the test split that this run is measured on; its figures are an upper bound.")
    header = "".join(f"# {line}\n" for line in lines)
    write_whole(folder / "best.yaml", header + yaml.safe_dump(best.plain(), sort_keys=False))
