"""The store on S3 where it differs from a folder: answers that are lost, large files, the cache, servers that do not keep their word."""

import dataclasses
import json
import logging
import threading
from pathlib import Path

import pytest
from places import Bucket
from s3_server import ENVIRONMENT, S3Server

from perdure.config import parse
from perdure.errors import ConfigError, Conflict, Corrupt, Exists, NotFound, PerdureError, RegistryError
from perdure.records import EncoderRef, Release, SegmentUse
from perdure.registry import Registry, Store, open_store, s3_store
from perdure.settings import settings


@pytest.fixture
def store(bucket: Bucket) -> Store:
    """A store whose self-test is done, so that faults meet what a test asks of it."""
    store = bucket.open()
    store.create("begun", b"")
    return store


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Files from 6 MiB on go in parts of 5 MiB, the smallest that S3 takes."""
    monkeypatch.setattr(s3_store, "MULTIPART_BYTES", 6 * 2**20)
    monkeypatch.setattr(s3_store, "PART_BYTES", 5 * 2**20)
    return 6 * 2**20


def uploads(bucket: Bucket) -> list[str]:
    found = bucket.client.list_multipart_uploads(Bucket="tests").get("Uploads", [])
    return [upload["Key"] for upload in found if upload["Key"].startswith(bucket.prefix)]


# -- answers that are lost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (409, "ConditionalRequestConflict")])
def test_what_the_server_asks_to_try_again_is_tried_again(store: Store, bucket: Bucket, s3: S3Server, status: int, code: str):
    s3.fault("answer", at=bucket.prefix, status=status, code=code, times=2)
    store.create("k", b"bytes")
    tag = store.swap_pointer("p", b"1", None)
    s3.fault("answer", at=bucket.prefix, status=status, code=code, times=2)
    store.swap_pointer("p", b"2", tag)
    assert [fault["met"] for fault in s3.heal()] == [2, 2]
    assert store.read("k") == b"bytes" and store.read("p") == b"2"


def test_a_create_whose_answer_was_lost_does_not_take_itself_for_another(store: Store, bucket: Bucket, s3: S3Server):
    s3.fault("lose", at=bucket.prefix, times=1)
    store.create("k", b"ours")
    assert s3.heal()[0]["met"] == 1
    with pytest.raises(Exists):
        store.create("k", b"ours")


def test_a_swap_whose_answer_was_lost_gives_the_tag_that_it_made(store: Store, bucket: Bucket, s3: S3Server):
    first = store.swap_pointer("p", b"1", None)
    s3.fault("lose", at=bucket.prefix, times=1)
    second = store.swap_pointer("p", b"2", first)
    assert store.read_pointer("p") == (b"2", second)
    with pytest.raises(Conflict):
        store.swap_pointer("p", b"2", first)


def test_the_same_bytes_by_another_writer_are_not_ours(store: Store, bucket: Bucket, s3: S3Server):
    """The first try comes to nothing; before the second, somebody else creates the key with what would have been ours."""
    s3.fault("answer", at=bucket.prefix, status=500, code="InternalError", times=1, hold=True)
    outcomes: list[type] = []

    def create() -> None:
        try:
            store.create("k", b"same")
        except RegistryError as error:
            outcomes.append(type(error))

    thread = threading.Thread(target=create)
    thread.start()
    s3.wait_until_met()
    bucket.open().create("k", b"same")
    s3.let_go()
    thread.join(60)
    assert outcomes == [Exists]


def release(registry: Registry, version: int) -> Release:
    encoder = registry.publish_encoder("demo", version, {"weights": b"%d" % version})
    segment = registry.publish_segment("demo", version, {"vectors": b"%d" % version}, made_by=encoder)
    use = SegmentUse(segment, encoder, encoder)
    return registry.publish_release(Release(f"demo@v{version}", "demo", version - 1, "reindex", "raw", encoder, (use,)))


def test_a_promotion_that_won_unseen_and_was_moved_on_from_is_told_as_won(bucket: Bucket, s3: S3Server):
    registry, other = Registry(bucket.open()), Registry(bucket.open())
    for version in (1, 2, 3):
        release(registry, version)
    registry.promote("demo@v1")
    s3.fault("lose", at="channels/", times=1, hold=True)
    promoted: list[Release] = []
    thread = threading.Thread(target=lambda: promoted.append(registry.promote("demo@v2", expected="demo@v1", by="ann")))
    thread.start()
    s3.wait_until_met()
    while other.channel().id != "demo@v2":
        assert thread.is_alive()
    other.promote("demo@v3", expected="demo@v2", by="bob")
    s3.let_go()
    thread.join(60)
    assert [each.id for each in promoted] == ["demo@v2"] and registry.channel().id == "demo@v3"
    assert [(entry["number"], entry["release"], entry["by"]) for entry in registry.journal()] == [
        (1, "demo@v1", "cli"),
        (2, "demo@v2", "ann"),
        (3, "demo@v3", "bob"),
    ]


def test_a_body_that_breaks_off_is_asked_for_again(store: Store, bucket: Bucket, s3: S3Server):
    store.create("a/k", b"0123456789" * 1000)
    s3.fault("truncate", at="a/k", method="GET", bytes=4321, times=2)
    assert store.read("a/k") == b"0123456789" * 1000
    s3.fault("truncate", at="a/k", method="GET", bytes=4321, times=2)
    assert store.fetch("a/k").read_bytes() == b"0123456789" * 1000
    assert [fault["met"] for fault in s3.heal()] == [2, 2]
    s3.fault("truncate", at="a/k", method="GET", bytes=4321)
    with pytest.raises(RegistryError, match=r"cannot read 'a/k'.*breaks off"):
        store.read("a/k")


# -- large files ----------------------------------------------------------------------------------------------------------


def test_a_large_file_goes_and_comes_in_parts(store: Store, bucket: Bucket, s3: S3Server, small_parts: int, tmp_path: Path):
    data = bytes(range(256)) * (small_parts // 128 + 1)
    (tmp_path / "large").write_bytes(data)
    s3.fault("truncate", at="/file", method="GET", bytes=1000, times=2)  # of two of its parts; they alone are asked for again
    for key, what in (("a/file", tmp_path / "large"), ("a/bytes", data)):
        store.create(key, what)
        assert bucket.client.head_object(Bucket="tests", Key=f"{bucket.prefix}/{key}")["ETag"].endswith('-3"')
        assert store.fetch(key).read_bytes() == data
        with pytest.raises(Exists):
            store.create(key, what)
    assert s3.heal()[0]["met"] == 2 and uploads(bucket) == []


@pytest.mark.parametrize("size", [0, 1, 6, 7, 8, 14, 15])
def test_parts_that_are_fetched_make_the_whole(store: Store, monkeypatch: pytest.MonkeyPatch, size: int):
    monkeypatch.setattr(s3_store, "PART_BYTES", 7)
    store.create("a/k", bytes(range(size)))
    assert store.fetch("a/k").read_bytes() == bytes(range(size))


def test_of_two_large_files_at_once_the_completion_decides(store: Store, bucket: Bucket, s3: S3Server, small_parts: int):
    """The second looks, finds nothing, sends its parts, and is refused at the end; nothing of it stays."""
    s3.fault("answer", at="/k", method="HEAD", status=404, code="", times=1)
    bucket.open().create("k", b"first")
    with pytest.raises(Exists):
        store.create("k", b"x" * small_parts)
    assert store.read("k") == b"first" and uploads(bucket) == []


def test_a_large_file_whose_completion_was_not_answered_is_ours(store: Store, bucket: Bucket, s3: S3Server, small_parts: int):
    s3.fault("lose", at="/k", method="POST", query="uploadId", times=1)
    s3.fault("answer", at="/k", method="POST", query="uploadId", times=1, status=404, code="NoSuchUpload")  # it is over: to the second try
    store.create("k", b"x" * small_parts)
    assert [fault["met"] for fault in s3.heal()] == [1, 1] and len(store.read("k")) == small_parts and uploads(bucket) == []


def test_a_large_file_that_cannot_be_sent_leaves_no_parts(store: Store, bucket: Bucket, s3: S3Server, small_parts: int):
    s3.fault("answer", at="/k", query="partNumber=2", status=403, code="AccessDenied")
    with pytest.raises(RegistryError, match=r"does not allow it \(AccessDenied\).*s3:PutObject"):
        store.create("k", b"x" * small_parts)
    assert uploads(bucket) == [] and store.list("") == ["begun"]


def test_a_listing_has_every_page(store: Store, monkeypatch: pytest.MonkeyPatch):
    keys = [f"many/{number:02d}" for number in range(11)]
    for key in keys:
        store.create(key, b"")
    monkeypatch.setattr(s3_store, "PAGE_KEYS", 4)
    assert store.list("many/") == keys


# -- the cache ------------------------------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once_and_a_spoilt_copy_again(store: Store, s3: S3Server):
    store.create("a/k", b"bytes")
    path = store.fetch("a/k")
    assert path.is_relative_to(settings().cache)
    s3.fault("answer", at="a/k", method="GET", status=500, code="InternalError")
    assert store.fetch("a/k") == path
    s3.heal()
    path.write_bytes(b"bYtes")
    assert store.fetch("a/k") == path and path.read_bytes() == b"bytes"
    path.unlink()
    assert store.fetch("a/k").read_bytes() == b"bytes"
    assert [each.name for each in path.parents[2].glob("tmp/*")] == []


def test_damage_on_the_server_is_found_also_beside_a_good_copy(store: Store, bucket: Bucket):
    store.create("a/k", b"bytes")
    path = store.fetch("a/k")
    bucket.spoil("a/k", b"bYtes")
    for ask in (store.fetch, store.read):
        with pytest.raises(Corrupt, match="'a/k' is damaged"):
            ask("a/k")
    assert path.read_bytes() == b"bytes"
    bucket.remove("a/k")
    with pytest.raises(NotFound):
        store.fetch("a/k")


def test_an_object_that_was_copied_here_by_another_tool_is_read(store: Store, bucket: Bucket):
    bucket.client.put_object(Bucket="tests", Key=f"{bucket.prefix}/a/k", Body=b"bytes")
    bucket.client.put_object(Bucket="tests", Key=f"{bucket.prefix}/a/", Body=b"")  # what consoles make of a folder
    assert store.read("a/k") == store.fetch("a/k").read_bytes() == b"bytes"
    assert store.list("a/") == ["a/k"]


def test_a_cache_that_cannot_be_written_is_a_clear_error(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("where a folder is needed")
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "file"))
    with pytest.raises(RegistryError, match=r"no copy of 'begun' can be kept.*PERDURE_CACHE"):
        store.fetch("begun")


# -- the self-test --------------------------------------------------------------------------------------------------------


@pytest.fixture
def untested(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not written yet."""
    monkeypatch.setattr(s3_store, "_tested", set())


