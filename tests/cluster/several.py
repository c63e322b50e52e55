"""The cluster of `nodes.py`, held by a test."""

import subprocess
import sys
from pathlib import Path

from ray_processes import ray_processes

__all__ = ["Nodes"]

HERE = Path(__file__).resolve().parent


class Nodes:
    """Several nodes on this machine."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, str(HERE / "nodes.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = self._answer()

    def tell(self, verb: str, name: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{verb} {name}\n")
        self.process.stdin.flush()
        assert self._answer() == name

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "the cluster ended by itself"
        return line

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(120)

    def train_workers(self) -> list[int]:
        """The processes of Ray Train's workers, as pids."""
        return ray_processes("RayTrainWorker", of=self.process.pid)
