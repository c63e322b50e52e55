"""One driver at a time: whoever lives keeps a run's name, whoever died loses it."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from perdure.errors import Conflict, Held
from perdure.progress import SilentProgress
from perdure.registry import LocalStore
from perdure.registry.lease import hold

KEY = "leases/run.json"
FORK = multiprocessing.get_context("fork")
LONG_S = 600.0


class Heard(SilentProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def record(store: LocalStore) -> dict:
    found = store.read_pointer(KEY)
    assert found is not None
    return json.loads(found[0])


def from_elsewhere(store: LocalStore) -> None:
    """The lease as a driver of another machine has it."""
    found = store.read_pointer(KEY)
    mine = {"holder": "other", "host": "another-machine", "pid": 7, "started": "1", "beat": 3}
    store.swap_pointer(KEY, json.dumps(mine).encode(), found[1] if found else None)


def _hold(root: Path, ready, end) -> None:
    with hold(LocalStore(root), "run", ttl_s=LONG_S):
        ready.set()
        end.wait()


def _race(number: int, barrier, answers, root: Path) -> None:
    barrier.wait()
    try:
        with hold(LocalStore(root), "run", ttl_s=LONG_S):
            answers.put(number)
            barrier.wait()
    except Held:
        answers.put(None)
        barrier.wait()


def test_a_name_is_held_given_back_and_held_again(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for _ in range(2):
        with hold(store, "run"):
            assert record(store)["pid"] == os.getpid()
        assert record(store) == {"holder": None}


def test_a_second_driver_is_refused_at_once_and_told_whose_it_is(tmp_path: Path) -> None:
    ready, end = FORK.Event(), FORK.Event()
    other = FORK.Process(target=_hold, args=(tmp_path, ready, end))
    other.start()
    assert ready.wait(30)
    with (
        pytest.raises(Held, match=f"'run' is being learned by process {other.pid} of this machine.*choose another name="),
        hold(LocalStore(tmp_path), "run", ttl_s=LONG_S),
    ):
        pytest.fail("two drivers hold one name")
    end.set()
    other.join(30)
    with hold(LocalStore(tmp_path), "run", ttl_s=LONG_S):
        pass


def test_the_lease_of_a_driver_that_was_killed_on_this_machine_is_taken_at_once(tmp_path: Path) -> None:
    ready = FORK.Event()
    other = FORK.Process(target=_hold, args=(tmp_path, ready, FORK.Event()))
    other.start()
    assert ready.wait(30)
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join(30)
    heard = Heard()
    with hold(LocalStore(tmp_path), "run", ttl_s=LONG_S, progress=heard):
        assert record(LocalStore(tmp_path))["pid"] == os.getpid()
    assert heard.lines == []


def test_a_number_of_a_process_that_was_given_again_is_not_the_holder(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with hold(store, "run", ttl_s=LONG_S):
        found = store.read_pointer(KEY)
        assert found is not None
        mine = json.loads(found[0])
    store.swap_pointer(KEY, json.dumps({**mine, "started": "1"}).encode(), store.read_pointer(KEY)[1])
    with hold(store, "run", ttl_s=LONG_S):
        pass


def test_of_drivers_that_begin_together_exactly_one_goes_on(tmp_path: Path) -> None:
    count = 6
    barrier, answers = FORK.Barrier(count), FORK.SimpleQueue()
    drivers = [FORK.Process(target=_race, args=(number, barrier, answers, tmp_path)) for number in range(count)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(60)
    told = [answers.get() for _ in drivers]
    assert sum(answer is not None for answer in told) == 1


def test_a_silent_driver_of_another_machine_is_waited_for_and_then_succeeded(tmp_path: Path) -> None:
    store, heard = LocalStore(tmp_path), Heard()
    from_elsewhere(store)
    began = time.monotonic()
    with hold(store, "run", ttl_s=0.6, progress=heard):
        assert time.monotonic() - began >= 0.6
    assert heard.lines == ["run 'run' is held by process 7 on another-machine; waiting 0.6 s to see whether it lives"]


def test_a_driver_of_another_machine_that_moves_is_left_alone(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    from_elsewhere(store)

    class Moving(SilentProgress):
        def say(self, line: str) -> None:
            found = store.read_pointer(KEY)
            assert found is not None
            store.swap_pointer(KEY, json.dumps({**json.loads(found[0]), "beat": 4}).encode(), found[1])

    with pytest.raises(Held, match="process 7 on another-machine, which lives"), hold(store, "run", ttl_s=0.6, progress=Moving()):
        pytest.fail("two drivers hold one name")
    assert record(store)["beat"] == 4


def test_a_driver_that_was_taken_for_dead_may_not_go_on(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with hold(store, "run", ttl_s=LONG_S) as lease:  # so long that it does not find out by itself
        lease.check()
        from_elsewhere(store)
        for _ in range(2):
            with pytest.raises(Held, match="taken over by another driver"):
                lease.check()
    assert record(store)["holder"] == "other", "what is another's is not given back"


def test_a_driver_finds_out_by_itself_that_it_was_taken_for_dead(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with hold(store, "run", ttl_s=0.3):
        while record(store)["holder"] != "other":
            from_elsewhere_or_again(store)
        time.sleep(0.3)
        assert record(store)["holder"] == "other", "it does not take back what it lost"


def test_a_beat_that_was_told_to_have_failed_and_did_not_is_ours(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with hold(store, "run", ttl_s=LONG_S) as lease:
        found = store.read_pointer(KEY)
        assert found is not None
        store.swap_pointer(KEY, json.dumps({**json.loads(found[0]), "beat": 99}).encode(), found[1])
        lease.check()
        lease.check()


def test_a_store_that_cannot_be_reached_is_no_lost_name_and_the_next_beat_is_made(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    with hold(LocalStore(root), "run", ttl_s=0.3) as lease:
        root.rename(tmp_path / "away")
        root.write_text("no folder")
        with pytest.raises(OSError):
            lease.check()
        time.sleep(0.2)  # beats fail meanwhile
        root.unlink()
        (tmp_path / "away").rename(root)
        lease.check()
        beat = record(LocalStore(root))["beat"]
        deadline = time.monotonic() + 30
        while record(LocalStore(root))["beat"] == beat:
            assert time.monotonic() < deadline, "the thread of beats has died"
            time.sleep(0.02)


def from_elsewhere_or_again(store: LocalStore) -> None:
    """Between our reading and our writing the holder may have moved the pointer."""
    try:
        from_elsewhere(store)
    except Conflict:
        return


def test_a_lease_moves_while_it_is_held(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with hold(store, "run", ttl_s=0.3) as lease:
        deadline = time.monotonic() + 30
        while record(store)["beat"] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        lease.check()
