"""Channels: pointers to releases, and the journal of their moves.

    channels/<channel>.json                  one pointer, moved by compare-and-swap; it carries the record of its last move
    journal/<time>-<channel>-<number>.json   one entry a move

A move is journalled after the swap, and every mover first journals the move that it finds in the pointer (create-once, so
twice is once): a process that dies between the two leaves no gap.
"""

import getpass
import re
from dataclasses import asdict
from typing import Any

from perdure.errors import Conflict, Exists, NotFound
from perdure.records import Traffic
from perdure.registry.manifest import now, seal, unseal
from perdure.registry.store import Store, check_key

__all__ = ["Channels", "this_user"]


class Channels:
    """The pointers of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def names(self) -> list[str]:
        """Of all channels that were ever moved."""
        return [key.removeprefix("channels/").removesuffix(".json") for key in self._store.list("channels/")]

    def pointer(self, channel: str) -> tuple[dict[str, Any], str] | None:
        """What a channel holds since its last move, and the token to move it on with; None where there is no such channel."""
        key = f"channels/{check_key(channel)}.json"
        found = self._store.read_pointer(key)
        return (unseal(found[0], key), found[1]) if found else None

    def move(
        self,
        channel: str,
        pointer: tuple[dict[str, Any], str] | None,
        release: str,
        history: list[str],
        *,
        action: str,
        by: str,
        reason: str,
        forced: list[str],
        traffic: Traffic | None = None,
    ) -> None:
        """Compare-and-swap a channel and journal the move; Conflict when the swap is lost.

        A swap whose answer was lost on the way may look lost itself: it won, and someone moved the channel on from it before it was
        asked again. Whoever did so journalled it first, so the journal knows.
        """
        if pointer:
            self._record(channel, pointer[0])
        move: dict[str, Any] = {
            "release": release,
            "history": history,
            "before": pointer[0]["release"] if pointer else None,
            "number": pointer[0]["number"] + 1 if pointer else 1,
            "at": now(),
            "action": action,
            "by": by,
            "user": this_user(),
            "reason": reason,
            "forced": forced,
            **({"traffic": asdict(traffic)} if traffic not in (None, Traffic()) else {}),
        }
        try:
            self._store.swap_pointer(f"channels/{check_key(channel)}.json", seal(move), pointer[1] if pointer else None)
        except Conflict:
            if not self._recorded(channel, move):
                raise
        else:
            self._record(channel, move)

    def journal(self) -> list[dict[str, Any]]:
        """Every move of every channel, oldest first: at, channel, number, action, release, before, by, reason, forced."""
        for name in self.names():
            pointer = self.pointer(name)
            if pointer:
                self._record(name, pointer[0])
        entries = [unseal(self._store.read(key), key) for key in self._store.list("journal/")]
        return sorted(entries, key=lambda entry: (entry["at"], entry["channel"], entry["number"]))

    def _record(self, channel: str, move: dict[str, Any]) -> None:
        """Write a move's journal entry unless it is there."""
        key, entry = _journal_entry(channel, move)
        try:
            self._store.create(key, entry)
        except Exists:
            return

    def _recorded(self, channel: str, move: dict[str, Any]) -> bool:
        """Whether the journal has this very move."""
        key, entry = _journal_entry(channel, move)
        try:
            return self._store.read(key) == entry
        except NotFound:
            return False


def _journal_entry(channel: str, move: dict[str, Any]) -> tuple[str, bytes]:
    """Key and bytes of a move's entry."""
    entry = {"channel": channel} | {key: value for key, value in move.items() if key != "history"}
    stamp = re.sub(r"[^0-9]", "", move["at"])[:20]
    return f"journal/{stamp}-{channel}-{move['number']:06d}.json", seal(entry)


def this_user() -> str:
    """The operating system's name for who runs this, for the audit journal."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without an entry in /etc/passwd
        return "unknown"
