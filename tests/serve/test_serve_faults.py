"""Faults under load, on a real local Ray with Serve: requests come at a fixed rate, whatever happens, and each is accounted for.

Wrong, mixed and lost are zero everywhere; failed are those that a full queue refuses, and no others. The rate is about half of what the
service can do on this machine.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from conftest import Gallery
from open_loop import TEXTS, Asker, K, Load, Truth, capacity, open_loop
from ports import free_port
from ray_processes import ray_processes

from serve.run import APP, start, stop
from serve.schemas import DeploymentArgs, ServeArgs

pytestmark = pytest.mark.cluster

T = TypeVar("T")

V1, V2 = "demo@v1", "demo@v2"
REQUESTS = 2000
PATIENCE_S = 200.0
MOST_PER_S = 100.0
QUIET_S = 2.0  # of load before the fault


@dataclass(frozen=True)
class Service:
    """An application that runs, and what is right of what it answers."""

    url: str
    folder: Path
    args: ServeArgs
    truth: Truth
    per_s: float = 0.0  # half of what it can do, or less


def arguments(folder: Path, topology: str, gateway: DeploymentArgs) -> ServeArgs:
    two = DeploymentArgs(num_replicas=2, num_cpus=0.1)
    return ServeArgs(
        registry=str(folder),
        topology=topology,  # type: ignore[arg-type]
        poll_s=0.1,
        retire_after_s=4.0,
        second_call_after_s=0.5,
        health_check_timeout_s=5.0,
        texts_in_gateway=False,  # so that every question needs every replica
        gateway=gateway,
        encoder=two,
        shard=two,
    )


@pytest.fixture(scope="class")
def service(
    request: pytest.FixtureRequest, ray_session: None, tmp_path_factory: pytest.TempPathFactory, _published: Gallery
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("faults") / "registry"
    shutil.copytree(_published.folder, folder)
    assert request.cls is not None
    truth = Truth(Gallery(folder, _published.items, _published.pictures), V1, V2)
    args = arguments(folder, request.cls.topology, request.cls.gateway)
    running = start(args, free_port(), wait_s=PATIENCE_S)
    service = Service(running.url, folder, args, truth)
    per_s = min(MOST_PER_S, able(service) / 2)
    yield replace(service, per_s=per_s)
    stop(running)


def able(service: Service, queries: int = 1) -> float:
    """Requests a second that it can answer."""

    async def measured() -> float:
        async with Asker(service.url, timeout_s=60) as client:
            return await capacity(lambda number: asked(client, service.truth, number, queries))

    return asyncio.run(measured())


@pytest.fixture(autouse=True)
def _whole_before_and_after(service: Service) -> Iterator[None]:
    for deployment in deployments(service.args):
        wait_until_whole(service, deployment)
    yield
    assert httpx.post(f"{service.url}/v1/search", json={"text": "a red circle"}, timeout=30).json()["release"] == V1


def deployments(args: ServeArgs) -> dict[str, int]:
    """Their names, and how many replicas each has."""
    if args.topology == "fused":
        return {"Gateway": args.gateway.num_replicas}
    shards = {f"Shard-{number}": args.shard.num_replicas for number in range(args.shards)}
    return {"Gateway": args.gateway.num_replicas, "Encoder": args.encoder.num_replicas, **shards}


def processes(deployment: str) -> list[int]:
    return ray_processes(f"ServeReplica:{APP}:{deployment}", of=os.getpid())


def wait_until_whole(service: Service, deployment: str, without: int = 0) -> None:
    """Until a deployment has all its replicas, none of which is process `without`."""
    from ray import serve

    num = deployments(service.args)[deployment]
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found, states = processes(deployment), serve.status().applications[APP].deployments[deployment].replica_states
        if without not in found and len(found) == num and {str(state): count for state, count in states.items()} == {"RUNNING": num}:
            return
        assert time.monotonic() < deadline, (deployment, found, without, states)
        time.sleep(0.1)


def under_load(
    service: Service, fault: Callable[[], T], *, per_s: float = 0.0, requests: int = REQUESTS, queries: int = 1
) -> tuple[Load, T]:
    """Ask so many times a second, each time one query or a batch, while the fault takes its course on a thread."""

    async def scenario() -> tuple[Load, T]:
        async with Asker(service.url, timeout_s=120) as client:

            def ask(number: int) -> Awaitable[str]:
                return asked(client, service.truth, number, queries)

            return await open_loop(ask, per_s=per_s or service.per_s, requests=requests, meanwhile=asyncio.to_thread(fault))

    return asyncio.run(scenario())


async def asked(client: Asker, truth: Truth, number: int, queries: int) -> str:
    texts = [TEXTS[(number + query) % len(TEXTS)] for query in range(queries)]
    bodies = [{"text": text, "k": K} for text in texts]
    if queries == 1:
        return truth.of(await client.post("/v1/search", bodies[0]), *texts)
    return truth.of(await client.post("/v1/search/batch", {"queries": bodies}), *texts)


def told(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with capsys.disabled():
        print(f"\n{line}", end="")


def all_right(load: Load) -> bool:
    return load.counts(0) == {"right": len(load.came)} and len(load.came) >= REQUESTS


def killed(service: Service, deployment: str) -> float:
    """SIGKILL of one replica's process; the seconds until there is another one in its place."""
    time.sleep(QUIET_S)
    victim = processes(deployment)[0]
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    wait_until_whole(service, deployment, without=victim)
    return time.monotonic() - began


