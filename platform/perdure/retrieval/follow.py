"""Following a channel: what a serving process holds of the registry, and when it lets go of it.

A release is loaded beside what is held, on another thread than requests are answered on; it becomes visible by one assignment
when it is whole; a release that does not load never becomes visible, the reason is kept, and it is tried again more and more
rarely. A release is let go of when nobody has wanted it for longer than the longest request.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from perdure.errors import NotLoaded, PerdureError
from perdure.records import Release, Traffic
from perdure.registry.registry import Registry
from perdure.retrieval.edits import edited, release_at

__all__ = ["Holder", "Poller"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_RETRY_S = 5.0
_LAST_RETRY_S = 60.0
_SLOW_S = 10.0  # a registry that has not said for so long where the channel points
_FALL_BACK = 3  # releases before a bad live one that a starting process tries


@dataclass(frozen=True)
class _Failure:
    """A release that did not load: why, and when it is tried again."""

    why: str
    pause_s: float
    again_at: float


class Holder(Generic[T]):
    """Releases wholly loaded, by id, kept in step with a channel.

    Args:
        registry: where releases and channels are.
        load: everything that a process needs of a release, its hashes checked and warmed up; an exception means that the release is bad.
        channel: the channel that is followed.
        beside: another channel, whose release is held as well; nothing that is wrong with it touches the first.
        retire_after_s: a release that was not wanted for this long is let go of.
        forget: called with the releases that stay after some were let go of, to empty caches that `load` fills.
        clock: seconds, ever growing; tests bring their own.
        loaded: called after each attempt with the release, the seconds it took, and what was wrong with it, if so.
    """

    def __init__(
        self,
        registry: Registry,
        load: Callable[[Release], T],
        *,
        channel: str = "live",
        beside: str | None = None,
        retire_after_s: float = 60.0,
        forget: Callable[[list[T]], None] = lambda kept: None,
        clock: Callable[[], float] = time.monotonic,
        loaded: Callable[[str, float, Exception | None], None] = lambda release_id, seconds, error: None,
    ) -> None:
        self.registry = registry
        self.channel = channel
        self.beside = beside
        self.live: str | None = None
        self.candidate: str | None = None  # what the channel beside it points to
        self.traffic = Traffic()  # of the candidate
        self.in_place: str | None = None  # what is held because the live release was bad when this process started
        self._load = load
        self._retire_after_s = retire_after_s
        self._forget = forget
        self._clock = clock
        self._loaded = loaded
        self._held: dict[str, T] = {}  # replaced, never changed, so that readers on other threads need no lock
        self._wanted_at: dict[str, float] = {}
        self._failures: dict[str, _Failure] = {}
        self._beside_trouble: str | None = None
        self._trouble: str | None = f"the channel '{channel}' was not read yet"
        self._reading_since: float | None = None
        self._one_at_a_time = threading.Lock()

    def get(self, release_id: str) -> T:
        """What is held of a release.

        Raises:
            NotLoaded: it is not held.
        """
        try:
            return self._held[release_id]
        except KeyError:
            why = self.why_not(release_id)
            raise NotLoaded(
                f"release {release_id} is not loaded here{f': {why}' if why else ''}; held: {', '.join(self._held) or 'none'}"
            ) from None

    def held(self) -> list[str]:
        """Ids of the releases wholly loaded, oldest first."""
        return list(self._held)

    def why_not(self, release_id: str) -> str | None:
        """Why a release did not load, if it was tried."""
        failure = self._failures.get(release_id)
        return failure.why if failure else None

    @property
    def problem(self) -> str | None:
        """Why the live release is not held, or not known; None when it is."""
        since = self._reading_since
        if since is not None and self._clock() - since > _SLOW_S:
            return f"the channel '{self.channel}' cannot be read: the registry has not answered for {self._clock() - since:.0f} s"
        if self._trouble is not None:
            return self._trouble
        if self.live is not None and self.live not in self._held:
            return self.why_not(self.live) or f"release {self.live} is being loaded"
        return None

    @property
    def candidate_problem(self) -> str | None:
        """Why the candidate is not held; None when it is, or there is none."""
        if self._beside_trouble is not None:
            return self._beside_trouble
        if self.candidate is not None and self.candidate not in self._held:
            return self.why_not(self.candidate) or f"release {self.candidate} is being loaded"
        return None

    def want(self, release_ids: Iterable[str]) -> None:
        """Someone answers from these: load them if they are missing, and keep them."""
        now = self._clock()
        for release_id in release_ids:
            self._wanted_at[release_id] = now

    def follow(self) -> None:
        """One look at the channel: load what is wanted and missing, let go of what nobody wants. Never raises for a bad release."""
        with self._one_at_a_time:
            self._reading_since = self._clock()
            try:
                live = edited(self.registry, self.registry.channel(self.channel))
            except (PerdureError, OSError) as error:
                self._trouble = f"the channel '{self.channel}' cannot be read: {error}"
                log.error("%s", self._trouble)
                return
            finally:
                self._reading_since = None
            self.live = live.id if live else None
            self._trouble = None if live else f"the channel '{self.channel}' points to no release; promote one (perdure promote RELEASE)"
            if live is not None:
                self.want([live.id])
            beside = self._look_beside()
            self._retire()
            for release_id in list(self._wanted_at):
                if release_id not in self._held:
                    self._try(release_id, [live, beside])
            if live is not None and not self._held.keys() - {self.candidate}:
                self._fall_back()

    def _look_beside(self) -> Release | None:
        """Read the channel beside the live one, and want what it points to."""
        if self.beside is None:
            return None
        try:
            found = self.registry.placed(self.beside)
        except (PerdureError, OSError, TypeError, ValueError) as error:
            self._beside_trouble = f"the channel '{self.beside}' cannot be read: {error}"
            log.error("%s", self._beside_trouble)
            return None
        self._beside_trouble = None
        release, self.traffic = found or (None, Traffic())
        try:
            release = edited(self.registry, release)
        except (PerdureError, OSError) as error:
            self._beside_trouble = f"what was written over release {release.id if release else None} cannot be read: {error}"
            return None
        self.candidate = release.id if release else None
        if release is not None:
            self.want([release.id])
        return release

    def _try(self, release_id: str, known: Sequence[Release | None] = ()) -> None:
        """Load a release unless it failed a short while ago."""
        failure = self._failures.get(release_id)
        if failure is not None and self._clock() < failure.again_at:
            return
        started = time.perf_counter()
        try:
            found = [release for release in known if release is not None and release.id == release_id]
            release = found[0] if found else release_at(self.registry, release_id)
            loaded = self._load(release)
        except Exception as error:  # whatever is wrong with a release must not take down what is served
            pause_s = min(failure.pause_s * 2, _LAST_RETRY_S) if failure else _FIRST_RETRY_S
            why = (
                f"release {release_id} cannot be loaded: {error if isinstance(error, PerdureError) else f'{type(error).__name__}: {error}'}"
            )
            self._failures = {**self._failures, release_id: _Failure(why, pause_s, self._clock() + pause_s)}
            self._forget(list(self._held.values()))  # what it had loaded before it failed
            self._loaded(release_id, time.perf_counter() - started, error)
            log.error("%s (next try in %.0f s)", why, pause_s, exc_info=None if isinstance(error, PerdureError) else error)
            return
        self._failures = {known: other for known, other in self._failures.items() if known != release_id}
        self._held = {**self._held, release_id: loaded}
        self._loaded(release_id, time.perf_counter() - started, None)
        log.info("release %s loaded in %.2f s; held: %s", release_id, time.perf_counter() - started, ", ".join(self._held))

    def _retire(self) -> None:
        """Let go of what nobody has wanted for long."""
        now = self._clock()
        stale = {known for known, at in self._wanted_at.items() if now - at > self._retire_after_s and known != self.live}
        if not stale:
            return
        dropped = stale & set(self._held)
        self._wanted_at = {known: at for known, at in self._wanted_at.items() if known not in stale}
        self._failures = {known: failure for known, failure in self._failures.items() if known not in stale}
        self._held = {known: loaded for known, loaded in self._held.items() if known not in stale}
        if dropped:
            self._forget(list(self._held.values()))
            log.info("let go of %s; held: %s", ", ".join(sorted(dropped)), ", ".join(self._held))

    def _fall_back(self) -> None:
        """A process that starts while the live release is bad answers from the latest one before it that loads."""
        before = [entry["before"] for entry in reversed(self.registry.journal()) if entry["channel"] == self.channel and entry["before"]]
        for release_id in [known for known in dict.fromkeys(before) if known != self.live][:_FALL_BACK]:
            with contextlib.suppress(PerdureError, OSError):  # without what was written since, if that is what is bad
                release_id = edited(self.registry, self.registry.release(release_id)).id
            self.want([release_id])
            if release_id not in self._held:
                self._try(release_id)
            if release_id in self._held:
                if self.in_place != release_id:
                    log.warning("%s; %s, which was live before, is held in its place", self.problem, release_id)
                self.in_place = release_id
                return


class Poller:
    """Runs a step every `poll_s` seconds on a thread of its own, until stopped; `wake` runs it now."""

    def __init__(self, step: Callable[[], None], poll_s: float, name: str) -> None:
        self._step = step
        self._poll_s = poll_s
        self._stop = False
        self._next_s = poll_s
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; the first step runs at once."""
        self._thread.start()

    def wake(self) -> None:
        """Run the step without waiting for its turn."""
        self._woken.set()

    def soon(self, pause_s: float) -> None:
        """Called by a step: the next one is due after this, when that is earlier than its turn."""
        self._next_s = min(pause_s, self._poll_s)

    def stop(self, wait_s: float = 0.0) -> None:
        """No further step; wait up to `wait_s` seconds for the one that runs."""
        self._stop = True
        self._woken.set()
        if wait_s:
            self._thread.join(wait_s)

    def _run(self) -> None:
        while not self._stop:
            self._next_s = self._poll_s
            try:
                self._step()
            except Exception:  # a poll that fails once must not be the last
                log.exception("%s: a step failed", self._thread.name)
            self._woken.wait(self._next_s)
            self._woken.clear()
