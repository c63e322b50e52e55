"""Ray Tune over the options of a run: every trial learns a whole stream.

    trial (a Tune function) -> run.learn_stream -> per task: a Ray Train run, or in-process when the base says workers=0

The fine-tuned stream is learned first, once: it is the row that every trial is compared with, and its first encoder is taken over by
the trials, whose first tasks are all the same (unless the strategy has an objective of its own, which also a first task is learned by).
Continual-legal tuning means that the stream one is judged on is not the stream one tunes on: let `set` choose another stream (another
seed of `scenes`, other classes); `best.yaml` is the base without `set`.
"""

import json
from collections.abc import Mapping
from typing import Any

import yaml
from ray import tune
from ray.tune.search.basic_variant import BasicVariantGenerator

from perdure import pipeline
from perdure.cluster.place import Place
from perdure.cluster.train import learn_with_ray
from perdure.config import RunConfig, SearchSpace, SweepConfig, parse
from perdure.errors import ConfigError, PerdureError
from perdure.progress import Progress
from perdure.run import learn_stream
from perdure.settings import settings
from perdure.strategies import STRATEGIES, Strategy

__all__ = ["run_sweep"]


def run_sweep(sweep: SweepConfig, progress: Progress) -> dict[str, Any]:
    """Run the trials (on the Ray that is attached) and write `runs/<sweep>/sweep.json` and `best.yaml`.

    Returns:
        {name, metric, mode, reference, trials: [{name, values, metric, summary, error}] best first, best}.
    Raises:
        PerdureError: every trial failed; the first reason is told.
    """
    folder = settings().runs / sweep.name
    folder.mkdir(parents=True, exist_ok=True)
    base = sweep.run({}, name=f"{sweep.name}-reference")
    reference = parse({**base.plain(), "strategy": {"name": "fine_tune", **_shared_options(base)}})
    progress.say(f"reference: fine_tune, '{reference.name}'")
    reference_report = learn_stream(reference, learner=_learner(reference), progress=progress)

    progress.say(f"{sweep.num_trials} trials over {', '.join(sweep.search)}, {sweep.concurrent} at a time")
    results = tune.Tuner(
        tune.with_resources(_trial, {"CPU": 0.01 if base.workers.num else 1}),  # Train's workers have resources of their own
        param_space={
            "values": {key: _domain(space, sweep.order) for key, space in sweep.search.items()},
            "sweep": sweep.model_dump(mode="json"),
            "place": Place.here(),
            "reference": reference.name,
        },
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode=sweep.mode,
            num_samples=sweep.trials if sweep.order == "random" else 1,  # of each point of the grid
            max_concurrent_trials=sweep.concurrent,
            search_alg=BasicVariantGenerator(random_state=sweep.seed),
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder.resolve()), verbose=0),
    ).fit()

    trials = [_row(result, sweep) for result in results]
    good = [trial for trial in trials if trial["metric"] is not None]
    if not good:
        raise PerdureError(
            f"sweep '{sweep.name}': all {len(trials)} trials failed; the first: {trials[0]['error'] if trials else 'none ran'}"
        )
    good.sort(key=lambda trial: trial["metric"], reverse=sweep.mode == "max")
    out = {
        "name": sweep.name,
        "metric": sweep.metric,
        "mode": sweep.mode,
        "tuned_on": {"set": list(sweep.set)},
        "reference": {"name": reference.name, "strategy": "fine_tune", **_judged(reference_report["summary"], sweep)},
        "trials": good + [trial for trial in trials if trial["metric"] is None],
        "best": good[0]["values"],
    }
    (folder / "sweep.json").write_text(json.dumps(out, indent=1))
    best = sweep.model_copy(update={"set": ()}).run(good[0]["values"], name=f"{sweep.name}-best")
    header = f"# python jobs/train.py {folder / 'best.yaml'}\n# The best of {len(good)} trials by {sweep.metric}; see sweep.json.\n"
    (folder / "best.yaml").write_text(header + yaml.safe_dump(best.plain(), sort_keys=False))
    return out


def _trial(space: dict[str, Any]) -> None:
    """One trial, in a process of its own, possibly on another node."""
    space["place"].enter()
    sweep = SweepConfig.model_validate(space["sweep"])
    name = f"{sweep.name}-{tune.get_context().get_trial_id()}"
    part = sweep.run({}).strategy
    strategy: Strategy = STRATEGIES.build(part.name, part.options)
    begins = {} if strategy.own_objective else {"train.start_from": space["reference"]}
    config = sweep.run({**space["values"], **begins}, name=name)
    report = learn_stream(config, learner=_learner(config))
    value = _looked_up(report["summary"], sweep)
    tune.report({sweep.metric: value, "run": name, "summary": json.dumps(report["summary"])})


def _looked_up(summary: Mapping[str, Any], sweep: SweepConfig) -> float:
    """The compared figure, by its dotted key."""
    place: Any = summary
    for key in sweep.metric.split("."):
        known = list(place) if isinstance(place, Mapping) else []
        if key not in known or place[key] is None:
            problem = f"metric: the report's summary has no '{sweep.metric}', nothing at '{key}'; there: {', '.join(known) or 'a number'}"
            raise ConfigError(f"sweep '{sweep.name}'", [problem])
        place = place[key]
    return float(place)


def _judged(summary: dict[str, Any], sweep: SweepConfig) -> dict[str, Any]:
    return {"metric": _looked_up(summary, sweep), "summary": summary}


def _row(result: Any, sweep: SweepConfig) -> dict[str, Any]:
    values = (result.config or {}).get("values", {})
    if result.error is not None:
        return {"name": None, "values": values, "metric": None, "summary": None, "error": str(result.error).strip().splitlines()[-1]}
    metrics = result.metrics
    return {
        "name": metrics["run"],
        "values": values,
        "metric": metrics[sweep.metric],
        "summary": json.loads(metrics["summary"]),
        "error": None,
    }


def _learner(config: RunConfig) -> pipeline.Learner:
    return learn_with_ray if config.workers.num else pipeline.learn_here


def _shared_options(base: RunConfig) -> dict[str, Any]:
    """The options of the base's strategy that fine-tuning has too: the ranking terms."""
    options = base.strategy.options
    return {"ranking": options["ranking"]} if "ranking" in options else {}


def _domain(space: SearchSpace, order: str) -> Any:
    """One searched option as Tune's domain."""
    if space.choice:
        return tune.grid_search(list(space.choice)) if order == "grid" else tune.choice(list(space.choice))
    if space.uniform:
        return tune.uniform(*space.uniform)
    assert space.loguniform is not None
    return tune.loguniform(*space.loguniform)