def stopped(service: Service, deployment: str) -> float:
    """SIGSTOP of one replica's process; the seconds until there is another one in its place."""
    time.sleep(QUIET_S)
    victim = processes(deployment)[0]
    began = time.monotonic()
    os.kill(victim, signal.SIGSTOP)
    try:
        wait_until_whole(service, deployment, without=victim)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)
    return time.monotonic() - began


def moved(service: Service, times: int = 10) -> int:
    """Promote and roll back in turn, each once the move before is seen everywhere; the number of moves."""
    with httpx.Client(base_url=service.url, timeout=60) as client:
        for number in range(times):
            release, path = [(V2, f"/v1/releases/{V2}/promote"), (V1, "/v1/rollback")][number % 2]
            answer = client.post(path)
            assert answer.status_code == 200, answer.text
            wait_for_state(client, lambda state, now=release: state["serving"] == now)
            time.sleep(1.0)
    return times


def wait_for_state(client: httpx.Client, true_of: Callable[[dict[str, object]], bool]) -> float:
    """Until something is true of `/readyz`, also of that of another gateway; how many seconds it took."""
    began, in_a_row = time.monotonic(), 0
    while in_a_row < 8:
        answer = client.get("/readyz")
        assert answer.status_code == 200, answer.text
        in_a_row = in_a_row + 1 if true_of(answer.json()) else 0
        assert time.monotonic() - began < PATIENCE_S, answer.text
        time.sleep(0.02)
    return time.monotonic() - began


