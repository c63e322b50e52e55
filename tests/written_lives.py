"""One life of a writer, in a module of its own: a process that is forked for it has nothing else to import."""

import json
import os
import random
import signal
from typing import Any

from written import OLD, change
from written import live as live_release

from perdure.registry import open_registry
from perdure.registry.store import LocalStore
from perdure.retrieval.compaction import fold, put_together
from perdure.retrieval.writes import Writer

__all__ = ["live"]

IDS = [*OLD[:10], *(f"new-{number}" for number in range(30))]


def drawn(rng: random.Random) -> dict[str, Any]:
    """A request, or a compaction."""
    kind = rng.choices(["items", "removed", "put together", "fold"], [6, 3, 1, 1])[0]
    asked: dict[str, Any] = {"kind": kind, "key": f"{rng.getrandbits(64):x}"}
    if kind == "items":
        asked["items"] = {rng.choice(IDS): rng.randrange(10**6) for _ in range(rng.randint(1, 4))}
    elif kind == "removed":
        asked["removed"] = sorted({rng.choice(IDS) for _ in range(rng.randint(1, 3))})
    return asked


def live(folder: str, first: dict[str, Any] | None, seed: int, die: int, where: str) -> None:
    """One life: request after request, each told before and after, until write number `die` to the registry."""
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    events = 0
    tell = os.open(where, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def around(function: Any) -> Any:
        def event() -> None:
            nonlocal events
            events += 1
            if events == die:
                os.kill(os.getpid(), signal.SIGKILL)

        def wrapped(*given: Any) -> Any:
            event()
            answer = function(*given)
            event()
            return answer

        return wrapped

    LocalStore.create, LocalStore.swap_pointer = around(LocalStore.create), around(LocalStore.swap_pointer)  # type: ignore[method-assign]
    registry, rng = open_registry(folder), random.Random(seed)
    writer = Writer(registry, "shop")
    asked = first or drawn(rng)
    while True:
        os.write(tell, (json.dumps(asked) + "\n").encode())
        if asked["kind"] == "put together":
            put_together(registry, "shop")
        elif asked["kind"] == "fold":
            fold(registry, small=30)
        else:
            wanted = change(asked.get("items"), asked.get("removed"), key=asked["key"], digest=asked["key"])
            (outcome,) = writer.commit(*live_release(registry), [wanted])
            assert not outcome.refused  # type: ignore[union-attr]
        os.write(tell, b"done\n")
        asked = drawn(rng)
