"""Move a release's old items to its newest encoder, slice by slice; each slice is a release of its own.

    python jobs/backfill.py shop@v3 [--order by_uncertainty] [--slice 1000] [--items-per-s 50] [--items 5000] [--promote live]

Ctrl-C pauses after the slice that is on its way; the same command goes on, with any release of the backfill. It stops by itself before a
slice that would make held-out queries worse. Prints the quality over the fraction moved; it is in `report.json` and on its page, too.

    python jobs/backfill.py --compact [--promote live] [--small 10000]

puts what was written over the live release into few segments of a new one, without the rows that were deleted or replaced; nothing is
embedded. Killed at any moment, the same command goes on.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from perdure import report
from perdure.cluster.embed import embedder
from perdure.config import parse
from perdure.console import ConsoleProgress, guarded
from perdure.errors import DataError
from perdure.registry import Registry, open_registry
from perdure.registry.lease import hold
from perdure.retrieval.backfill import Backfill, Pace
from perdure.retrieval.backfill_curve import backfill_curves
from perdure.retrieval.compaction import SMALL, fold, put_together
from perdure.retrieval.guard import BACKFILL_DEFINITIONS
from perdure.retrieval.orders import ORDERS
from perdure.settings import settings


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.compact == (given.release is not None):
        parser.error("name the release to start from, or give --compact, which takes the one of a channel")
    registry = open_registry(given.registry or settings().registry or "registry")
    progress = ConsoleProgress()
    if given.compact:
        return _compact(registry, given.promote or "live", given.small, progress)
    run = registry.release(given.release).run
    config = parse({"name": run}, [f"workers={given.workers}"], source="--workers")
    try:
        with (
            hold(registry.store, run, progress=progress) as lease,
            embedder(config, given.slice, progress) as embed,
            _Pause() as pause,
        ):
            backfill = Backfill.open(
                registry,
                given.release,
                order=given.order,
                slice_items=given.slice,
                seed=given.seed,
                counts=None if given.counts is None else _counts(Path(given.counts)),
                tolerance=given.tolerance,
                pace=Pace(given.items_per_s),
                progress=progress,
                embed=embed,
            )
            begun = backfill.moved
            while not pause.asked and (given.items is None or backfill.moved - begun < given.items):
                lease.check()
                release = backfill.step()
                if release is None:
                    break
                told = release.metrics["backfill"]
                progress.say(
                    f"release {release.id}: {told['moved']} of {told['total']} old items moved, recall@1 {100 * told['recall@1']:.1f} % "
                    f"(start {100 * told['at_start']['recall@1']:.1f} %)"
                )
                if given.promote:
                    registry.promote(release.id, given.promote, by="backfill", reason=f"{told['moved']} of {told['total']} old items moved")
            left = len(backfill.order) - backfill.moved
            progress.say(f"{left} old items are left; the same command goes on" if left else f"{backfill.now.id}: no old item is left")
    finally:
        progress.close()
        _tell(run, backfill_curves(registry.releases(run)))


def _compact(registry: Registry, channel: str, small: int, progress: ConsoleProgress) -> None:
    release = fold(registry, channel, small=small)
    if release is None:
        progress.say(f"nothing was written over the release of '{channel}' since it was made; nothing is to be compacted")
        return
    told = release.metrics["compaction"]
    edit = put_together(registry, release.run)
    progress.say(
        f"release {release.id} is on '{channel}': {told['segments_before']} segments became {told['segments']}, nothing was embedded"
    )
    if edit is not None:
        progress.say(f"edit {edit.number} stands for those before it, for other releases of '{release.run}'")


class _Pause:
    """While it is open, the first Ctrl-C or SIGTERM asks for a pause; the second interrupts."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Pause":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jobs/backfill.py", description="Move old items to the newest encoder of a release.")
    parser.add_argument("release", nargs="?", help="the release to start from, such as shop@v3, or any that its backfill has made")
    parser.add_argument(
        "--compact", action="store_true", help="put what was written into few segments, without encoding; no release is named"
    )
    parser.add_argument("--small", type=int, default=SMALL, help="--compact: segments of fewer rows are put together")
    parser.add_argument("--order", default="random", choices=ORDERS, help="which items move first")
    parser.add_argument("--counts", default=None, help="for most_queried: a JSON file {item id: how often searches found it}")
    parser.add_argument("--slice", type=int, default=1000, help="items that move with one release")
    parser.add_argument("--items-per-s", type=float, default=None, help="budget: embed no more than this, over the whole time")
    parser.add_argument("--items", type=int, default=None, help="pause after this many items, rounded up to slices")
    parser.add_argument("--tolerance", type=float, default=0.01, help="how much recall@1 of held-out queries may lose")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--promote", default=None, help="promote each release to this channel, such as live")
    parser.add_argument("--workers", default="0", help="embed large slices on this many workers of Ray, such as 4 or [2,8]; 0: in-process")
    parser.add_argument("--registry", default=None, help="where the registry is (default: PERDURE_REGISTRY, else ./registry)")
    return parser


def _counts(path: Path) -> dict[str, int]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--counts {path}: not a JSON file ({error})") from None
    if not isinstance(plain, dict) or not all(type(count) is int for count in plain.values()):
        raise DataError(f"--counts {path}: expected {{item id: how often searches found it}}")
    return plain


def _tell(run: str, curves: list[dict[str, Any]]) -> None:
    """Print the curves, and put them into the run's report where there is one."""
    for curve in curves:
        shown = f"{100 * curve['area']:.1f}" if curve["area"] is not None else "-"
        table = Table(title=f"backfill of {curve['start']}, order {curve['order']}: recall@1 in percent, mean over the way {shown}")
        for column in ("release", "moved", "all", "old", "new", "turned wrong", "turned right"):
            table.add_column(column)
        for point in curve["points"]:
            names = ("recall@1", "recall@1_old", "recall@1_new", "negative_flips", "positive_flips")
            cells = ["-" if point[name] is None else f"{100 * point[name]:.1f}" for name in names]
            table.add_row(point["release"], f"{100 * point['fraction']:.0f} %", *cells)
        Console().print(table)
    folder = settings().runs / run
    path = folder / "report.json"
    if curves and path.exists():
        told = json.loads(path.read_text(encoding="utf-8"))
        told["backfill"] = curves
        told["definitions"] = {**told["definitions"], **BACKFILL_DEFINITIONS}
        beside = path.with_suffix(".writing")
        beside.write_text(json.dumps(told, indent=1), encoding="utf-8")
        beside.replace(path)
        report.write_run_html(folder)


if __name__ == "__main__":
    sys.exit(guarded(main))
