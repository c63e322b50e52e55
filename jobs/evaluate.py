"""Compare runs: old and new tasks, average, forgetting, gap closed; writes `comparison.json` and `comparison.html`.

    python jobs/evaluate.py RUN RUN ... [--metric recall@1 --metric map] [--out runs]

RUN is the name of a run under `runs/`, or a folder with a report.json. Runs that differ only in seed and name are one method: its row is
the mean over the seeds with a 95 % interval. Gap closed and intransigence need a joint run of the same seed among them; gap closed, kept
and the differences to fine-tuning a fine_tune run of the same seed.
"""

import argparse
import json
import sys
from pathlib import Path

from perdure import report
from perdure.console import guarded
from perdure.errors import NotFound
from perdure.settings import settings


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="jobs/evaluate.py", description="Compare runs in one table.")
    parser.add_argument("runs", nargs="+", help="names of runs, or folders with a report.json")
    parser.add_argument("--out", default=None, help="where comparison.json goes (default: the runs folder)")
    words = "such as map, top1 or t2i_recall@10; may be given several times (default: the first run's main metric)"
    parser.add_argument("--metric", action="append", default=[], help=words)
    given = parser.parse_args(arguments)
    reports = [_report(name) for name in given.runs]
    folder = Path(given.out) if given.out else settings().runs
    folder.mkdir(parents=True, exist_ok=True)
    report.write_comparison(reports, folder, given.metric)
    rows: list[report.Row] = []
    for metric in given.metric or [None]:
        rows, text = report.comparison_table(reports, metric)
        print("\n\n".join(filter(None, [text, report.relative_table(rows)])), end="\n\n")
    print(report.cost_table(rows))
    print(f"written: {folder / 'comparison.json'} and comparison.html")


def _report(name: str) -> dict[str, object]:
    candidates = (Path(name) / "report.json", settings().runs / name / "report.json")
    for path in candidates:
        if path.is_file():
            return json.loads(path.read_text())
    raise NotFound(f"run '{name}': found neither {candidates[0]} nor {candidates[1]}; learn it first with jobs/train.py")


if __name__ == "__main__":
    sys.exit(guarded(main))
