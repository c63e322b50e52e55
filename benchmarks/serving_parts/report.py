"""The report of `benchmarks/serving.py`: figures of every group, and the goals from the ratios of rounds inside one."""

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.serving_parts.arms import DIM
from benchmarks.serving_parts.client import Told


@dataclass
class Group:
    """What came of the arms that ran beside each other: by arm, a figure of every round."""

    fixed: dict[str, list[Told]] = field(default_factory=dict)  # at a fixed rate
    most: dict[str, list[Told]] = field(default_factory=dict)  # by clients that ask again at once


@dataclass(frozen=True)
class Goal:
    """What has to be shown, and what was."""

    says: str
    measured: float
    limit: float
    at_most: bool

    @property
    def met(self) -> bool:
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit


def medians(rounds: Sequence[float]) -> float:
    return statistics.median(rounds)


def goals(groups: Sequence[Group], scanned: dict[str, list[float]]) -> list[Goal]:
    """The goals, each from the ratios of the rounds of one group."""

    def beside_empty(name: str) -> float:
        fixed = next(group.fixed for group in groups if {name, "empty Serve app"} <= group.fixed.keys())
        turns = zip(fixed[name], fixed["empty Serve app"], fixed["in process"], strict=True)
        return medians([(own.percentile(50) - search.percentile(50)) / empty.percentile(50) for own, empty, search in turns])

    most = next(group.most for group in groups if {"fused", "naive Serve graph"} <= group.most.keys())
    naive = medians([own.per_s / bare.per_s for own, bare in zip(most["fused"], most["naive Serve graph"], strict=True)])
    batched = medians([own / alone for own, alone in zip(scanned["together"], scanned["one by one"], strict=True)])
    return [
        Goal("sharded, p50 without the search itself, beside the empty Serve app", beside_empty("sharded"), 2.0, True),
        Goal("fused, p50 without the search itself, beside the empty Serve app", beside_empty("fused"), 1.3, True),
        Goal("fused, requests/s beside the naive Serve graph", naive, 5.0, False),
        Goal("scans put together, searches/s beside one by one", batched, 4.0, False),
    ]


def print_report(given: argparse.Namespace, groups: Sequence[Group], scanned: dict[str, list[float]], reached: Sequence[Goal]) -> None:
    """The tables, one for each group."""
    print(
        f"{given.vectors:,} x {DIM}, {os.cpu_count()} cores for all arms and their client, {given.rounds} rounds of {given.seconds:g} s; "
        f"fixed load {given.rate:g} requests/s, full load {given.clients} clients"
    )
    print(f"{'':20s}{'fixed load: p50':>16s}{'p99 ms':>9s}{'full load: requests/s':>24s}{'p50':>9s}{'p99 ms':>9s}{'failed':>8s}")
    for group in groups:
        for name, turns in group.fixed.items():
            full = group.most[name]
            cells = [f"{medians([turn.percentile(50) for turn in turns]):16.1f}", f"{pooled(turns).percentile(99):9.1f}"]
            cells.append(f"{medians([turn.per_s for turn in full]):24.0f}")
            cells += [f"{medians([turn.percentile(50) for turn in full]):9.1f}", f"{pooled(full).percentile(99):9.1f}"]
            print(f"{name:20s}{''.join(cells)}{pooled(turns).failed + pooled(full).failed:8d}")
        print()
    print(f"scans of {given.callers} callers in one process: one by one {medians(scanned['one by one']):.0f} searches/s, ", end="")
    print(f"together {medians(scanned['together']):.0f}")
    for goal in reached:
        wanted = f"{'at most' if goal.at_most else 'at least'} {goal.limit:g} x"
        print(f"{goal.says:70s}{goal.measured:6.2f} x  {wanted:14s} {'met' if goal.met else 'MISSED'}")


def pooled(turns: Sequence[Told]) -> Told:
    """All rounds as one."""
    return Told([ms for turn in turns for ms in turn.ms], sum(turn.failed for turn in turns))


def write_report(given: argparse.Namespace, groups: Sequence[Group], scanned: dict[str, list[float]], reached: Sequence[Goal]) -> None:
    """The figures of every round, as JSON."""

    def told(turn: Told) -> dict[str, float]:
        return {"requests": len(turn.ms), "failed": turn.failed, "per_s": turn.per_s} | {
            f"p{percent}_ms": turn.percentile(percent) for percent in (50, 90, 99)
        }

    def every(arms: dict[str, list[Told]]) -> dict[str, list[dict[str, float]]]:
        return {name: [told(turn) for turn in turns] for name, turns in arms.items()}

    report: dict[str, Any] = {
        "asked": {name: value for name, value in vars(given).items() if name != "out"} | {"dim": DIM, "cores": os.cpu_count()},
        "groups": [{"fixed_load": every(group.fixed), "full_load": every(group.most)} for group in groups],
        "scans_per_s": scanned,
        "goals": [asdict(goal) | {"met": goal.met} for goal in reached],
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {given.out}")
