"""The registry: immutable hashed versions, channels that move atomically, a journal without gaps."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from places import Place, race

from perdure.errors import Conflict, Corrupt, Exists, GateRefused, Incompatible, NotFound, RegistryError
from perdure.records import EncoderRef, Release, SegmentRef, SegmentUse
from perdure.registry import Registry, open_registry, release_from_plain, release_to_plain

FILES = {"weights.safetensors": b"w" * 1000, "encoder.json": b"{}"}


@pytest.fixture
def registry(place: Place) -> Registry:
    return open_registry(place.url)


def release_of(registry: Registry, version: int, **changes: object) -> Release:
    """A release with an encoder and a segment of its own, published."""
    encoder = registry.publish_encoder("demo", version, {"weights": b"encoder %d" % version})
    segment = registry.publish_segment("demo", version, {"vectors": b"segment %d" % version}, made_by=encoder)
    release = Release(f"demo@v{version}", "demo", version - 1, "reindex", "raw", encoder, (SegmentUse(segment, encoder, encoder),))
    return registry.publish_release(replace(release, **changes))


# -- versions -------------------------------------------------------------------------------------------------------------


def test_what_was_published_comes_back(registry: Registry, tmp_path: Path):
    source = tmp_path / "vectors"
    source.write_bytes(b"v" * 5000)
    encoder = registry.publish_encoder("demo", None, FILES, meta={"embedding_dim": 128, "loss": float("nan")})
    segment = registry.publish_segment("demo", None, {"vectors": source}, made_by=encoder, meta={"items": 7})
    assert (encoder, segment) == (EncoderRef("demo", 1), SegmentRef("demo", 1))
    assert {name: path.read_bytes() for name, path in registry.files(encoder).items()} == FILES
    assert sorted(path.name for path in registry.folder(encoder).iterdir()) == sorted(FILES)
    assert registry.manifest(encoder).meta == {"embedding_dim": 128, "loss": None, "parent": None}
    assert registry.files(segment)["vectors"].read_bytes() == b"v" * 5000
    assert registry.made_by(segment) == encoder
    child = registry.publish_encoder("demo", None, {"weights": b"2"}, parent=encoder)
    assert child == EncoderRef("demo", 2) and registry.manifest(child).meta["parent"] == "encoder/demo@v1"
    assert registry.encoders() == registry.encoders("demo") == [encoder, child] and registry.encoders("other") == []
    assert registry.segments() == [segment]


def test_publishing_the_same_again_is_harmless_and_other_bytes_are_refused(registry: Registry):
    ref = registry.publish_encoder("demo", 3, FILES, meta={"seconds": 1.0})
    keys = registry.store.list("")
    assert registry.publish_encoder("demo", 3, FILES, meta={"seconds": 2.0}) == ref
    assert registry.store.list("") == keys and registry.manifest(ref).meta["seconds"] == 1.0
    with pytest.raises(Exists, match=r"encoder/demo@v3 exists and is different \(encoder\.json\)"):
        registry.publish_encoder("demo", 3, {**FILES, "encoder.json": b"[]"})
    other = registry.publish_encoder("demo", None, FILES)
    with pytest.raises(Exists, match="parent"):
        registry.publish_encoder("demo", 3, FILES, parent=other)
    assert {name: path.read_bytes() for name, path in registry.files(ref).items()} == FILES


def test_a_half_written_version_is_invisible_and_does_not_stand_in_the_way(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    create = type(registry.store).create

    def die_before_the_manifest(self, key, data):
        if key.endswith("manifest.json"):
            raise KeyboardInterrupt
        create(self, key, data)

    monkeypatch.setattr(type(registry.store), "create", die_before_the_manifest)
    with pytest.raises(KeyboardInterrupt):
        registry.publish_encoder("demo", 1, FILES)
    monkeypatch.undo()
    assert registry.store.list("") != []
    assert registry.encoders() == []
    with pytest.raises(NotFound):
        registry.files(EncoderRef("demo", 1))
    assert registry.publish_encoder("demo", 1, {"weights": b"different bytes of a second attempt"}) == EncoderRef("demo", 1)
    assert list(registry.files(EncoderRef("demo", 1))) == ["weights"]


def _flips(size: int) -> list[int]:
    return sorted({0, 1, size // 3, size // 2, size - 1})


def test_a_flipped_byte_in_any_file_is_found_and_the_file_is_named(registry: Registry, place: Place):
    release = release_of(registry, 1)
    encoder = registry.publish_encoder("demo", 7, FILES, meta={"note": "ünïcode"})
    registry.promote(release.id)
    loads = {
        "encoders/": lambda: [registry.files(ref) for ref in registry.encoders()],
        "segments/": lambda: [registry.files(ref) for ref in registry.segments()],
        "releases/": registry.releases,
        "channels/": registry.channel,
        "journal/": registry.journal,
    }
    keys = registry.store.list("")
    assert len(keys) == 10 and encoder in registry.encoders()
    for key in keys:
        whole = place.raw(key)
        for at in _flips(len(whole)):
            place.spoil(key, whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            with pytest.raises(Corrupt, match=key.rpartition("/")[2]):
                loads[key.split("/")[0] + "/"]()
        place.spoil(key, whole)
        loads[key.split("/")[0] + "/"]()


def test_a_truncated_and_a_missing_file_are_found(registry: Registry, place: Place):
    ref = registry.publish_encoder("demo", 1, FILES)
    registry.files(ref)
    key = f"{registry.manifest(ref).folder}/weights.safetensors"
    place.spoil(key, b"w" * 999)
    with pytest.raises(Corrupt, match=r"weights\.safetensors"):
        registry.files(ref)
    place.remove(key)
    with pytest.raises(Corrupt, match=r"weights\.safetensors"):
        registry.files(ref)


def test_a_manifest_copied_to_another_version_is_refused(registry: Registry):
    ref = registry.publish_encoder("demo", 1, FILES)
    registry.store.create("encoders/demo/v2/manifest.json", registry.store.read("encoders/demo/v1/manifest.json"))
    with pytest.raises(Corrupt, match=str(ref)):
        registry.manifest(EncoderRef("demo", 2))


def _publish_different(number, barrier, answers, root):
    barrier.wait()
    try:
        open_registry(root).publish_encoder("demo", 1, {"weights": b"%d" % number * 50_000})
        answers.put(number)
    except Exists:
        answers.put(None)


def _publish_next(number, barrier, answers, root):
    barrier.wait()
    answers.put(open_registry(root).publish_encoder("demo", None, {"weights": b"%d" % number}).version)


def test_of_processes_that_publish_one_version_exactly_one_wins(registry: Registry, place: Place):
    winners = [answer for answer in race(_publish_different, place.url) if answer is not None]
    assert len(winners) == 1
    assert registry.files(EncoderRef("demo", 1))["weights"].read_bytes() == b"%d" % winners[0] * 50_000


def test_processes_that_publish_the_next_version_each_get_their_own(registry: Registry, place: Place):
    assert sorted(race(_publish_next, place.url)) == [1, 2, 3, 4]
    for ref in registry.encoders():
        registry.files(ref)


@pytest.mark.parametrize("name", ["../weights", "a/b", ".hidden", ""])
def test_a_file_name_that_could_leave_the_folder_is_refused(registry: Registry, name: str):
    with pytest.raises(RegistryError):
        registry.publish_encoder("demo", 1, {name: b""})
    assert registry.store.list("") == []


def test_bad_versions_and_empty_ones_are_refused(registry: Registry):
    with pytest.raises(RegistryError, match="versions count from 1"):
        registry.publish_encoder("demo", 0, FILES)
    with pytest.raises(RegistryError, match="not a registry key"):
        registry.publish_encoder("../demo", 1, FILES)
    with pytest.raises(RegistryError, match="no files"):
        registry.publish_encoder("demo", 1, {})


# -- releases -------------------------------------------------------------------------------------------------------------


def test_a_release_comes_back_as_it_was(registry: Registry):
    release = release_of(registry, 1, metrics={"recall@1": {"matrix": [[0.5, None]]}}, parent="demo@v9")
    assert release.created
    assert registry.release("demo@v1") == registry.release("release/demo@v1") == release
    assert registry.releases() == registry.releases("demo") == [release] and registry.releases("other") == []
    assert release_from_plain(json.loads(json.dumps(release_to_plain(release)))) == release


def test_a_release_published_again_is_the_first_one_and_a_different_one_is_refused(registry: Registry):
    release = release_of(registry, 1)
    assert registry.publish_release(replace(release, created="", metrics={"new": 1})) == release
    with pytest.raises(Exists, match="policy: reindex there, keep asked"):
        registry.publish_release(replace(release, policy="keep"))


def test_a_release_names_only_what_exists_and_the_true_maker_of_a_segment(registry: Registry):
    release = release_of(registry, 1)
    other = registry.publish_encoder("demo", 2, {"weights": b"other"})
    use = release.segments[0]
    with pytest.raises(NotFound, match="encoder/demo@v8"):
        registry.publish_release(replace(release, id="demo@v2", encoder=EncoderRef("demo", 8)))
    with pytest.raises(NotFound, match="encoder/demo@v8"):
        registry.publish_release(replace(release, id="demo@v2", segments=(replace(use, queried_by=EncoderRef("demo", 8)),)))
    with pytest.raises(NotFound, match="segment/demo@v8"):
        registry.publish_release(replace(release, id="demo@v2", segments=(replace(use, segment=SegmentRef("demo", 8)),)))
    with pytest.raises(Incompatible, match="says that segment/demo@v1 was made by encoder/demo@v2, but encoder/demo@v1 made it"):
        registry.publish_release(replace(release, id="demo@v2", segments=(replace(use, made_by=other),)))
    with pytest.raises(RegistryError, match="the id must be"):
        registry.publish_release(replace(release, id="other@v2"))
    with pytest.raises(NotFound):
        registry.publish_segment("demo", 9, {"v": b""}, made_by=EncoderRef("demo", 8))
    assert registry.releases() == [release]


def test_an_unknown_release_gets_a_suggestion(registry: Registry):
    with pytest.raises(NotFound, match="none is published"):
        registry.release("demo@v1")
    release_of(registry, 1)
    with pytest.raises(NotFound, match=r"known: demo@v1\. Did you mean 'demo@v1'"):
        registry.release("demmo@v1")
    with pytest.raises(RegistryError, match="is not the id of a release"):
        registry.release("demo")


# -- channels -------------------------------------------------------------------------------------------------------------


def test_promote_and_rollback_move_one_pointer_and_leave_a_line_each(registry: Registry):
    one, two, three = (release_of(registry, version) for version in (1, 2, 3))
    assert registry.channel() is None and registry.journal() == []
    for release in (one, two, three):
        assert registry.promote(release.id, by="ann", reason="better") == release
        assert registry.channel() == release
    assert registry.rollback(by="bob") == two == registry.channel()
    assert registry.rollback(by="bob") == one == registry.channel()
    with pytest.raises(NotFound, match="holds demo@v1 and nothing before it"):
        registry.rollback()
    registry.promote(three.id)
    moves = [(entry["number"], entry["action"], entry["before"], entry["release"], entry["by"]) for entry in registry.journal()]
    assert moves == [
        (1, "promote", None, "demo@v1", "ann"),
        (2, "promote", "demo@v1", "demo@v2", "ann"),
        (3, "promote", "demo@v2", "demo@v3", "ann"),
        (4, "rollback", "demo@v3", "demo@v2", "bob"),
        (5, "rollback", "demo@v2", "demo@v1", "bob"),
        (6, "promote", "demo@v1", "demo@v3", "cli"),
    ]


def test_promoting_what_is_live_changes_nothing(registry: Registry):
    release = release_of(registry, 1)
    registry.promote(release.id)
    registry.promote(release.id)
    assert len(registry.journal()) == 1


def test_channels_are_apart(registry: Registry):
    one, two = release_of(registry, 1), release_of(registry, 2)
    registry.promote(one.id)
    registry.promote(two.id, "candidate")
    assert registry.channels() == {"candidate": "demo@v2", "live": "demo@v1"}
    assert registry.channel("candidate") == two and registry.channel("nobody") is None
    with pytest.raises(NotFound, match="never set"):
        registry.rollback("nobody")
    with pytest.raises(RegistryError, match="not a registry key"):
        registry.promote(one.id, "../live")


def test_promotion_looks_at_every_part(registry: Registry, place: Place):
    release = release_of(registry, 1)
    place.remove("segments/demo/v1/manifest.json")
    with pytest.raises(NotFound, match="segment/demo@v1"):
        registry.promote(release.id)
    assert registry.channel() is None
    with pytest.raises(NotFound):
        registry.promote("demo@v5")


def test_a_failed_gate_refuses_with_the_figures_and_force_leaves_its_name_in_the_journal(registry: Registry):
    gates = [
        {"name": "forgetting of task 0", "found": 0.31, "limit": 0.1, "passed": False},
        {"name": "recall against exact search", "found": 0.99, "limit": 0.95, "passed": True},
    ]
    release = release_of(registry, 1, metrics={"gates": gates})
    with pytest.raises(GateRefused, match=r"forgetting of task 0: found 0\.31, limit 0\.1\."):
        registry.promote(release.id)
    assert registry.channel() is None
    registry.promote(release.id, force=True)
    assert registry.journal()[0]["forced"] == ["forgetting of task 0: found 0.31, limit 0.1"]


def test_an_expectation_that_does_not_hold_is_a_conflict(registry: Registry):
    one, two, three = (release_of(registry, version) for version in (1, 2, 3))
    registry.promote(one.id, expected=None)
    registry.promote(two.id, expected="demo@v1")
    with pytest.raises(Conflict, match=r"holds demo@v2, expected demo@v1"):
        registry.promote(three.id, expected="demo@v1")
    with pytest.raises(Conflict, match=r"holds demo@v2, expected nothing"):
        registry.promote(three.id, expected=None)
    assert registry.channel() == two


def _promote(number, barrier, answers, root, expected):
    registry = open_registry(root)
    barrier.wait()
    try:
        answers.put(registry.promote(f"demo@v{number + 2}", by=str(number), **expected).id)
    except Conflict:
        answers.put(None)


def test_of_processes_that_promote_upon_the_same_expectation_exactly_one_wins(registry: Registry, place: Place):
    for version in range(1, 6):
        release_of(registry, version)
    registry.promote("demo@v1")
    winners = [answer for answer in race(_promote, place.url, {"expected": "demo@v1"}) if answer is not None]
    assert len(winners) == 1 and registry.channel().id == winners[0]
    assert [entry["release"] for entry in registry.journal()] == ["demo@v1", winners[0]]


def test_processes_that_promote_without_an_expectation_come_one_after_the_other(registry: Registry, place: Place):
    for version in range(1, 6):
        release_of(registry, version)
    assert sorted(race(_promote, place.url, {})) == ["demo@v2", "demo@v3", "demo@v4", "demo@v5"]
    journal = registry.journal()
    assert [entry["number"] for entry in journal] == [1, 2, 3, 4]
    assert [entry["before"] for entry in journal] == [None, *(entry["release"] for entry in journal[:-1])]
    assert registry.channel().id == journal[-1]["release"]


def test_a_rollback_that_lost_a_race_is_a_conflict(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    for version in (1, 2, 3):
        release_of(registry, version)
    registry.promote("demo@v1")
    registry.promote("demo@v2")
    swap = type(registry.store).swap_pointer

    def someone_was_faster(self, key, data, expected):
        monkeypatch.undo()
        Registry(self).promote("demo@v3")
        return swap(self, key, data, expected)

    monkeypatch.setattr(type(registry.store), "swap_pointer", someone_was_faster)
    with pytest.raises(Conflict, match="moved by someone else"):
        registry.rollback()
    assert registry.channel().id == "demo@v3"


def _promote_and_die(number, barrier, answers, root):
    registry = open_registry(root)
    barrier.wait()
    if number == 0:
        registry._channels._record = lambda *_: answers.put("died") or os._exit(0)  # after the swap, before the journal
        registry.promote("demo@v1")
    answers.put("idle")


def test_a_process_that_dies_between_the_swap_and_the_journal_leaves_no_gap(registry: Registry, place: Place):
    release_of(registry, 1)
    release_of(registry, 2)
    assert "died" in race(_promote_and_die, place.url)
    assert registry.channel().id == "demo@v1" and registry.store.list("journal/") == []
    registry.promote("demo@v2")
    assert len(registry.store.list("journal/")) == 2
    assert [entry["release"] for entry in registry.journal()] == ["demo@v1", "demo@v2"]
