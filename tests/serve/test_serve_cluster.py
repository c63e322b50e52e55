"""The same claims on a real local Ray with Serve, in both topologies; and what only a real cluster can show."""

import base64
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from channel_suite import ChannelSuite
from conftest import Gallery
from ports import free_port
from query_suite import QuerySuite
from serving_suite import ApiSuite, Server, assert_problem, ids, wait
from writing_suite import delete, item, shown, upsert

from serve.run import Running, start, stop
from serve.schemas import DeploymentArgs, ServeArgs

pytestmark = pytest.mark.cluster


def few_cpus(folder: Path, topology: str, **more: Any) -> ServeArgs:
    small = DeploymentArgs(num_cpus=0.1)
    return ServeArgs(
        registry=str(folder),
        topology=topology,  # type: ignore[arg-type]
        poll_s=0.1,
        max_body_bytes=2**20,
        gateway=small,
        encoder=small,
        shard=small,
        **more,
    )


@pytest.fixture(scope="class")
def started(
    request: pytest.FixtureRequest, ray_session: None, tmp_path_factory: pytest.TempPathFactory, _published: Gallery
) -> Iterator[tuple[Running, Gallery, Path]]:
    import shutil

    scratch = tmp_path_factory.mktemp("cluster")
    folder = scratch / "registry"
    shutil.copytree(_published.folder, folder)
    gallery = Gallery(folder, _published.items, _published.pictures)
    running = start(few_cpus(folder, request.cls.topology), free_port(), wait_s=120)
    yield running, gallery, scratch
    stop(running)


@pytest.fixture
def server(started: tuple[Running, Gallery, Path], tmp_path: Path) -> Iterator[Server]:
    running, gallery, _ = started
    with httpx.Client(base_url=running.url, timeout=60) as client:
        yield Server(client, gallery, tmp_path, lambda: httpx.Client(base_url=running.url, timeout=60))


def p50_ms(server: Server) -> float:
    times: list[float] = []
    for _ in range(100):
        began = time.perf_counter()
        assert server.search(text="a red circle").status_code == 200
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


class TestFused(ApiSuite, QuerySuite, ChannelSuite):
    topology = "fused"

    def test_latency_is_recorded(self, server: Server, record_property: Any) -> None:
        record_property("p50_ms", p50_ms(server))
        print(f"fused: p50 {p50_ms(server):.1f} ms, {server.search(text='a red circle').json()['timings_ms']}")


class TestSharded(ApiSuite, QuerySuite, ChannelSuite):
    topology = "sharded"

    def test_latency_is_recorded(self, server: Server, record_property: Any) -> None:
        record_property("p50_ms", p50_ms(server))
        print(f"sharded: p50 {p50_ms(server):.1f} ms, {server.search(text='a red circle').json()['timings_ms']}")

    def test_every_replica_is_measured_through_ray(self, server: Server) -> None:
        import ray

        (node,) = ray.nodes()
        address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
        wanted = (
            "ray_perdure_searches_total{",
            "ray_perdure_shard_seconds_count{",
            "ray_perdure_encode_seconds_count{",
            "ray_perdure_ready{",
        )
        deadline = time.monotonic() + 90  # replicas report every few seconds
        while not all(name in (text := httpx.get(address, timeout=30).text) for name in wanted):
            assert time.monotonic() < deadline, [line for line in text.splitlines() if "perdure" in line and "#" not in line][:30]
            assert server.search(text="a red circle").status_code == 200
            time.sleep(0.5)
        shards = {shard for shard in ("0", "1") if f'shard="{shard}"' in text}
        assert shards == {"0", "1"} and 'release="demo@v1"' in text and 'version="v1"' in text

    @pytest.mark.parametrize("deployment", ["Shard-0", "Encoder"])
    def test_a_killed_replica_loses_no_request(self, server: Server, deployment: str) -> None:
        import ray

        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if f"#{deployment}#" in actor["name"]]
        assert len(names) == 1, names
        picture = base64.b64encode(server.gallery.pictures[0]).decode()  # texts do not need the encoder
        body = {"image": picture, "k": 30} if deployment == "Encoder" else {"text": "a red circle", "k": 30}
        everything = ids(server.search(**body))
        answers: list[httpx.Response] = []
        stop_asking = threading.Event()

        def ask() -> None:
            with server.new_client() as client:
                while not stop_asking.is_set():
                    answers.append(client.post("/v1/search", json=body))

        asker = threading.Thread(target=ask)
        asker.start()
        time.sleep(0.3)
        ray.kill(ray.get_actor(names[0], namespace="serve"))
        before = len(answers)
        deadline = time.monotonic() + 60
        while len(answers) < before + 20 and time.monotonic() < deadline:
            time.sleep(0.1)
        stop_asking.set()
        asker.join(60)
        assert len(answers) >= before + 20
        assert [answer.status_code for answer in answers if answer.status_code != 200] == []
        assert all(ids(answer) == everything for answer in answers)


