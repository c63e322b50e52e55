"""ministack: an S3 that keeps what it has on disk, to be killed in the middle of its work.

It pins botocore to another version than ours, so it lives in an environment of its own, `.venv-s3/`, made when a test first needs it.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

__all__ = ["Ministack"]

VERSION = "1.5.33"
ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv-s3"


def _installed() -> Path:
    """The program; skips the test where pip cannot install it."""
    program, done = VENV / "bin" / "ministack", VENV / f".ministack-{VERSION}"
    if done.exists():
        return program
    install = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"ministack=={VERSION}"]
    for command in ([sys.executable, "-m", "venv", "--clear", str(VENV)], install):
        try:
            subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            why = (error.stderr or error.stdout or str(error)).strip().splitlines()[-1]
            pytest.skip(f"ministack {VERSION} cannot be installed: {why}")
    done.touch()
    return program


class Ministack:
    """A server on 127.0.0.1 that starts with what it left in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = _installed()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin, or begin again; returns when it answers."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHONPATH"))},
            "BIND_HOST": "127.0.0.1",
            "TMPDIR": str(self.folder.parent),  # for its pid file
            "GATEWAY_PORT": str(self.port),
            "SERVICES": "s3",
            "IOT_MTLS_ENABLED": "0",  # a listener of another service, on every interface
            "S3_PERSIST": "1",
            "S3_DATA_DIR": str(self.folder),
        }
        self.process = subprocess.Popen([self.program], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while True:
            assert self.process.poll() is None, "ministack ended"
            assert time.monotonic() < deadline, "ministack does not answer"
            try:
                httpx.get(self.endpoint, timeout=2)
                return
            except httpx.TransportError:
                time.sleep(0.1)

    def kill(self) -> None:
        """kill -9 at any moment but one: it writes an object's bytes and its metadata into two files, and between them has neither
        the old object nor the new one, as no S3 may. So it is stopped first, and goes on if it was caught there."""
        assert self.process is not None
        while True:
            self.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
            if not self._torn():
                break
            self.process.send_signal(signal.SIGCONT)
            time.sleep(0.001)
        self.end()

    def end(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _torn(self) -> bool:
        """Whether a file is being written, or was written after its metadata."""
        for path in self.folder.rglob("*"):
            if path.name.endswith(".tmp"):
                return True
            if path.is_file() and not path.name.endswith(".meta.json"):
                about = path.with_name(path.name + ".meta.json")
                if not about.exists() or about.stat().st_mtime_ns < path.stat().st_mtime_ns:
                    return True
        return False