@pytest.mark.usefixtures("untested")
@pytest.mark.parametrize(
    ("fault", "method", "query", "why"),
    [
        ({"do": "forget", "header": "If-None-Match"}, "PUT", "", "replaced the first"),
        ({"do": "forget", "header": "If-None-Match"}, "POST", "uploadId", "not for files sent in parts"),
        ({"do": "forget", "header": "If-Match"}, "PUT", "", "outdated 'If-Match' was taken"),
        ({"do": "answer", "status": 501, "code": "NotImplemented"}, "PUT", "", r"does not know conditional writes \(NotImplemented\)"),
        ({"do": "mangle"}, "PUT", "", "bytes came back different"),
    ],
)
def test_a_server_that_does_not_keep_its_word_is_not_written_to(
    bucket: Bucket, s3: S3Server, fault: dict, method: str, query: str, why: str
):
    store = bucket.open()
    s3.fault(at=bucket.prefix, method=method, query=query, **fault)
    for write in (lambda: store.create("k", b""), lambda: store.swap_pointer("p", b"", None)):
        with pytest.raises(RegistryError, match=f"is not written to.*{why}.*Use AWS S3"):
            write()
    assert s3.heal()[0]["met"] > 0
    assert "Contents" not in bucket.client.list_objects_v2(Bucket="tests", Prefix=bucket.prefix) and uploads(bucket) == []
    store.create("k", b"")  # what is healed is tried again


