"""What every store promises: keys are written once, pointers move by compare-and-swap, also between processes."""

from pathlib import Path

import pytest
from places import Place, race

from perdure.errors import Conflict, Exists, NotFound, RegistryError
from perdure.registry import LocalStore, open_store

PROCESSES = 6


def _create(number, barrier, answers, url):
    store = open_store(url)
    barrier.wait()
    try:
        store.create("a/key", b"%d" % number * 100_000)
        answers.put(number)
    except Exists:
        answers.put(None)


def _swap(number, barrier, answers, url, tag):
    store = open_store(url)
    barrier.wait()
    try:
        store.swap_pointer("channels/live.json", b"%d" % number, tag)
        answers.put(number)
    except Conflict:
        answers.put(None)


def _count(number, barrier, answers, url):
    store = open_store(url)
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


def test_a_key_is_written_once(place: Place):
    store = place.open()
    store.create("a/b/c.txt", b"first")
    with pytest.raises(Exists, match=r"a/b/c\.txt"):
        store.create("a/b/c.txt", b"second")
    assert store.read("a/b/c.txt") == b"first"
    assert store.fetch("a/b/c.txt").read_bytes() == b"first"


@pytest.mark.parametrize("times", [0, 1, 20_000])
def test_a_file_is_stored_as_its_bytes(place: Place, tmp_path: Path, times: int):
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * times)
    store = place.open()
    store.create("k", source)
    assert store.read("k") == source.read_bytes() == store.fetch("k").read_bytes() == place.raw("k")


def test_the_keys_of_a_folder_arrive_in_one_folder_under_their_names(place: Place):
    store = place.open()
    for name in ("weights", "encoder.json"):
        store.create(f"a/b/{name}", name.encode())
    folder = store.fetch("a/b/weights").parent
    assert store.fetch("a/b/encoder.json").parent == folder
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"weights": "weights", "encoder.json": "encoder.json"}


def test_of_many_processes_that_create_a_key_one_wins_and_its_bytes_are_whole(place: Place):
    winners = [answer for answer in race(_create, place.url, processes=PROCESSES) if answer is not None]
    assert len(winners) == 1
    assert place.open().read("a/key") == b"%d" % winners[0] * 100_000


@pytest.mark.parametrize("set_before", [False, True])
def test_of_many_processes_that_move_a_pointer_one_wins(place: Place, set_before: bool):
    tag = place.open().swap_pointer("channels/live.json", b"before", None) if set_before else None
    winners = [answer for answer in race(_swap, place.url, tag, processes=PROCESSES) if answer is not None]
    assert len(winners) == 1
    assert place.open().read_pointer("channels/live.json")[0] == b"%d" % winners[0]


def test_no_increment_is_lost_between_processes_that_retry(place: Place):
    race(_count, place.url, processes=PROCESSES)
    assert place.open().read_pointer("channels/count")[0] == b"%d" % (10 * PROCESSES)


def test_a_pointer_moves_only_from_the_state_that_was_read(place: Place):
    store = place.open()
    with pytest.raises(Conflict):
        store.swap_pointer("p", b"0", "a tag of nothing")
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


def test_a_missing_key_says_so(place: Place):
    store = place.open()
    for ask in (store.read, store.fetch):
        with pytest.raises(NotFound, match="no 'x/y'"):
            ask("x/y")
    assert store.list("") == [] == store.list("x/")


def test_reading_makes_no_folder(tmp_path: Path):
    assert LocalStore(tmp_path / "nothing-here").list("") == []
    assert not (tmp_path / "nothing-here").exists()


def test_keys_are_listed_below_a_prefix_sorted_and_whole(place: Place):
    store = place.open()
    for key in ("b/2", "a/c/1", "ab/1", "a/1", "a.b/1"):
        store.create(key, b"")
    assert store.list("") == ["a.b/1", "a/1", "a/c/1", "ab/1", "b/2"]
    assert store.list("a/") == ["a/1", "a/c/1"]
    assert store.list("c/") == []


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/", ".hidden", "a/.tmp/b", "a\x00b", "a b", "a\\b", "-\n"])
def test_a_key_that_could_leave_the_place_is_refused(place: Place, key: str):
    store = place.open()
    for act in (store.read, store.fetch, store.read_pointer, lambda k: store.create(k, b""), lambda k: store.swap_pointer(k, b"", None)):
        with pytest.raises(RegistryError, match="not a registry key"):
            act(key)
    assert store.list("") == []


def test_opens_a_folder_and_refuses_what_it_does_not_support(tmp_path: Path):
    assert open_store(tmp_path).root == tmp_path
    assert open_store(f"file://{tmp_path}").root == tmp_path
    with pytest.raises(RegistryError, match="gs:// is not supported") as caught:
        open_store("gs://user:hunter2@bucket/prefix")
    assert "hunter2" not in str(caught.value)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RegistryError, match="is a file"):
        open_store(tmp_path / "file")


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path):
    (tmp_path / ".tmp").write_text("a file where a folder is needed")
    with pytest.raises(RegistryError, match="cannot write"):
        LocalStore(tmp_path).create("k", b"")
