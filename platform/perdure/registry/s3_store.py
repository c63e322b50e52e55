"""The store on S3, and on servers that speak its protocol. Conditional writes do here what `os.link` and `flock` do on a disk:

    create        PUT or CompleteMultipartUpload with `If-None-Match: *`
    swap_pointer  PUT with `If-Match` and the ETag that was read, or with `If-None-Match: *` for a pointer that was never set

A write whose answer is lost is sent again, and may then be refused because of itself. So every write leaves a mark of its own in the
object's metadata, and one that is refused looks whose mark is there before it says so (docs/decisions/0012-the-registry-on-s3.md).
"""

import contextlib
import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from perdure.errors import Conflict, Corrupt, Exists, NotFound, RegistryError
from perdure.registry.s3_client import PARALLEL, attempts, code_of, explained, open_client, part_checksums, shown_endpoint, status_of
from perdure.registry.s3_self_test import self_test
from perdure.registry.store import check_key, is_key, sha256_of
from perdure.settings import carries_credentials, settings

__all__ = ["S3Store"]

MULTIPART_BYTES = 64 * 2**20  # from here on a file is sent in parts
PART_BYTES = 16 * 2**20  # of a part, up or down; S3 takes no smaller one than 5 MiB, and no more than MAX_PARTS
MAX_PARTS = 10_000
PAGE_KEYS = 1000  # of one page of a listing; S3 gives no more

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_BROKEN_OFF = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError, FlexibleChecksumError)
_tested: set[tuple[str, str]] = set()  # endpoints and buckets that this process has found fit to write to
_testing = threading.Lock()

T = TypeVar("T")
R = TypeVar("R")


