"""Following the channels: which releases a gateway answers from, and why not from another.

`current` is one reference, assigned once a flip; a request reads it once and uses what it read to its end.
"""

import logging
import time
from collections.abc import Callable, Sequence

from perdure.errors import NotLoaded
from perdure.records import Release, base_of
from perdure.registry import Registry
from perdure.retrieval.follow import Holder, Poller
from perdure.retrieval.retriever import Retriever
from serve.answering import gone
from serve.channels import CANDIDATE, Place
from serve.metrics import Metrics, version_of
from serve.reading import SearchQuery
from serve.schemas import ServeArgs, State

__all__ = ["Following", "loads_measured"]

log = logging.getLogger(__name__)

_WHILE_WAITING_S = 0.1  # between two looks at replicas that are loading
_FIRST_WAIT_S = 30.0  # a new replica takes traffic when it has a release, or after this long with the reason why not


class Following:
    """What one gateway holds of the releases of its channel and of the candidate's, and which of them is answered from.

    Args:
        registry: where releases and channels are.
        args: the server's arguments: the channels, how often to look, how long to keep.
        metrics: shows what is held and served.
        load: everything that this process needs of a release; an exception means that it is not fit to go live.
        not_ready: why a release that is held here may not be answered from yet; None = it may.
        forget: called with what is held still, after some releases were let go of.
    """

    def __init__(
        self,
        registry: Registry,
        args: ServeArgs,
        metrics: Metrics,
        *,
        load: Callable[[Release], Retriever],
        not_ready: Callable[[str], str | None],
        forget: Callable[[Sequence[Retriever]], None],
    ) -> None:
        self.current: Retriever | None = None
        self.candidate: Retriever | None = None  # beside it, for the requests that go there
        self.holder = Holder(
            registry,
            self._load_noted,
            channel=args.channel,
            beside=args.candidate,
            retire_after_s=args.retire_after_s,
            forget=forget,
            loaded=loads_measured(metrics, "gateway"),
        )
        self._args = args
        self._metrics = metrics
        self._load = load
        self._not_ready = not_ready
        self._waiting: str | None = None  # why a release that is held here is not answered from yet
        self._candidate_waiting: str | None = None
        self._encoder_of: dict[str, str] = {}  # of every release that was ever held: an answer may outlive its release here
        self._poller = Poller(self._step, args.poll_s, "follow")

    def start(self) -> None:
        """Begin to follow the channel; returns when a release is answered from, or it is clear why none is."""
        deadline = time.monotonic() + _FIRST_WAIT_S
        self._step()
        while self.current is None and self.holder.problem is None and time.monotonic() < deadline:
            time.sleep(0.05)
            self._step()
        self._poller.start()

    def stop(self) -> None:
        """End the thread."""
        self._poller.stop(wait_s=5.0)

    def wake(self) -> None:
        """Look at the channels now: something was written or moved. The other replicas follow within a poll."""
        self._poller.wake()

    def pinned_for(self, query: SearchQuery) -> Retriever:
        """The release of a search, taken once: the one that it names, or the one of its channel.

        Raises:
            NotLoaded: there is none yet; or the candidate was asked for, and there is none that is ready.
            Problem: 410, the one that is named is not held any more.
        """
        if query.release is None and query.route.channel == CANDIDATE:
            candidate = self.candidate
            if candidate is not None:
                return candidate
            if query.route.asked:
                none = f"the channel '{self._args.candidate}' points to no release (perdure promote RELEASE --channel candidate)"
                raise NotLoaded(self._candidate_problem() or none)
        return self.pinned(query.release)

    def pinned(self, release_id: str | None = None) -> Retriever:
        """The release of a request, taken once: the one that is answered from, or the one that a cursor or the caller names.

        Raises:
            NotLoaded: there is none yet.
            Problem: 410, the one that is named is not held any more.
        """
        if release_id is not None:
            newest = {base_of(held): held for held in self.holder.held()}  # of each release, with what was written last
            try:
                return self.holder.get(newest.get(release_id, release_id))
            except NotLoaded:
                raise gone(release_id) from None
        if self.current is None:
            raise NotLoaded(self._problem() or "no release is loaded yet; try again in a moment")
        return self.current

    def held(self) -> list[str]:
        """Ids of the releases wholly loaded here, oldest first."""
        return self.holder.held()

    def answered_from(self) -> list[str]:
        """Ids of the releases that requests go to: the one that is answered from, and the candidate."""
        return [held.release.id for held in (self.current, self.candidate) if held is not None]

    def state(self) -> State:
        """See `Backend`."""
        return State(
            ready=self.current is not None,
            topology=self._args.topology,
            channel=self._args.channel,
            live=self.holder.live,
            serving=self.current.release.id if self.current else None,
            problem=self._problem(),
            candidate=self.holder.candidate,
            candidate_problem=self._candidate_problem(),
        )

    def place(self) -> Place | None:
        """Where the candidate stands; None = there is none."""
        release_id, traffic, held = self.holder.candidate, self.holder.traffic, self.candidate
        if release_id is None:
            return None
        base = base_of(release_id)
        ready = held is not None and held.release.base == base and (self.current is None or self.current.release.base != base)
        return Place(base, traffic.share, traffic.shadow, ready)

    def encoder_of(self, release_id: str) -> str:
        """The encoder of a release that was ever held here; "" of another."""
        return self._encoder_of.get(release_id, "")

    # -- one step ---------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """One look at the channels and, if it can be, one flip of each."""
        if self.current is not None:
            self.holder.want([self.current.release.id])
        self.holder.follow()
        self._step_live()
        self._step_candidate()
        self._show_state()

    def _step_live(self) -> None:
        held = self.holder.held()
        target = self.holder.live if self.holder.live in held else None
        if target is None and self.current is None and self.holder.in_place in held:
            target = self.holder.in_place  # the live release is bad, and this process has just started: the one before it
        if target is None:
            if self.current is not None:
                self._not_ready(self.current.release.id)  # what is answered from stays with all who take part in an answer
            return
        self._waiting = self._not_ready(target)
        if self._waiting is None and (self.current is None or self.current.release.id != target):
            before = self.current.release.id if self.current else "nothing"
            self.current = self.holder.get(target)
            log.info("answering from %s now (before: %s)", target, before)
        if self._waiting is not None:
            self._poller.soon(_WHILE_WAITING_S)

    def _step_candidate(self) -> None:
        target = self.holder.candidate
        if target is None or target not in self.holder.held():
            self.candidate = None
            return
        self._candidate_waiting = self._not_ready(target)
        if self._candidate_waiting is None and (self.candidate is None or self.candidate.release.id != target):
            self.candidate = self.holder.get(target)
            log.info("candidate %s is ready", target)
        elif self.candidate is not None and self.candidate.release.id != target:
            self.candidate = None

    def _show_state(self) -> None:
        """Bring the gauges up to date."""
        current, live, place, show = self.current, self.holder.live, self.place(), self._metrics.show
        serving = current.release.id if current else None
        show("perdure_ready", {(): float(current is not None)})
        show("perdure_serving", {(current.release.base, version_of(str(current.release.encoder))): 1.0} if current else {})
        missing = {(base_of(live), (self._problem() or "")[:200]): 1.0} if live is not None and live != serving else {}
        show("perdure_live_not_serving", missing)
        show("perdure_release_held", {(base_of(held), "gateway"): 1.0 for held in self.holder.held()})
        uses = {(place.release, "share"): place.share, (place.release, "shadow"): place.shadow} if place else {}
        show("perdure_candidate_percent", uses)

    def _load_noted(self, release: Release) -> Retriever:
        self._encoder_of[release.id] = str(release.encoder)
        return self._load(release)

    def _problem(self) -> str | None:
        return self.holder.problem or self._waiting

    def _candidate_problem(self) -> str | None:
        return self.holder.candidate_problem or (self._candidate_waiting if self.holder.candidate else None)


def loads_measured(metrics: Metrics, part: str) -> Callable[[str, float, Exception | None], None]:
    """For a `Holder`: what came of each load, as metrics of a part of the graph."""

    def loaded(release_id: str, seconds: float, error: Exception | None) -> None:
        if error is None:
            metrics.observe("perdure_load_seconds", seconds, part=part)
        else:
            metrics.add("perdure_load_failures_total", release=base_of(release_id), part=part, error=type(error).__name__)

    return loaded
