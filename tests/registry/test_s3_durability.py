"""A server that is killed with -9 while processes publish and promote: what was acknowledged stays, what was not does not half exist."""

import json
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from ministack import Ministack
from s3_server import ENVIRONMENT

from perdure.errors import Conflict, Corrupt, Exists, NotFound, RegistryError
from perdure.records import EncoderRef, Release, SegmentUse
from perdure.registry import Registry, open_registry, s3_store

URL = "s3://durable/registry"
WRITERS = 2
KILLS = 4


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ministack]:
    server = Ministack(tmp_path / "disk")
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL_S3": server.endpoint}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3_store, "MULTIPART_BYTES", 6 * 2**20)
    server.start()
    yield server
    server.end()


def publish_and_promote(registry: Registry, run: str, version: int) -> str:
    """A release of its own, live at least for a moment; its id. Repeated after a failure, it goes on where it was."""
    large = {"codes": bytes([version % 256]) * 6 * 2**20} if version % 4 == 0 else {}
    encoder = registry.publish_encoder(run, version, {"weights": f"{run} {version}".encode() * 1000, **large})
    segment = registry.publish_segment(run, version, {"vectors": f"{run} {version}".encode() * 500}, made_by=encoder)
    use = SegmentUse(segment, encoder, encoder)
    release = registry.publish_release(Release(f"{run}@v{version}", run, 0, "reindex", "raw", encoder, (use,)))
    return registry.promote(release.id, by=run).id


def write(run: str, acknowledged: Path, stop: object) -> None:
    """Version after version; one that failed for want of a server is done again."""
    version = 1
    with acknowledged.open("w") as file:
        while not stop.is_set():
            try:
                release = publish_and_promote(open_registry(URL), run, version)
            except (Conflict, Corrupt, Exists, NotFound):
                raise  # of an error that is not the server's absence
            except RegistryError:
                time.sleep(0.1)
                continue
            print(json.dumps({"release": release, "version": version}), file=file, flush=True)
            version += 1


def acknowledged(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def look(registry: Registry) -> int:
    """Read everything that can be seen; how many versions that was. Corrupt, if one is not whole."""
    refs = [*registry.encoders(), *registry.segments()]
    for ref in refs:
        registry.files(ref)
    registry.releases()
    return len(refs)


def test_nothing_acknowledged_is_lost_and_nothing_is_seen_half(server: Ministack, tmp_path: Path) -> None:
    boto3.client("s3").create_bucket(Bucket="durable")
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    logs = {f"w{number}": tmp_path / f"w{number}" for number in range(WRITERS)}
    writers = [context.Process(target=write, args=(run, path, stop)) for run, path in logs.items()]
    for writer in writers:
        writer.start()
    looks = 0
    for number in range(KILLS):
        before = {run: len(acknowledged(path)) for run, path in logs.items()}
        deadline = time.monotonic() + 120
        while any(len(acknowledged(path)) < before[run] + 2 for run, path in logs.items()):
            assert all(writer.is_alive() for writer in writers) and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.037 * number)  # not always the same moment after an acknowledgement
        server.kill()
        server.start()
        looks += look(open_registry(URL))  # while the writers go on
    stop.set()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * WRITERS

    server.kill()
    server.start()
    registry = open_registry(URL)
    assert look(registry) >= 2 * WRITERS * KILLS and looks > 0
    journal = registry.journal()
    assert [entry["number"] for entry in journal] == list(range(1, len(journal) + 1))
    assert [entry["before"] for entry in journal] == [None, *(entry["release"] for entry in journal[:-1])]
    assert registry.channel().id == journal[-1]["release"]
    for run, path in logs.items():
        done = acknowledged(path)
        assert len(done) >= 2 * KILLS and {entry["release"] for entry in done} <= {entry["release"] for entry in journal}
        for entry in done:
            files = registry.files(EncoderRef(run, int(entry["version"])))
            assert files["weights"].read_bytes() == f"{run} {entry['version']}".encode() * 1000