@pytest.mark.usefixtures("untested")
def test_the_self_test_runs_once_leaves_nothing_and_reading_does_without(bucket: Bucket, s3: S3Server):
    s3.fault("answer", at=".self-test", status=503, code="SlowDown", times=0)
    store = bucket.open()
    assert store.list("") == []
    with pytest.raises(NotFound):
        store.read("k")
    s3.fault("answer", at=".self-test", status=409, code="OperationAborted", times=0)
    store.create("a", b"")
    s3.fault("answer", at=".self-test", status=403, code="AccessDenied")
    store.create("b", b"")
    bucket.open().swap_pointer("p", b"", None)
    assert s3.heal()[-1]["met"] == 0
    entries = bucket.client.list_objects_v2(Bucket="tests", Prefix=bucket.prefix)["Contents"]
    assert [entry["Key"].rpartition("/")[2] for entry in entries] == ["a", "b", "p"]


@pytest.mark.usefixtures("untested")
def test_answers_that_are_lost_do_not_make_a_good_server_unfit(bucket: Bucket, s3: S3Server):
    s3.fault("lose", at=".self-test", times=1)  # of the first write
    s3.fault("answer", at=".self-test", status=409, code="ConditionalRequestConflict", times=1)  # as its first try is under way still
    bucket.open().create("a", b"")
    assert [fault["met"] for fault in s3.heal()] == [1, 1]


