"""Leases: one driver at a time may learn a run.

    leases/<name>.json   {holder, host, pid, started, beat}: a pointer that its holder moves every few seconds, while it lives

Whoever finds a lease asks whether its holder lives: on the same machine the process itself, elsewhere whether the pointer still moves.
No clock is compared with another machine's: a lease is over when it was not moved for `ttl_s` of the time of the one who watches.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

from perdure.errors import Conflict, Held, RegistryError
from perdure.progress import Progress, SilentProgress
from perdure.registry.store import Store, check_key

__all__ = ["TTL_S", "Lease", "hold"]

log = logging.getLogger(__name__)

TTL_S = 60.0
_BEATS = 6  # in a lifetime


class Lease:
    """A name that is ours; a thread says so again and again until `close`."""

    def __init__(self, store: Store, name: str, *, ttl_s: float, progress: Progress) -> None:
        self._store = store
        self._key = _key(name)
        self._name = name
        self._ttl_s = ttl_s
        self._record: dict[str, Any] = {"holder": uuid.uuid4().hex, **_here(), "beat": 0}
        self._lost: str | None = None
        self._over = threading.Event()
        self._turn = threading.Lock()
        self._tag = self._take(progress)
        self._thread = threading.Thread(target=self._beat, name=f"lease {name}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Say that we live, now: once it is said, nobody has taken the name.

        Raises:
            Held: it was taken by somebody else, because we did not say for too long that we live (a suspended machine, a store that
                could not be reached).
            RegistryError: the store cannot be reached.
        """
        self._renew()
        if self._lost is not None:
            raise Held(self._lost)

    def close(self) -> None:
        """Give the name back."""
        self._over.set()
        self._thread.join()
        if self._lost is None:
            with contextlib.suppress(RegistryError):  # it will run out by itself
                self._store.swap_pointer(self._key, _plain({"holder": None}), self._tag)

    def _take(self, progress: Progress) -> str:
        """The tag of the pointer once it is ours."""
        found = self._store.read_pointer(self._key)
        if found is not None:
            holder = json.loads(found[0])
            if holder["holder"] is not None:
                alive = _lives(holder)
                if alive:
                    raise Held(self._told(holder, f"process {holder['pid']} of this machine"))
                if alive is None:
                    self._watch(found[1], holder, progress)
        try:
            return self._store.swap_pointer(self._key, _plain(self._record), found[1] if found else None)
        except Conflict:
            raise Held(f"run '{self._name}' was begun by another driver at the same moment; this one does nothing") from None

    def _watch(self, tag: str, holder: dict[str, Any], progress: Progress) -> None:
        """Return when the pointer stood still for a lifetime."""
        who = f"process {holder['pid']} on {holder['host']}"
        progress.say(f"run '{self._name}' is held by {who}; waiting {self._ttl_s:g} s to see whether it lives")
        end = time.monotonic() + self._ttl_s
        while time.monotonic() < end:
            time.sleep(min(self._ttl_s / _BEATS, max(0.0, end - time.monotonic())))
            now = self._store.read_pointer(self._key)
            if now is None or now[1] != tag:
                raise Held(self._told(holder, who))

    def _told(self, holder: dict[str, Any], who: str) -> str:
        return f"run '{self._name}' is being learned by {who}, which lives; wait for it, end it, or choose another name=..."

    def _beat(self) -> None:
        while not self._over.wait(self._ttl_s / _BEATS):
            try:
                self._renew()
            except Exception:  # a beat that fails once must not be the last
                log.exception("the lease of run '%s' could not be renewed; it is tried again", self._name)

    def _renew(self) -> None:
        """Move the pointer from where we left it; when it is not there any more, the name is lost."""
        with self._turn:
            if self._lost is not None:
                return
            self._record["beat"] += 1
            try:
                self._tag = self._store.swap_pointer(self._key, _plain(self._record), self._tag)
            except Conflict:
                found = self._store.read_pointer(self._key)
                if found is not None and json.loads(found[0])["holder"] == self._record["holder"]:
                    self._tag = found[1]  # moved by a beat of ours that was told to have failed
                else:
                    self._lost = (
                        f"run '{self._name}' was taken over by another driver, because this one gave no sign of life for "
                        f"{self._ttl_s:g} s; nothing more is published by this one"
                    )


@contextlib.contextmanager
def hold(store: Store, name: str, *, ttl_s: float = TTL_S, progress: Progress | None = None) -> Generator[Lease]:
    """Hold the lease of a run while the block runs.

    Args:
        store: of the registry.
        name: the run's.
        ttl_s: for how long a holder on another machine may be silent, in seconds.
        progress: is told when there is something to wait for.
    Raises:
        Held: another driver that lives has it.
    """
    lease = Lease(store, name, ttl_s=ttl_s, progress=progress or SilentProgress())
    try:
        yield lease
    finally:
        lease.close()


def _key(name: str) -> str:
    return f"leases/{check_key(name)}.json"


def _plain(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode()


def _here() -> dict[str, Any]:
    return {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid())}


def _host() -> str:
    """This machine since it was last started; a pod has a name of its own."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip()[:8]}" if boot.exists() else socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks: a number of a process is given again, this is not. None where it cannot be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _lives(holder: dict[str, Any]) -> bool | None:
    """Whether the holder's process runs; None when that cannot be seen from here."""
    if holder["host"] != _host():
        return None
    if holder["started"] is not None:
        return _started(holder["pid"]) == holder["started"]
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
