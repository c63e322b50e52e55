"""Lay a learned run under another index policy: new releases over the encoders that are there, nothing is trained.

    python jobs/index.py jobs/configs/scenes.yaml index.policy=versioned [index.merge=raw] [key.sub=value ...]

Prints the search quality of each policy that the run has been released under.
"""

import argparse
import json
import sys

from rich.console import Console
from rich.table import Table

from perdure import report
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
    given = parser.parse_args(arguments)
    config = load(given.config, given.overrides)
    progress = ConsoleProgress()
    run = StreamRun.open(config, progress)
    previous: Release | None = None
    for task in run.prepared.stream.tasks:
        ref = EncoderRef(config.name, task.index + 1)
        try:
            run.registry.manifest(ref)
        except NotFound:
            raise NotFound(
                f"{ref} is not in the registry {run.registry_at}; learn the run first: python jobs/train.py {given.config}"
            ) from None
        previous = run.publish_release(task, ref, config.index, previous)
        progress.say(f"release {previous.id}: task {task.index + 1} under policy {config.index.policy}, merge {config.index.merge}")
    progress.close()
    result = run.report()
    (run.folder / "report.json").write_text(json.dumps(result, indent=1))
    report.write_run_html(settings().runs / config.name)
    Console().print(_table(result, len(run.prepared.stream.tasks)))


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


def _mean(values: object) -> str:
    numbers = [value for value in values if value is not None]  # type: ignore[attr-defined]
    return f"{100 * sum(numbers) / len(numbers):.1f}" if numbers else "-"


if __name__ == "__main__":
    sys.exit(guarded(main))
