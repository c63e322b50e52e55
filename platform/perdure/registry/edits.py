"""The log of writes of a run: numbered edits, each created once, so that of two writers one is first and the other comes after it.

    edits/<run>/<number>.json    an edit; sealed, immutable; it lists the edits that count from there on
    edits/<run>.json             a pointer to the newest number, or to one a little behind it: where to begin to look

To append is to create the next number: a write is there when that file is, wholly and once. The pointer only saves readers a listing; a
process that dies before it moves the pointer loses nothing.
"""

import json
from dataclasses import asdict
from typing import Any

from perdure.errors import NotFound, RegistryError
from perdure.records import Edit, EncoderRef, SegmentRef
from perdure.registry.manifest import seal, unseal
from perdure.registry.store import Store, check_key

__all__ = ["EditLog"]

_REMEMBERED = 4096  # edits that were read


class EditLog:
    """The edits of one run. Threads may share it."""

    def __init__(self, store: Store, run: str) -> None:
        if "/" in check_key(run):
            raise RegistryError(f"run '{run}': a run is a plain name")
        self._store = store
        self._run = run
        self._newest = 0  # there is one of this number
        self._read: dict[int, Edit] = {}

    def newest(self) -> int:
        """The number of the newest edit, 0 where none was made."""
        pointer = self._store.read_pointer(self._pointer_key)
        number = max(self._newest, json.loads(pointer[0])["newest"] if pointer else 0)
        while self._there(number + 1):
            number += 1
        self._newest = max(number, self._newest)
        return number

    def edit(self, number: int) -> Edit:
        """One edit.

        Raises:
            NotFound: there is none of this number.
            Corrupt: its bytes were changed.
        """
        found = self._read.get(number)
        if found is None:
            key = self._key(number)
            found = _from_plain(unseal(self._store.read(key), key))
            if len(self._read) >= _REMEMBERED:
                self._read = {}
            self._read[number] = found
        return found

    def active(self, number: int) -> tuple[Edit, ...]:
        """The edits that count at a number, in their order; none at 0."""
        return tuple(self.edit(each) for each in self.edit(number).active) if number else ()

    def append(self, edit: Edit) -> None:
        """Add the next edit; durable when this returns.

        Raises:
            Exists: another writer was faster; look at `newest` again.
        """
        self._store.create(self._key(edit.number), seal(asdict(edit) | {"segments": [[str(ref), str(by)] for ref, by in edit.segments]}))
        self._newest = max(self._newest, edit.number)
        self._point(edit.number)

    def _point(self, number: int) -> None:
        """Move the pointer forward, or let whoever moves it at this moment do so."""
        try:
            found = self._store.read_pointer(self._pointer_key)
            if found is None or json.loads(found[0])["newest"] < number:
                self._store.swap_pointer(self._pointer_key, json.dumps({"newest": number}).encode(), found[1] if found else None)
        except RegistryError:
            return  # the edit is there, and is found without it

    def _there(self, number: int) -> bool:
        if number in self._read:
            return True
        try:
            self.edit(number)
        except NotFound:
            return False
        return True

    @property
    def _pointer_key(self) -> str:
        return f"edits/{self._run}.json"

    def _key(self, number: int) -> str:
        return f"edits/{self._run}/{number}.json"


def _from_plain(plain: dict[str, Any]) -> Edit:
    segments = tuple((SegmentRef.parse(ref), EncoderRef.parse(made_by)) for ref, made_by in plain["segments"])
    given: dict[str, Any] = plain | {"active": tuple(plain["active"]), "removed": tuple(plain["removed"]), "segments": segments}
    return Edit(**given)
