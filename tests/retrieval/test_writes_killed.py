"""A writer killed with -9 at any write to the registry, hundreds of times: nothing that was acknowledged is lost, nothing is there twice.

Every life is a real process, which ends itself by SIGKILL before or after a drawn one of its writes; the next one sends the request that
was under way once more, under its key, and goes on. All lives share one registry. A disk that loses its power is not what is shown, so
nobody waits for it.
"""

import json
import multiprocessing
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from written import Plain, apply, begin, change, gallery
from written_lives import live

from perdure.registry import open_registry

LIVES = multiprocessing.get_context("forkserver")
KILLS = 200


@pytest.fixture(scope="module", autouse=True)
def _ready_to_fork() -> Iterator[None]:
    """The processes find the tests' own modules, and have what takes long to import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]), prepend=os.pathsep)
        LIVES.set_forkserver_preload(["perdure.run", "written_lives"])
        yield


def test_two_hundred_kills_lose_nothing_that_was_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    _, plain = begin(tmp_path / "registry")
    rng = random.Random(2026)
    acknowledged, under_way, first = 0, Counter[str](), None
    for number in range(KILLS):
        where = tmp_path / f"told-{number}"
        process = LIVES.Process(target=live, args=(str(tmp_path / "registry"), first, number, rng.randint(1, 40), str(where)))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        lines = where.read_text().splitlines()
        while lines[1:2] == ["done"]:
            done(plain, json.loads(lines[0]))
            acknowledged += 1
            lines = lines[2:]
        first = json.loads(lines[0]) if lines else None
        if first is None:
            assert gallery(open_registry(tmp_path / "registry")) == plain
            continue
        under_way[first["kind"]] += 1
        both: Plain = dict(plain)
        done(both, first)
        assert gallery(open_registry(tmp_path / "registry")) in (plain, both), f"life {number}: half of {first}"
    assert acknowledged > KILLS / 4 and set(under_way) == {"items", "removed", "put together", "fold"}
    print(f"{KILLS} kills, {acknowledged} requests acknowledged, none lost, none twice; under way when killed: {dict(under_way)}")


def done(plain: Plain, asked: dict[str, Any]) -> None:
    apply(plain, change(asked.get("items"), asked.get("removed")))
