"""Search the options of a run with Ray Tune; the best trial is written as a run config.

    python jobs/sweep.py tune_configs/correlation.yaml [key.sub=value ...]
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- python jobs/sweep.py tune_configs/correlation.yaml

Overrides are of the base run (train.max_steps=20).
"""

import argparse
import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from perdure.cluster.sweep import run_sweep
from perdure.cluster.train import ray_cluster
from perdure.config import load_sweep
from perdure.console import ConsoleProgress, guarded
from perdure.settings import settings


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="jobs/sweep.py", description="Search the options of a run with Ray Tune.")
    parser.add_argument("config", help="YAML of a sweep; ready-made ones are in tune_configs/")
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    parser.add_argument("--trials", type=int, default=None, help="this many instead of the file's")
    given = parser.parse_args(arguments)
    sweep = load_sweep(given.config, given.overrides)
    if given.trials is not None:
        sweep = sweep.model_copy(update={"trials": given.trials})
    progress = ConsoleProgress()
    with ray_cluster(sweep.run({})):
        out = run_sweep(sweep, progress)
    progress.close()
    keys = list(sweep.search)
    table = Table(title=f"sweep '{sweep.name}': {sweep.metric}, tuned on {out['tuned_on']['set'] or 'the base stream itself'}")
    for column in (*map(_short(keys), keys), sweep.metric, "old", "new", "forgetting"):
        table.add_column(column, overflow="fold")
    rows = [({key: "fine_tune" for key in keys[:1]}, out["reference"]["metric"], out["reference"]["summary"], None)]
    rows += [(trial["values"], trial["metric"], trial["summary"], trial["error"]) for trial in out["trials"]]
    for values, metric, summary, error in rows:
        cells = [_cell(values.get(key, "")) for key in keys]
        table.add_row(
            *cells,
            *(
                [error or "", "", "", ""]
                if summary is None
                else [_cell(metric), *(_cell(summary.get(key)) for key in ("old", "new", "forgetting"))]
            ),
        )
    Console().print(table)
    print(f"best: {out['best']}, written to {settings().runs / sweep.name / 'best.yaml'}")


def _short(keys: list[str]) -> Callable[[str], str]:
    """`strategy.weight` -> `weight`, unless two keys end alike: a table of full keys does not fit a terminal."""
    ends = [key.rsplit(".", 1)[-1] for key in keys]
    return lambda key: key if len(set(ends)) < len(ends) else key.rsplit(".", 1)[-1]


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(guarded(main))
