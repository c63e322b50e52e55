"""Lay a learned run under another index policy: new releases over the encoders that are there, nothing is trained.

    python jobs/index.py jobs/configs/scenes.yaml index.policy=versioned [index.merge=raw] [--merges] [key.sub=value ...]

Prints the search quality of each policy that the run has been released under; with --merges, also that of the last release under every
merge there is, so that `index.merge` can be chosen by figures. Many items whose vectors are not at hand are embedded on the workers that
the config asks for; the same command goes on where it stopped.
"""

import argparse
import json
import sys

from rich.console import Console
from rich.table import Table

from perdure import report
from perdure.cluster.embed import embedder
from perdure.config import load
from perdure.console import ConsoleProgress, guarded
from perdure.errors import NotFound
from perdure.records import EncoderRef, Release
from perdure.run import StreamRun
from perdure.settings import settings


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="jobs/index.py", description="Release a learned run under another index policy.")
    parser.add_argument("config", help="YAML of the run")
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    parser.add_argument("--merges", action="store_true", help="measure every merge on the last release; policies versioned, backfilling")
    given = parser.parse_intermixed_args(arguments)
    config = load(given.config, given.overrides)
    progress = ConsoleProgress()
    run = StreamRun.open(config, progress)
    with embedder(config, len(run.measures.test_rows()), progress, keep=run.folder / "embeddings" / "parts") as run.measures.embed_by:
        previous = _publish(run, given.config)
        progress.close()
        result = run.report()
    (run.folder / "report.json").write_text(json.dumps(result, indent=1))
    report.write_run_html(settings().runs / config.name)
    Console().print(_table(result, len(run.prepared.stream.tasks)))
    if given.merges and previous is not None:
        _measure_merges(run, previous)


def _publish(run: StreamRun, config_file: str) -> Release | None:
    """A release for each task, under the policy that is asked for; the last one."""
    previous: Release | None = None
    for task in run.prepared.stream.tasks:
        ref, index = EncoderRef(run.config.name, task.index + 1), run.config.index
        try:
            run.registry.manifest(ref)
        except NotFound:
            raise NotFound(
                f"{ref} is not in the registry {run.registry_at}; learn the run first: python jobs/train.py {config_file}"
            ) from None
        previous = run.publish_release(task, ref, index, previous)
        run.progress.say(f"release {previous.id}: task {task.index + 1} under policy {index.policy}, merge {previous.merge}")
    return previous


def _table(result: dict[str, object], num_tasks: int) -> Table:
    """Search over everything indexed, after the last task, per release."""
    table = Table(title=f"run '{result['name']}' after its last task: search over everything indexed, percent")
    search: dict[str, dict[str, object]] = result["search"]  # type: ignore[assignment]
    last = {name: row for name, row in search.items() if row["task"] == num_tasks - 1}
    metrics = [key for key in next(iter(last.values())) if key.startswith("search_")]
    for column in ("release", "policy", "merge", *metrics):
        table.add_column(column.removeprefix("search_"))
    for name, row in last.items():
        cells = [_mean(row[metric]) for metric in metrics]
        table.add_row(name, str(row["policy"]), str(row["merge"]), *cells)
    return table


def _measure_merges(run: StreamRun, release: Release) -> None:
    """Every merge on one release, as a table and as `merges-<release>.json` in the run's folder."""
    measured = run.measures.merges(release, run.prepared.stream.tasks[-1])
    (run.folder / f"merges-{release.id}.json").write_text(json.dumps(measured, indent=1))
    table = Table(title=f"release {release.id} under every merge, percent: mean over the tasks, then task by task")
    metrics = list(next(iter(measured.values())))
    for column in ("merge", *metrics):
        table.add_column(column.removeprefix("search_"))
    for merge, row in measured.items():
        table.add_row(merge, *(f"{_mean(row[metric])} ({' '.join(_mean([value]) for value in row[metric])})" for metric in metrics))
    Console().print(table)


def _mean(values: object) -> str:
    numbers = [value for value in values if value is not None]  # type: ignore[attr-defined]
    return f"{100 * sum(numbers) / len(numbers):.1f}" if numbers else "-"


if __name__ == "__main__":
    sys.exit(guarded(main))
