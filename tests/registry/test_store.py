"""The local store: keys are written once, pointers move by compare-and-swap, also between processes."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.errors import Conflict, Exists, NotFound, RegistryError
from perdure.registry import LocalStore, open_store

PROCESSES = 6


def race(target: Callable[..., None], *arguments: object) -> list[object]:
    """Run `target(number, barrier, answers, *arguments)` in real processes that start together; what each answered."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(PROCESSES), context.SimpleQueue()
    workers = [context.Process(target=target, args=(number, barrier, answers, *arguments)) for number in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * PROCESSES
    return [answers.get() for _ in workers]


def _create(number, barrier, answers, root):
    barrier.wait()
    try:
        LocalStore(root).create("a/key", b"%d" % number * 100_000)
        answers.put(number)
    except Exists:
        answers.put(None)


def _swap(number, barrier, answers, root, tag):
    barrier.wait()
    try:
        LocalStore(root).swap_pointer("channels/live.json", b"%d" % number, tag)
        answers.put(number)
    except Conflict:
        answers.put(None)


def _count(number, barrier, answers, root):
    store = LocalStore(root)
    barrier.wait()
    for _ in range(10):
        while True:
            found = store.read_pointer("channels/count")
            try:
                store.swap_pointer("channels/count", b"%d" % (int(found[0]) + 1 if found else 1), found[1] if found else None)
                break
            except Conflict:
                continue
    answers.put(number)


def test_a_key_is_written_once(tmp_path: Path):
    store = LocalStore(tmp_path / "new")
    store.create("a/b/c.txt", b"first")
    with pytest.raises(Exists, match=r"a/b/c\.txt"):
        store.create("a/b/c.txt", b"second")
    assert store.read("a/b/c.txt") == b"first"
    assert store.fetch("a/b/c.txt").read_bytes() == b"first"


def test_a_file_is_stored_as_its_bytes(tmp_path: Path):
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 20_000)
    store = LocalStore(tmp_path / "store")
    store.create("k", source)
    assert store.read("k") == source.read_bytes()


def test_of_many_processes_that_create_a_key_one_wins_and_its_bytes_are_whole(tmp_path: Path):
    winners = [answer for answer in race(_create, tmp_path) if answer is not None]
    assert len(winners) == 1
    assert LocalStore(tmp_path).read("a/key") == b"%d" % winners[0] * 100_000


@pytest.mark.parametrize("set_before", [False, True])
def test_of_many_processes_that_move_a_pointer_one_wins(tmp_path: Path, set_before: bool):
    tag = LocalStore(tmp_path).swap_pointer("channels/live.json", b"before", None) if set_before else None
    winners = [answer for answer in race(_swap, tmp_path, tag) if answer is not None]
    assert len(winners) == 1
    assert LocalStore(tmp_path).read_pointer("channels/live.json")[0] == b"%d" % winners[0]


def test_no_increment_is_lost_between_processes_that_retry(tmp_path: Path):
    race(_count, tmp_path)
    assert LocalStore(tmp_path).read_pointer("channels/count")[0] == b"%d" % (10 * PROCESSES)


def test_a_pointer_moves_only_from_the_state_that_was_read(tmp_path: Path):
    store = LocalStore(tmp_path)
    assert store.read_pointer("p") is None
    first = store.swap_pointer("p", b"1", None)
    second = store.swap_pointer("p", b"2", first)
    with pytest.raises(Conflict):
        store.swap_pointer("p", b"3", first)
    with pytest.raises(Conflict):
        store.swap_pointer("p", b"3", None)
    assert store.read_pointer("p") == (b"2", second)


def test_what_a_killed_writer_left_is_not_listed_and_not_in_the_way(tmp_path: Path):
    store = LocalStore(tmp_path)
    store.create("a/whole", b"x")
    (tmp_path / ".tmp" / "left-behind").write_bytes(b"half")
    assert store.list("") == ["a/whole"]
    assert store.list("a/") == ["a/whole"]
    assert store.list("b/") == []


def test_a_missing_key_says_so(tmp_path: Path):
    store = LocalStore(tmp_path / "nothing-here")
    for ask in (store.read, store.fetch):
        with pytest.raises(NotFound, match="no 'x/y'"):
            ask("x/y")
    assert store.list("") == []
    assert not (tmp_path / "nothing-here").exists()


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/", ".hidden", "a/.tmp/b", "a\x00b", "a b", "a\\b", "-\n"])
def test_a_key_that_could_leave_the_folder_is_refused(tmp_path: Path, key: str):
    store = LocalStore(tmp_path / "root")
    for act in (store.read, store.fetch, store.read_pointer, lambda k: store.create(k, b""), lambda k: store.swap_pointer(k, b"", None)):
        with pytest.raises(RegistryError, match="not a registry key"):
            act(key)
    assert not (tmp_path / "root").exists()


def test_opens_a_folder_and_refuses_what_it_does_not_support(tmp_path: Path):
    assert open_store(tmp_path).root == tmp_path
    assert open_store(f"file://{tmp_path}").root == tmp_path
    with pytest.raises(RegistryError, match="s3:// is not supported"):
        open_store("s3://bucket/prefix")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RegistryError, match="is a file"):
        open_store(tmp_path / "file")


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path):
    (tmp_path / ".tmp").write_text("a file where a folder is needed")
    with pytest.raises(RegistryError, match="cannot write"):
        LocalStore(tmp_path).create("k", b"")