@pytest.mark.usefixtures("untested")
def test_without_the_right_to_delete_what_it_leaves_is_no_key(bucket: Bucket, s3: S3Server):
    s3.fault("answer", at=".self-test", method="DELETE", status=403, code="AccessDenied")
    store = bucket.open()
    store.create("a", b"")
    assert store.list("") == ["a"]


# -- what a user can get wrong --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_does_not_exist():
    store = open_store("s3://no-such-bucket/prefix")
    for ask in (lambda: store.read("k"), lambda: store.list(""), lambda: store.create("k", b"")):
        with pytest.raises(RegistryError, match=r"has no bucket 'no-such-bucket'; create it") as caught:
            ask()
        assert not isinstance(caught.value, NotFound)


def test_no_credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(RegistryError, match="no S3 credentials; set AWS_ACCESS_KEY_ID"):
        open_store("s3://tests/x").read("k")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(RegistryError, match=r"ProfileNotFound.*AWS_PROFILE"):
        open_store("s3://tests/x").read("k")


def test_credentials_that_are_not_taken(store: Store, bucket: Bucket, s3: S3Server):
    s3.fault("answer", at=bucket.prefix, method="GET", status=403, code="InvalidAccessKeyId")
    with pytest.raises(RegistryError, match=r"does not take the environment's credentials \(InvalidAccessKeyId\)"):
        store.read("k")


@pytest.mark.usefixtures("s3")
def test_an_endpoint_that_does_not_answer_or_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://ann:hunter2@127.0.0.1:9")
    with pytest.raises(RegistryError, match=r"http://127\.0\.0\.1:9 gave no answer.*AWS_ENDPOINT_URL_S3") as caught:
        open_store("s3://tests/x").read("k")
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "nonsense")
    with pytest.raises(RegistryError, match="is not a URL; set AWS_ENDPOINT_URL_S3"):
        open_store("s3://tests/x").read("k")


@pytest.mark.parametrize(
    "url",
    ["s3://AKIAX:hunter2@bucket/prefix", "s3://AKIAX:hun/ter2@bucket", "s3://bucket/prefix?secret_key=hunter2", "s3://bucket#hunter2"],
)
def test_a_url_with_credentials_is_refused_and_not_shown(url: str):
    with pytest.raises(RegistryError, match="put AWS_ACCESS_KEY_ID") as caught:
        open_store(url)
    with pytest.raises(ConfigError, match="credentials belong into the environment") as in_config:
        parse({"registry": url})
    for shown in (caught, in_config):
        assert "ter2" not in f"{shown.value} {shown.value.__cause__} {shown.value.__context__}"


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "s3://b", "s3://bucket/../up", "s3://bucket/a//b"])
def test_a_url_that_names_no_place_is_refused(url: str):
    with pytest.raises(RegistryError):
        open_store(url)


def test_no_secret_is_in_what_is_written_logged_or_shown(bucket: Bucket, s3: S3Server, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    registry = Registry(bucket.open())
    registry.promote(release(registry, 1).id)
    s3.fault("answer", at=bucket.prefix, method="GET", status=400, code="Strange")
    with pytest.raises(PerdureError, match="answered 400 Strange") as caught:
        registry.journal()
    s3.heal()
    stored = b"".join(bucket.raw(key) for key in registry.store.list(""))
    manifest = json.dumps(dataclasses.asdict(registry.manifest(EncoderRef("demo", 1))))
    everything = f"{stored!r} {manifest} {caplog.text} {registry.store!r} {caught.value}"
    assert ENVIRONMENT["AWS_SECRET_ACCESS_KEY"] not in everything and ENVIRONMENT["AWS_ACCESS_KEY_ID"] not in everything
    assert repr(registry.store) == f"S3Store('{bucket.url}')"