class TestSharded:
    """An encoder and two shards, each of them twice, behind a gateway."""

    topology = "sharded"
    gateway = DeploymentArgs(num_cpus=0.1, max_ongoing_requests=64)

    @pytest.mark.parametrize("deployment", ["Encoder", "Shard-0"])
    def test_a_killed_replica_costs_no_answer(self, service: Service, deployment: str, capsys: pytest.CaptureFixture[str]) -> None:
        load, whole_s = under_load(service, lambda: killed(service, deployment))
        told(capsys, load.line(f"{deployment} killed", whole_after=f"{whole_s:.1f} s"))
        assert all_right(load), load.counts()
        assert load.times()[-1] < service.args.request_timeout_s

    def test_a_shard_that_hangs_costs_no_answer_and_is_replaced(self, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
        load, whole_s = under_load(service, lambda: stopped(service, "Shard-1"))
        told(capsys, load.line("Shard-1 stopped", whole_after=f"{whole_s:.1f} s"))
        assert all_right(load), load.counts()
        assert statistics.quantiles(load.times(), n=100)[98] < service.args.request_timeout_s / 3

    def test_ten_moves_mix_nothing(self, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
        load, moves = under_load(service, lambda: moved(service))
        told(capsys, load.line(f"{moves} moves, sharded", of_each=dict(load.counts())))
        assert all_right(load), load.counts()
        assert set(load.counts()) == {f"right {V1}", f"right {V2}"}


class TestFused:
    """Two gateways that hold everything."""

    topology = "fused"
    gateway = DeploymentArgs(num_replicas=2, num_cpus=0.1)

    def test_a_killed_gateway_costs_no_answer(self, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
        load, whole_s = under_load(service, lambda: killed(service, "Gateway"))
        told(capsys, load.line("gateway killed", whole_after=f"{whole_s:.1f} s"))
        assert all_right(load), load.counts()

    def test_ten_moves_mix_nothing(self, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
        load, moves = under_load(service, lambda: moved(service))
        told(capsys, load.line(f"{moves} moves, fused", of_each=dict(load.counts())))
        assert all_right(load), load.counts()
        assert set(load.counts()) == {f"right {V1}", f"right {V2}"}

    def test_a_registry_that_is_gone_takes_nothing_away(self, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
        away = service.folder.with_name("away")

        def gone() -> tuple[float, float]:
            with httpx.Client(base_url=service.url, timeout=60) as client:
                time.sleep(QUIET_S)
                service.folder.rename(away)
                seen_s = wait_for_state(client, lambda state: state["problem"] is not None and state["serving"] == V1)
                time.sleep(3 * service.args.retire_after_s)
                away.rename(service.folder)
                return seen_s, wait_for_state(client, lambda state: state["problem"] is None and state["live"] == V1)

        load, (seen_s, again_s) = under_load(service, gone)
        told(capsys, load.line("registry gone", seen_after=f"{seen_s:.1f} s", whole_after=f"{again_s:.1f} s"))
        assert all_right(load), load.counts()


class TestOverload:
    """One gateway with a short queue."""

    topology = "fused"
    gateway = DeploymentArgs(num_cpus=0.1, max_ongoing_requests=4, max_queued_requests=16)

    def test_more_than_it_can_do_is_refused_at_once_and_the_rest_waits_for_few_others(
        self, service: Service, capsys: pytest.CaptureFixture[str]
    ) -> None:
        queries = 16
        load, _ = under_load(service, lambda: None, per_s=4 * able(service, queries), queries=queries)
        gateway = service.args.gateway
        most_waiting = gateway.max_queued_requests + gateway.num_replicas * gateway.max_ongoing_requests
        refused, accepted = load.answered_meanwhile("failed 503"), load.answered_meanwhile()
        seconds = statistics.quantiles(load.times("failed 503"), n=100)[98]
        waited = f"{statistics.median(accepted):.0f} (median), {statistics.quantiles(accepted, n=100)[98]:.0f} (p99)"
        told(capsys, load.line("overload", refused_in=f"{seconds * 1e3:.0f} ms (p99)", answered_after=f"{waited} others"))
        assert set(load.counts()) == {f"right {V1}", "failed 503"}, load.counts()
        assert len(refused) > REQUESTS / 10 and len(accepted) > most_waiting
        # By place, not by time: Serve's queue is fair but roughly, and without a bound there would be hundreds before most.
        assert statistics.quantiles(accepted, n=100)[98] < 4 * most_waiting < REQUESTS / 10
        assert statistics.quantiles(refused, n=100)[98] < statistics.median(accepted)
        after, _ = under_load(service, lambda: None, requests=100)
        assert after.counts(0) == {"right": 100} and after.times()[-1] < service.args.request_timeout_s
