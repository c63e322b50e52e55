"""S3 for tests: moto's server as a process of its own on 127.0.0.1, which does a request wrong when a test asks for that.

moto looks whether a condition holds and writes after that, without a lock; S3 does both at once. So requests pass one at a time.
The process ends when its standard input does, that is, with the tests.
"""

import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import boto3
import httpx

__all__ = ["S3Server"]

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIATESTSONLY",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret-of-anyone",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}


@dataclass
class S3Server:
    """A running server."""

    process: subprocess.Popen[str]
    endpoint: str

    @classmethod
    def start(cls) -> "S3Server":
        process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, "moto's server did not start"
        return cls(process, f"http://127.0.0.1:{port}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to reach it."""
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL_S3": self.endpoint}

    def client(self) -> Any:
        """A plain client, to look at and to spoil what a store wrote."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ENVIRONMENT["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        )

    def fault(self, do: str, *, at: str, method: str = "PUT", query: str = "", times: int = 1_000_000, **how: Any) -> None:
        """From now on `times` requests of a method whose path contains `at`, and whose query contains `query`, go wrong:

        answer    with the error `code` and `status`, and nothing is done
        lose      done, but the connection is cut in place of an answer
        truncate  done, but only `bytes` bytes of the body arrive
        forget    the header `header` (If-Match, If-None-Match) is passed over
        mangle    other bytes are stored than were sent

        With hold=True `answer` and `lose` wait for `let_go`.
        """
        httpx.post(f"{self.endpoint}/__faults", json={"do": do, "at": at, "method": method, "query": query, "times": times, **how})

    def wait_until_met(self) -> None:
        """Return when the last fault has met a request."""
        deadline = time.monotonic() + 60
        while not httpx.get(f"{self.endpoint}/__faults").json()[-1]["met"]:
            assert time.monotonic() < deadline, "no request came"
            time.sleep(0.01)

    def let_go(self) -> None:
        """Go on with the requests that are held."""
        httpx.post(f"{self.endpoint}/__let_go", json={})

    def heal(self) -> list[dict[str, Any]]:
        """Forget all faults; what they were and how often each was `met`."""
        return httpx.delete(f"{self.endpoint}/__faults").json()


class _Faulty:
    """A WSGI application around moto's."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.faults: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.go = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/__"):
            return self._control(environ, start_response)
        fault = self._fault(environ)
        do = fault["do"] if fault else ""
        if do == "answer":
            self._hold(fault)
            body = f"<Error><Code>{fault['code']}</Code><Message>asked for by a test</Message></Error>".encode()
            start_response(f"{fault['status']} X", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
        if do == "forget":
            environ.pop("HTTP_" + fault["header"].upper().replace("-", "_"), None)
        if do == "mangle":
            self._mangle(environ)
        with self.lock:
            answer = list(self.app(environ, start_response))
        if do == "lose":
            self._hold(fault)
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        return [b"".join(answer)[: fault["bytes"]]] if do == "truncate" else answer

    def _hold(self, fault: dict[str, Any]) -> None:
        if fault.get("hold"):
            self.go.wait(60)

    def _fault(self, environ: dict[str, Any]) -> dict[str, Any]:
        for fault in self.faults:
            here = fault["at"] in environ["PATH_INFO"] and fault["query"] in environ["QUERY_STRING"]
            if here and fault["method"] == environ["REQUEST_METHOD"] and fault["met"] < fault["times"]:
                fault["met"] += 1
                return fault
        return {}

    def _control(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        answer = self.faults
        if environ["PATH_INFO"] == "/__let_go":
            self.go.set()
        elif environ["REQUEST_METHOD"] == "DELETE":
            self.faults = []
        elif environ["REQUEST_METHOD"] == "POST":
            self.go.clear()
            self.faults.append({**json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))), "met": 0})
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]

    @staticmethod
    def _mangle(environ: dict[str, Any]) -> None:
        """As a server does that stores the framing of `aws-chunked` with the bytes."""
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        body = b"%x;chunk\r\n" % len(body) + body
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))


def _serve() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            pass

    app = _Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve()
