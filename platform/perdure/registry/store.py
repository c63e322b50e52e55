"""Stores: where the registry keeps bytes. A key is written once and never changed; a pointer is moved by compare-and-swap.

The protocol asks only for what a local disk and S3 can both do atomically: create-once (`os.link`, `If-None-Match: *`) and
compare-and-swap of a small object (`flock` + `os.replace`, `If-Match`). Appending is not among them, so the journal is made
of create-once entries. The store on S3 is in `s3_store.py`.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Protocol

from perdure.errors import Conflict, Exists, NotFound, RegistryError
from perdure.settings import refuse_fleeting

__all__ = ["LocalStore", "Store", "check_key", "is_key", "open_store", "sha256_of"]

_PART = re.compile(r"[A-Za-z0-9_@-][A-Za-z0-9._@-]*")
_CHUNK = 1 << 20


class Store(Protocol):
    """Immutable objects and movable pointers, both by key (`encoders/demo/v3/manifest.json`)."""

    def read(self, key: str) -> bytes:
        """The bytes of a key; NotFound when there is none."""
        ...

    def create(self, key: str, data: bytes | Path) -> None:
        """Write a key once, whole or not at all; Exists when it is there already."""
        ...

    def fetch(self, key: str) -> Path:
        """A local file with the bytes of a key; keys of one folder arrive in one folder, under their own names."""
        ...

    def list(self, prefix: str) -> list[str]:
        """The keys below a prefix that ends in `/` (or is empty), sorted."""
        ...

    def delete(self, key: str) -> None:
        """Take a key away, for good; it need not be there. For what nothing names any more: see `registry.pruning`."""
        ...

    def read_pointer(self, key: str) -> tuple[bytes, str] | None:
        """A pointer's bytes and the tag of this state, or None when it was never set."""
        ...

    def swap_pointer(self, key: str, data: bytes, expected: str | None) -> str:
        """Move a pointer if its tag is still `expected` (None: not set yet); the new tag. Conflict when it is not."""
        ...


def check_key(key: str) -> str:
    """The key itself, if it is plain names between slashes.

    Raises:
        RegistryError: an empty part, `..`, a hidden name, an absolute path, a character outside A-Z a-z 0-9 . _ @ -
    """
    if not is_key(key):
        raise RegistryError(
            f"'{key}' is not a registry key; use names of letters, digits and . _ @ - between slashes, none starting with a dot"
        )
    return key


def is_key(name: str) -> bool:
    """Whether `check_key` would let it pass."""
    return all(_PART.fullmatch(part) for part in name.split("/"))


def sha256_of(data: bytes | Path) -> str:
    """sha256 of bytes or of a file, in hex."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_store(url: str | Path) -> Store:
    """The store at a folder, a `file://` URL or `s3://bucket/prefix`.

    Raises:
        RegistryError: another kind of URL, or one that carries credentials.
        ConfigError: a folder that ends with the job; see `refuse_fleeting`.
    """
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalStore(refuse_fleeting("PERDURE_REGISTRY", Path(text).expanduser()))
    if scheme == "file":
        return LocalStore(Path(rest))
    if scheme == "s3":
        from perdure.registry.s3_store import S3Store  # boto3 is slow to import, and a folder does without it

        return S3Store(text)
    raise RegistryError(
        f"registry '{scheme}://...': {scheme}:// is not supported; give a folder (./registry, file:///srv/registry) or s3://bucket/prefix"
    )


class LocalStore:
    """A folder. Safe for any number of processes on file systems with hard links and flock (local disks, NFS 4).

    A killed writer leaves a file in `.tmp/`, which nobody reads. The folder is made by the first write.
    """

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise RegistryError(f"registry '{root}' is a file; give a folder")
        self.root = root.absolute()

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    def read(self, key: str) -> bytes:
        """The bytes of a key; NotFound when there is none."""
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"registry {self.root} has no '{key}'") from None

    def create(self, key: str, data: bytes | Path) -> None:
        """Write a key once, whole or not at all; Exists when it is there already."""
        path = self._path(key)
        if path.exists():
            raise Exists(f"registry {self.root} has '{key}' already")
        with self._temporary(data) as temporary:
            while True:
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    raise Exists(f"registry {self.root} has '{key}' already") from None
                except FileNotFoundError:
                    continue  # a `delete` took the empty folder away in between
                break
        _sync_folder(path.parent)

    def fetch(self, key: str) -> Path:
        """The file itself."""
        path = self._path(key)
        if not path.is_file():
            raise NotFound(f"registry {self.root} has no '{key}'")
        return path

    def list(self, prefix: str) -> list[str]:
        """The keys below a prefix, sorted; temporary files and locks are not keys."""
        folder = self._path(prefix.rstrip("/")) if prefix.rstrip("/") else self.root
        keys: list[str] = []
        for parent, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            keys += [(Path(parent) / name).relative_to(self.root).as_posix() for name in files if not name.startswith(".")]
        return sorted(keys)

    def delete(self, key: str) -> None:
        """Take a key away, and the folders that are empty then; it need not be there."""
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            _sync_folder(path.parent)
        with contextlib.suppress(OSError):  # the first that is not empty
            for folder in path.parents:
                if folder == self.root:
                    break
                folder.rmdir()

    def read_pointer(self, key: str) -> tuple[bytes, str] | None:
        """A pointer's bytes and their sha256, which is its tag."""
        try:
            data = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        return data, sha256_of(data)

    def swap_pointer(self, key: str, data: bytes, expected: str | None) -> str:
        """Move a pointer if its tag is still `expected`; the new tag. Conflict when it is not."""
        path = self._path(key)
        with self._lock(key), self._temporary(data) as temporary:
            current = self.read_pointer(key)
            found = current[1] if current else None
            if found != expected:
                raise Conflict(f"registry {self.root}: '{key}' was moved by someone else; read it again")
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        return sha256_of(data)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    @contextlib.contextmanager
    def _temporary(self, data: bytes | Path) -> Generator[Path]:
        """A file with the data, flushed to the disk; gone at the end unless it was renamed."""
        temporary = self.root / ".tmp" / uuid.uuid4().hex
        try:
            try:
                self._fill(temporary, data)
            except OSError as error:
                raise RegistryError(
                    f"registry {self.root}: cannot write: {error.strerror or error}; look at its space and permissions"
                ) from None
            yield temporary
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    @staticmethod
    def _fill(path: Path, data: bytes | Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                with data.open("rb") as source:
                    shutil.copyfileobj(source, file, _CHUNK)
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _lock(self, key: str) -> Generator[None]:
        """One holder per key, among threads and processes; the kernel lets go when the holder dies."""
        path = self.root / ".locks" / key.replace("/", "_")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _sync_folder(folder: Path) -> None:
    """Flush a folder, so that a new name in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
