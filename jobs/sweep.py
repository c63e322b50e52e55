"""Search the options of a run with Ray Tune, by a protocol that says what may be looked at; the chosen trial becomes a run config.

    python jobs/sweep.py tune_configs/correlation.yaml [key.sub=value ...]
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/sweep.py tune_configs/correlation.yaml

Overrides are of the base run (train.max_steps=20). The same command again goes on where a sweep stopped.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from perdure.cluster.sweep import run_sweep
from perdure.cluster.train import ray_cluster
from perdure.console import ConsoleProgress, guarded
from perdure.settings import settings
from perdure.tuning import load_sweep


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="jobs/sweep.py", description="Search the options of a run with Ray Tune.")
    parser.add_argument("config", help="YAML of a sweep; ready-made ones are in tune_configs/")
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    parser.add_argument("--trials", type=int, default=None, help="this many instead of the file's")
    given = parser.parse_intermixed_args(arguments)  # overrides may stand on both sides of an option
    if given.trials is not None and given.trials < 1:
        parser.error(f"--trials {given.trials}: a sweep has one trial or more")
    sweep = load_sweep(given.config, given.overrides)
    if given.trials is not None:
        sweep = sweep.model_copy(update={"trials": given.trials})
    progress = ConsoleProgress()
    with ray_cluster(sweep.trial({}, sweep.name)):
        out = run_sweep(sweep, progress)
    progress.close()
    Console().print(_table(out, list(sweep.search)))
    if out["oracle"]:
        print("oracle: chosen on what the chosen run is measured on; its figures are an upper bound")
    folder = settings().runs / sweep.name
    print(f"chosen ({'knee' if out['best_by'] == 'knee' else out['metric']}): {out['best']['values']}")
    print(f"written to {folder / 'best.yaml'}; all trials: {folder / 'sweep.html'}")


def _table(out: dict[str, Any], keys: list[str]) -> Table:
    """A line for fine-tuning and for each trial."""
    figures = ["retention", "gain", *([] if out["metric"] in ("retention", "gain") else ["metric"])]
    table = Table(title=f"sweep '{out['name']}', protocol {out['protocol']['name']}: retention and gain of {out['of']}")
    for column in (*map(_short(keys), keys), *(out["metric"] if key == "metric" else key for key in figures), ""):
        table.add_column(column, overflow="fold")
    rows = [({key: "fine_tune" for key in keys[:1]}, out["reference"], "")]
    rows += [(trial["values"], trial, _note(out, trial)) for trial in out["trials"]]
    for values, judged, note in rows:
        table.add_row(*(_cell(values.get(key, "")) for key in keys), *(_cell(judged[key]) for key in figures), note)
    return table


def _note(out: dict[str, Any], trial: dict[str, Any]) -> str:
    if trial["error"] is not None:
        return str(trial["error"])
    if trial["stopped"]:
        return f"stopped after {trial['learned']} of {trial['of']} tasks"
    return "knee" if trial["name"] == out["knee"] else "front" if trial["name"] in out["front"] else ""


def _short(keys: list[str]) -> Callable[[str], str]:
    """`strategy.weight` -> `weight`, unless two keys end alike: a table of full keys does not fit a terminal."""
    ends = [key.rsplit(".", 1)[-1] for key in keys]
    return lambda key: key if len(set(ends)) < len(ends) else key.rsplit(".", 1)[-1]


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(guarded(main))
