"""Where a registry may lie in a test, and how to spoil what lies there behind its back; races between processes."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from s3_server import S3Server

from perdure.registry import Store, open_store

__all__ = ["Bucket", "Folder", "Place", "race"]


class Place(Protocol):
    """Somewhere for a registry."""

    url: str

    def open(self) -> Store: ...
    def raw(self, key: str) -> bytes: ...
    def spoil(self, key: str, data: bytes) -> None: ...
    def remove(self, key: str) -> None: ...


class Folder:
    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, str(folder)

    def open(self) -> Store:
        return open_store(self.url)

    def raw(self, key: str) -> bytes:
        return (self.folder / key).read_bytes()

    def spoil(self, key: str, data: bytes) -> None:
        (self.folder / key).write_bytes(data)

    def remove(self, key: str) -> None:
        (self.folder / key).unlink()


class Bucket:
    """A prefix of the session's bucket."""

    def __init__(self, server: S3Server, prefix: str) -> None:
        self.client, self.prefix, self.url = server.client(), prefix, f"s3://tests/{prefix}"

    def open(self) -> Store:
        return open_store(self.url)

    def raw(self, key: str) -> bytes:
        return self.client.get_object(Bucket="tests", Key=f"{self.prefix}/{key}")["Body"].read()

    def spoil(self, key: str, data: bytes) -> None:
        """Other bytes under what the writer said of them."""
        at = {"Bucket": "tests", "Key": f"{self.prefix}/{key}"}
        self.client.put_object(**at, Body=data, Metadata=self.client.head_object(**at)["Metadata"])

    def remove(self, key: str) -> None:
        self.client.delete_object(Bucket="tests", Key=f"{self.prefix}/{key}")


def race(target: Callable[..., None], *arguments: object, processes: int = 4) -> list[object]:
    """Run `target(number, barrier, answers, *arguments)` in real processes that start together; what each answered."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(processes), context.SimpleQueue()
    workers = [context.Process(target=target, args=(number, barrier, answers, *arguments)) for number in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * processes
    return [answers.get() for _ in workers]