@pytest.mark.parametrize("topology", ["fused", "sharded"])
def test_an_empty_registry_is_alive_and_becomes_ready_when_a_release_is_promoted(
    ray_session: None, gallery: Gallery, tmp_path: Path, topology: str
) -> None:
    later = tmp_path / "later"
    running = start(few_cpus(later, topology), free_port(), must_be_ready=False, wait_s=120)
    try:
        with httpx.Client(base_url=running.url, timeout=60) as client:
            assert client.get("/healthz").json() == {"status": "ok"}
            assert_problem(client.get("/readyz"), 503, "points to no release")
            assert_problem(client.post("/v1/search", json={"text": "a"}), 503, "points to no release")
            os.rename(gallery.folder, later)
            deadline = time.monotonic() + 60
            while client.get("/readyz").status_code != 200 and time.monotonic() < deadline:
                time.sleep(0.1)
            assert client.post("/v1/search", json={"text": "a"}).json()["release"] == "demo@v1"
    finally:
        stop(running)


@contextlib.contextmanager
def script(registry: Path, port: int, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """`serve/run.py` as a process with a Ray of its own, killed when the block ends."""
    environment = {**os.environ, "RAY_TMPDIR": "", "RAY_ADDRESS": "", "RAY_AUTH_MODE": "disabled"}
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parents[2] / "serve" / "run.py"), "--registry", str(registry), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={name: value for name, value in environment.items() if value},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_script_serves_until_it_is_told_to_stop(gallery: Gallery, tmp_path: Path) -> None:
    port = free_port()
    with script(gallery.folder, port, tmp_path) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert f"http://127.0.0.1:{port}/" in first, first + (process.stderr.read() if process.stderr else "")
        assert httpx.post(f"http://127.0.0.1:{port}/v1/search", json={"text": "a"}, timeout=30).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/healthz")


def test_the_script_can_be_told_to_stop_while_it_starts(gallery: Gallery, tmp_path: Path) -> None:
    with script(gallery.folder, free_port(), tmp_path) as process:
        assert process.stderr is not None
        said = ""
        while "Started Serve" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 0 and "stopped before it was up" in rest, rest


class Written:
    """Writes through real replicas, on a gallery of their own; the other claims about them are made in one process."""

    def test_a_write_is_found_and_a_deletion_is_not(self, server: Server, record_property: Any) -> None:
        before = ids(server.search(text="a red circle", k=100))
        began = time.monotonic()
        told = upsert(server, item(0), item(1))
        wait(lambda: {"new/0.png", "new/1.png"} <= set(ids(server.search(text="a red circle", k=100))))
        record_property("visible_s", time.monotonic() - began)
        print(f"visible after {time.monotonic() - began:.2f} s, acknowledged as edit {told['edit']}")
        shown(server, delete(server, "new/0.png", "new/1.png")["edit"])
        assert ids(server.search(text="a red circle", k=100)) == before


class TestWrittenFused(Written):
    topology = "fused"


class TestWrittenSharded(Written):
    topology = "sharded"
