"""Serve a registry on this machine: python serve/run.py --registry registry --port 8000 [--topology fused|sharded] [key.sub=value ...]

Starts a local Ray and Serve (or joins the Ray at --ray-address), waits until searches are answered, prints the address of the
page, and runs until Ctrl-C or SIGTERM; then it stops what it started, and nothing else. `start` and `stop` do the same from
another program.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # Python put this folder first on the path, where `import encoder` would find ours; the folder above it is wanted instead.
    sys.path[0] = str(ROOT)

import httpx  # noqa: E402
from pydantic import ValidationError  # noqa: E402

from perdure.catalog import readable  # noqa: E402
from perdure.config import apply_override  # noqa: E402
from perdure.errors import ConfigError, PerdureError  # noqa: E402
from serve.proxy import ENVIRONMENT  # noqa: E402
from serve.schemas import ServeArgs  # noqa: E402

__all__ = ["Running", "arguments_of", "start", "stop"]

log = logging.getLogger(__name__)

APP = "perdure"
_TRIES = 3


@dataclass
class Running:
    """An application that answers at `url`, and what was started for it."""

    url: str
    owns_ray: bool
    owns_serve: bool
    stopped: bool = False


def arguments_of(said: dict[str, Any], overrides: Sequence[str] = ()) -> ServeArgs:
    """What the service is told, after `key.sub=value` overrides.

    Raises:
        ConfigError: an override that is none, an unknown key, a value out of range; all at once.
    """
    said = dict(said)
    problems = [problem for override in overrides for problem in apply_override(said, override)]
    try:
        args = ServeArgs.model_validate(said)
    except ValidationError as error:
        raise ConfigError("serve", problems + readable(error, "", ServeArgs.model_fields)) from None
    if problems:
        raise ConfigError("serve", problems)
    return args


def start(
    args: ServeArgs,
    port: int = 8000,
    *,
    ray_address: str | None = None,
    num_cpus: int | None = None,
    wait_s: float = 180.0,
    must_be_ready: bool = True,
) -> Running:
    """Bring the application up at `http://{args.host}:{port}` and wait until it answers searches.

    Joins the Ray that this process is connected to; else the one at `ray_address`; else it starts one on this machine.

    Args:
        args: what to serve.
        port: of HTTP; free on this machine.
        ray_address: of a running Ray, for instance "auto".
        num_cpus: logical CPUs of a Ray that is started here.
        wait_s: how long to wait for an answer.
        must_be_ready: whether it counts as up only when /readyz is 200; false = a registry without a live release will do.
    Raises:
        ConfigError: the port is taken.
        PerdureError: it did not come up; the message has the reason that /readyz gives.
    """
    import ray  # here, so that --help and wrong arguments are answered at once
    from ray import serve

    from serve.graph import build

    args = args.resolved()
    owns_ray = not ray.is_initialized()
    if owns_ray:
        with _own_sigterm():
            _start_ray(ray_address, num_cpus)
    running = Running(f"http://{'127.0.0.1' if args.host == '0.0.0.0' else args.host}:{port}", owns_ray, owns_serve=False)
    try:
        if not _serve_runs():
            _check_port_free(args.host, port)
            running.owns_serve = True
            _start_serve(args.host, port)
        serve.run(build(args), name=APP, route_prefix="/")
        _wait(running.url, wait_s, must_be_ready)
    except BaseException:
        stop(running)
        raise
    return running


def stop(running: Running) -> None:
    """Stop what `start` started: the application always, Serve and Ray where they were not there before. Twice is once."""
    import ray
    from ray import serve

    if running.stopped:
        return
    running.stopped = True
    if ray.is_initialized():
        with contextlib.suppress(Exception):  # a cluster that is gone already has nothing left to stop
            if running.owns_serve:
                serve.shutdown()
            else:
                serve.delete(APP)
        if running.owns_ray:
            ray.shutdown()


@contextlib.contextmanager
def _own_sigterm() -> Generator[None]:
    """What SIGTERM does is up to this process; Ray's start puts a handler in place that aborts it and leaves everything as it is."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _start_ray(address: str | None, num_cpus: int | None) -> None:
    import ray

    # Replicas import `serve.*` from the repository; where nobody chose otherwise, a Ray of our own asks for no token, and
    # writes none into the home folder: it listens on loopback only.
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))}
    common: dict[str, Any] = {"runtime_env": {"env_vars": environment}, "logging_level": logging.WARNING, "log_to_driver": False}
    if address is not None:
        ray.init(address=address, **common)
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves its workers beside anything else that computes
    ray.init("local", num_cpus=num_cpus or max(4, os.cpu_count() or 4), include_dashboard=False, _node_ip_address="127.0.0.1", **common)


def _serve_runs() -> bool:
    """Whether Serve is up on this Ray already."""
    from ray import serve

    return bool(serve.status().proxies)


def _start_serve(host: str, port: int) -> None:
    """Start Serve's controller and proxy; a machine under load may miss Ray's deadlines once."""
    from ray import serve

    for attempt in range(1, _TRIES + 1):
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port},
                controller_options={"runtime_env": {"env_vars": ENVIRONMENT}},
            )
            return
        except Exception as error:
            log.warning("Ray Serve did not start (attempt %d of %d): %s", attempt, _TRIES, error)
            if attempt == _TRIES:
                raise
            time.sleep(2.0 * attempt)


def _check_port_free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                "serve", [f"{host}:{port} cannot be listened on ({error.strerror}); choose another port with --port"]
            ) from None


def _wait(url: str, wait_s: float, must_be_ready: bool) -> None:
    """Until the application answers."""
    deadline = time.monotonic() + wait_s
    why = "no answer"
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{url}/readyz", timeout=10)
            if answer.status_code == 200:
                return
            with contextlib.suppress(json.JSONDecodeError):
                why = answer.json().get("detail", why)
                if not must_be_ready:
                    log.warning("up, but not ready: %s", why)
                    return
        except httpx.HTTPError as error:
            why = f"no answer: {error}"
        time.sleep(0.1)
    raise PerdureError(f"{url} was not ready after {wait_s:.0f} s: {why}")


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python serve/run.py", description="Serve the live release of a registry on this machine.")
    parser.add_argument("--registry", help="folder or URL (default: PERDURE_REGISTRY, else ./registry)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "8000")), help="default: PORT, else 8000")
    parser.add_argument("--topology", choices=["fused", "sharded"], default="fused", help="default: %(default)s")
    parser.add_argument("--shards", type=int, default=2, help="shards of the sharded topology (default: %(default)s)")
    parser.add_argument("--keys", help="file of API keys (default: PERDURE_KEYS, else none)")
    parser.add_argument("--ray-address", help="join this Ray instead of starting one")
    parser.add_argument(
        "overrides", nargs="*", help="any of ServeArgs (serve/schemas.py): gateway.num_replicas=2, candidate=null, rate_per_s=5"
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    ended = threading.Event()
    try:
        args = arguments_of(
            {"registry": given.registry, "host": given.host, "topology": given.topology, "shards": given.shards, "keys_file": given.keys},
            given.overrides,
        )
        signal.signal(signal.SIGTERM, _interrupt)  # while it starts, as Ctrl-C: what is up by then is taken down
        running = start(args, given.port, ray_address=given.ray_address, must_be_ready=False)
    except PerdureError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before it was up", file=sys.stderr)
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        print(f"Perdure answers at {running.url}/  (Ctrl-C stops it)", flush=True)
        ended.wait()
    finally:
        stop(running)
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
