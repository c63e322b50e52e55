"""Following a channel: what is loaded, what is kept, what is let go of."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from conftest import Gallery
from serving_suite import wait

from perdure.errors import Corrupt, NotLoaded, RegistryError
from perdure.records import Release
from perdure.retrieval.follow import Holder, Poller


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def holder_of(gallery: Gallery, load: Callable[[Release], str], **more: object) -> tuple[Holder[str], Clock]:
    clock = Clock()
    return Holder(gallery.registry(), load, retire_after_s=10.0, clock=clock, **more), clock  # type: ignore[arg-type]


def test_the_live_release_is_loaded_once_and_the_next_one_beside_it(gallery: Gallery) -> None:
    loads: list[str] = []
    holder, _ = holder_of(gallery, lambda release: loads.append(release.id) or f"held {release.id}")
    assert holder.problem == "the channel 'live' was not read yet"
    holder.follow()
    holder.follow()
    assert loads == ["demo@v1"] and holder.get("demo@v1") == "held demo@v1" and holder.problem is None
    gallery.registry().promote("demo@v2")
    holder.follow()
    assert loads == ["demo@v1", "demo@v2"] and holder.held() == ["demo@v1", "demo@v2"] and holder.live == "demo@v2"


def test_what_is_not_held_is_said_so(gallery: Gallery) -> None:
    holder, _ = holder_of(gallery, lambda release: release.id)
    holder.follow()
    with pytest.raises(NotLoaded, match=r"demo@v2 is not loaded here; held: demo@v1"):
        holder.get("demo@v2")


def test_a_release_is_let_go_of_when_nobody_wants_it_for_longer_than_a_request(gallery: Gallery) -> None:
    forgotten: list[list[str]] = []
    holder, clock = holder_of(gallery, lambda release: release.id, forget=forgotten.append)
    holder.follow()
    gallery.registry().promote("demo@v2")
    clock.now = 8
    holder.want(["demo@v1"])  # a gateway still answers from it
    holder.follow()
    clock.now = 17
    holder.follow()
    assert holder.held() == ["demo@v1", "demo@v2"] and forgotten == []
    clock.now = 19
    holder.follow()
    assert holder.held() == ["demo@v2"] and forgotten == [["demo@v2"]]
    clock.now = 1000
    holder.follow()
    assert holder.held() == ["demo@v2"], "the live one stays, wanted or not"


def test_a_bad_release_is_never_held_is_tried_again_ever_more_rarely_and_recovers(gallery: Gallery) -> None:
    tries: list[float] = []
    bad = True

    def load(release: Release) -> str:
        if release.id == "demo@v2":
            tries.append(clock.now)
            if bad:
                raise Corrupt("its weights are damaged")
        return release.id

    holder, clock = holder_of(gallery, load)
    holder.follow()
    gallery.registry().promote("demo@v2")
    for second in range(100):
        clock.now = second
        holder.want(["demo@v1"])
        holder.follow()
    assert tries == [0, 5, 15, 35, 75] and holder.held() == ["demo@v1"]
    assert holder.problem == "release demo@v2 cannot be loaded: its weights are damaged"
    bad = False
    clock.now = 135
    holder.follow()
    assert holder.problem is None and "demo@v2" in holder.held()


def test_any_exception_of_a_load_is_contained(gallery: Gallery) -> None:
    def load(release: Release) -> str:
        raise MemoryError("no room")

    holder, _ = holder_of(gallery, load)
    holder.follow()
    assert holder.held() == [] and holder.problem is not None and "MemoryError: no room" in holder.problem


def test_a_process_that_starts_on_a_bad_release_holds_the_one_before(gallery: Gallery) -> None:
    gallery.registry().promote("demo@v2")

    def load(release: Release) -> str:
        if release.id == "demo@v2":
            raise Corrupt("damaged")
        return release.id

    holder, _ = holder_of(gallery, load)
    holder.follow()
    assert holder.held() == ["demo@v1"] and holder.problem is not None and "demo@v2" in holder.problem


def test_a_registry_that_cannot_be_read_takes_nothing_away(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    holder, _ = holder_of(gallery, lambda release: release.id)
    holder.follow()

    def away(name: str) -> Release:
        raise RegistryError("the disk is away")

    monkeypatch.setattr(holder.registry, "channel", away)
    holder.follow()
    assert holder.get("demo@v1") == "demo@v1" and holder.problem == "the channel 'live' cannot be read: the disk is away"


def test_a_gateway_can_ask_for_a_release_that_is_not_live(gallery: Gallery) -> None:
    holder, _ = holder_of(gallery, lambda release: release.id)
    holder.want(["demo@v2", "none@v1"])
    holder.follow()
    assert sorted(holder.held()) == ["demo@v1", "demo@v2"] and "none@v1" in (holder.why_not("none@v1") or "")


def test_readers_see_a_release_whole_or_not_at_all(gallery: Gallery) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def load(release: Release) -> str:
        if release.id == "demo@v2":
            entered.set()
            assert go_on.wait(10)
        return replace(release, metrics={}).id

    holder, _ = holder_of(gallery, load)
    holder.follow()
    gallery.registry().promote("demo@v2")
    thread = threading.Thread(target=holder.follow)
    thread.start()
    assert entered.wait(10)
    assert holder.held() == ["demo@v1"] and holder.problem == "release demo@v2 is being loaded"
    go_on.set()
    thread.join(10)
    assert holder.held() == ["demo@v1", "demo@v2"]


def test_a_poller_runs_again_after_a_failure_and_at_once_when_woken() -> None:
    steps: list[float] = []

    def step() -> None:
        steps.append(time.monotonic())
        raise RuntimeError("once is not for ever")

    poller = Poller(step, poll_s=60.0, name="test")
    poller.start()
    wait(lambda: len(steps) == 1)
    poller.wake()
    wait(lambda: len(steps) == 2)
    poller.stop(wait_s=5.0)
    assert len(steps) == 2