class S3Store:
    """A bucket, or a part of one: `s3://bucket/prefix`. Safe for any number of writers, where conditional writes are.

    Where the server is and who we are is said by the environment (see `settings`). The first write of a process to a bucket tests
    that it keeps its word (see `self_test`). Files are fetched into `PERDURE_CACHE`, which may be emptied at any time.
    """

    def __init__(self, url: str) -> None:
        self.bucket, self.prefix = _parsed(url)
        self._shown = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self._base = f"{self.prefix}/" if self.prefix else ""
        self._opened: tuple[int, Any] = (0, None)

    def __repr__(self) -> str:
        return f"S3Store({self._shown!r})"

    def read(self, key: str) -> bytes:
        """The bytes of a key; NotFound when there is none."""
        found = self._get(key)
        if found is None:
            raise self._not_found(key)
        return found[0]

    def create(self, key: str, data: bytes | Path) -> None:
        """Write a key once, whole or not at all; Exists when it is there already."""
        self._name(key)
        self._fit_to_write()
        with self._explained(f"write '{key}'"):
            there = _size(data) >= MULTIPART_BYTES and self._head(key) is not None  # before gigabytes are sent in vain
            if there or self._write(key, data, {"IfNoneMatch": "*"}) is None:
                raise Exists(f"registry {self._shown} has '{key}' already")

    def fetch(self, key: str) -> Path:
        """A local copy of a key's bytes, the one of last time while the object is still the same and the copy still whole."""
        self._name(key)
        cache = settings().cache.absolute() / "s3" / sha256_of(f"{self._endpoint()}/{self._shown}".encode())[:16]
        path, note = cache / "files" / key, cache / "notes" / key
        with self._explained(f"read '{key}'"):
            head = self._head(key)
            if head is None:
                raise self._not_found(key)
            if not _is_copy(path, note, head["ETag"]):
                try:
                    self._download(key, head, path, note, cache / "tmp")
                except OSError as error:
                    if isinstance(error, BotoCoreError):
                        raise
                    raise RegistryError(
                        f"registry {self._shown}: no copy of '{key}' can be kept in {cache}: {error.strerror or error}; "
                        "look at its space and permissions, or set PERDURE_CACHE to another folder"
                    ) from None
        return path

    def list(self, prefix: str) -> list[str]:
        """The keys below a prefix, sorted; what a self-test left, or another program put there, is none of them."""
        folder = f"{check_key(prefix.rstrip('/'))}/" if prefix.rstrip("/") else ""
        with self._explained("list it"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._base + folder, PaginationConfig={"PageSize": PAGE_KEYS}
            )
            names = [entry["Key"].removeprefix(self._base) for page in pages for entry in page.get("Contents", [])]
        return sorted(name for name in names if is_key(name))

    def delete(self, key: str) -> None:
        """Take a key away; it need not be there. Copies in `PERDURE_CACHE` stay until that is emptied."""
        with self._explained(f"delete '{key}'"):
            self._client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def read_pointer(self, key: str) -> tuple[bytes, str] | None:
        """A pointer's bytes and its ETag, which is its tag."""
        return self._get(key)

    def swap_pointer(self, key: str, data: bytes, expected: str | None) -> str:
        """Move a pointer if its tag is still `expected`; the new tag. Conflict when it is not."""
        self._name(key)
        self._fit_to_write()
        with self._explained(f"move '{key}'"):
            tag = self._write(key, data, {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected})
        if tag is None:
            raise Conflict(f"registry {self._shown}: '{key}' was moved by someone else; read it again")
        return tag

    # -- writing ----------------------------------------------------------------------------------------------------------

    def _write(self, key: str, data: bytes | Path, condition: dict[str, str]) -> str | None:
        """Write under a condition; the ETag of what was written, None when the condition did not hold."""
        mark = uuid.uuid4().hex
        metadata = {"sha256": sha256_of(data), "mark": mark}
        for last in attempts():
            try:
                if _size(data) < MULTIPART_BYTES:
                    return self._put(key, data, metadata, condition)
                return self._put_in_parts(key, data, metadata, condition)
            except (ClientError, BotoCoreError) as error:
                written = self._written(key, mark)  # by a try whose answer was lost; when this cannot be told, that is the error
                if written is not None:
                    return written
                if not isinstance(error, ClientError):
                    raise
                if status_of(error) == 412 or (code_of(error) == "NoSuchKey" and "IfMatch" in condition):
                    return None
                if status_of(error) != 409 or last:  # 409: another conditional write of this key is under way
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _put(self, key: str, data: bytes | Path, metadata: dict[str, str], condition: dict[str, str]) -> str:
        request = {"Bucket": self.bucket, "Key": self._name(key), "Metadata": metadata, **condition}
        if isinstance(data, bytes):
            return self._client.put_object(Body=data, **request)["ETag"]
        with data.open("rb") as file:
            return self._client.put_object(Body=file, **request)["ETag"]

    def _put_in_parts(self, key: str, data: bytes | Path, metadata: dict[str, str], condition: dict[str, str]) -> str:
        """The same for something large: nothing is visible before the completion, and a failure leaves no parts behind."""
        client, target = self._client, {"Bucket": self.bucket, "Key": self._name(key)}
        checksums = part_checksums(client)
        size = _size(data)
        part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
        target["UploadId"] = client.create_multipart_upload(**target, Metadata=metadata, **checksums)["UploadId"]

        def send(number: int) -> dict[str, Any]:
            body = _slice(data, (number - 1) * part_bytes, part_bytes)
            answer = client.upload_part(**target, PartNumber=number, Body=body, **checksums)
            kept = {name: value for name, value in answer.items() if name == "ETag" or (checksums and name == "ChecksumCRC32")}
            return {"PartNumber": number, **kept}

        try:
            parts = _in_parallel(send, range(1, -(-size // part_bytes) + 1))
            return client.complete_multipart_upload(**target, MultipartUpload={"Parts": parts}, **condition)["ETag"]
        except BaseException:
            with contextlib.suppress(ClientError, BotoCoreError):
                client.abort_multipart_upload(**target)
            raise

    def _written(self, key: str, mark: str) -> str | None:
        """The ETag of a key if the write of this mark made it what it is."""
        head = self._head(key)
        return head["ETag"] if head is not None and head["Metadata"].get("mark") == mark else None

    def _fit_to_write(self) -> None:
        """Run the self-test unless this process did so for this bucket."""
        at = (self._endpoint(), self.bucket)
        with _testing:
            if at not in _tested:
                with self._explained("begin to write"):
                    self_test(self._client, self.bucket, self._base, self._shown)
                _tested.add(at)

    # -- reading ----------------------------------------------------------------------------------------------------------

    def _get(self, key: str) -> tuple[bytes, str] | None:
        """The bytes of a key and its ETag, None when there is none."""
        name = self._name(key)
        with self._explained(f"read '{key}'"):
            try:
                data, answer = self._body(Key=name)
            except ClientError as error:
                if code_of(error) == "NoSuchKey":
                    return None
                raise
        self._check(key, sha256_of(data), answer["Metadata"])
        return data, answer["ETag"]

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            return self._client.head_object(Bucket=self.bucket, Key=self._name(key))
        except ClientError as error:
            if status_of(error) == 404:
                return None
            raise

    def _body(self, **request: str) -> tuple[bytes, dict[str, Any]]:
        """One GET to its end: a body that breaks off is asked for again."""
        for last in attempts():
            answer = self._client.get_object(Bucket=self.bucket, **request)
            try:
                with contextlib.closing(answer["Body"]) as body:
                    return body.read(), answer
            except _BROKEN_OFF:
                if last:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _download(self, key: str, head: dict[str, Any], path: Path, note: Path, beside: Path) -> None:
        """Bring the object of a HEAD into the cache, in parts when it is large; other processes see all of it or nothing."""
        size, etag = int(head["ContentLength"]), str(head["ETag"])
        temporary = beside / uuid.uuid4().hex

        def bring(start: int) -> None:
            part = {"Range": f"bytes={start}-{min(start + PART_BYTES, size) - 1}"} if size > PART_BYTES else {}
            data, _ = self._body(Key=self._name(key), IfMatch=etag, **part)
            with temporary.open("r+b") as file:
                file.seek(start)
                file.write(data)

        for folder in (beside, path.parent, note.parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch(exist_ok=False)
            _in_parallel(bring, range(0, max(size, 1), PART_BYTES))
            found = sha256_of(temporary)
            self._check(key, found, head["Metadata"])
            os.replace(temporary, path)
            temporary.write_text(json.dumps({"etag": etag, "sha256": found}))
            os.replace(temporary, note)
        finally:
            temporary.unlink(missing_ok=True)

    def _check(self, key: str, found: str, metadata: dict[str, str]) -> None:
        """Hold bytes against the sha256 that their writer left; an object that was copied here without it has its manifest's."""
        written = metadata.get("sha256", found)
        if found != written:
            raise Corrupt(
                f"registry {self._shown}: '{key}' is damaged: sha256 {found[:12]}... found, {written[:12]}... written; "
                "restore it from a copy, or roll back to a release that does not use it"
            )

    # -- inside -----------------------------------------------------------------------------------------------------------

    @property
    def _client(self) -> Any:
        """This process's client: a child that was forked must not talk on its parent's connections."""
        if self._opened[0] != os.getpid():
            self._opened = (os.getpid(), open_client(self._shown))
        return self._opened[1]

    def _endpoint(self) -> str:
        return shown_endpoint(self._client.meta.endpoint_url)

    def _name(self, key: str) -> str:
        return self._base + check_key(key)

    def _not_found(self, key: str) -> NotFound:
        return NotFound(f"registry {self._shown} has no '{key}'")

    @contextlib.contextmanager
    def _explained(self, action: str) -> Generator[None]:
        """Whatever the client raises, as an error of ours."""
        try:
            yield
        except (ClientError, BotoCoreError) as error:
            raise explained(error, self._shown, self._endpoint(), action) from None


def _parsed(url: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`."""
    if carries_credentials(url):
        raise RegistryError(
            "registry s3://...: the URL has a user, a port or a query, where credentials would be written down with it; give "
            "s3://BUCKET/PREFIX, and put AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL_S3 into the environment"
        )
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    if not _BUCKET.fullmatch(bucket):
        raise RegistryError(f"registry '{url}': '{bucket}' is not the name of a bucket; give s3://BUCKET/PREFIX")
    return bucket, check_key(prefix) if prefix else ""


def _size(data: bytes | Path) -> int:
    return len(data) if isinstance(data, bytes) else data.stat().st_size


def _slice(data: bytes | Path, start: int, length: int) -> bytes:
    if isinstance(data, bytes):
        return data[start : start + length]
    with data.open("rb") as file:
        file.seek(start)
        return file.read(length)


def _is_copy(path: Path, note: Path, etag: str) -> bool:
    """Whether a file is what was downloaded of the object with this ETag, to the byte."""
    try:
        noted = json.loads(note.read_text())
        return noted["etag"] == etag and sha256_of(path) == noted["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _in_parallel(act: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`act` of every item, several at a time; after the first that fails no further one is begun."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        futures = [pool.submit(act, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
