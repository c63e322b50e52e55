"""What can go wrong, as a user sees it. Every message says what was asked, what was found, and what to do.

PerdureError
|- ConfigError             a run's configuration: all problems of a file at once
|- DataError               a dataset: a missing file, a column, an image that does not decode, an empty class
|- RegistryError           the registry
|  |- NotFound             no such version, release or channel
|  |- Exists               create-once was asked of a key that exists
|  |- Conflict             a pointer moved between read and write (compare-and-swap lost)
|  |- Held                 another driver, which lives, learns the run of this name
|  '- Corrupt              bytes whose sha256 is not the manifest's
|- Incompatible            an encoder may not query this segment (promise 1 of the design)
|- NotLoaded               a serving replica lacks the release that a request is pinned to
|- GateRefused             a release failed a promotion gate
|- Regret                  a slice of a backfill would make queries worse
|- Unavailable             the cluster is not there, has no room, or lost more workers than a run survives
'- BadQuery                a search request that cannot be answered: nothing to search by, not an image, k out of range
"""

__all__ = [
    "BadQuery",
    "ConfigError",
    "Conflict",
    "Corrupt",
    "DataError",
    "Exists",
    "GateRefused",
    "Held",
    "Incompatible",
    "NotFound",
    "NotLoaded",
    "PerdureError",
    "RegistryError",
    "Regret",
    "Unavailable",
]


class PerdureError(Exception):
    """Anything this package raises on purpose; the message is meant for the person who reads it."""


class ConfigError(PerdureError):
    """A configuration with one problem or several; `problems` holds one line each."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = list(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n  ".join([f"{source}: {count}", *problems]))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[str, list[str]]]:
        return (ConfigError, (self.source, self.problems))


class DataError(PerdureError):
    """A dataset that cannot be read as asked; the message names the file and the row."""


class RegistryError(PerdureError):
    """The registry cannot do what was asked."""


class NotFound(RegistryError):
    """No such key, version, release or channel."""


class Exists(RegistryError):
    """The key exists already; registry bytes are immutable."""


class Conflict(RegistryError):
    """A pointer was moved by someone else between our read and our write."""


class Held(RegistryError):
    """The name is another driver's, which lives."""


class Corrupt(RegistryError):
    """Stored bytes do not have the sha256 that their manifest promises."""


class Incompatible(PerdureError):
    """This encoder may not query this segment."""


class NotLoaded(PerdureError):
    """A serving replica does not hold the release that the request is pinned to."""


class GateRefused(PerdureError):
    """A release failed a gate and was not promoted."""


class BadQuery(PerdureError):
    """A search request that cannot be answered as it stands."""


class Regret(PerdureError):
    """Moving a slice of old items to a new encoder would make queries worse; the message has the figures."""


class Unavailable(PerdureError):
    """The cluster cannot do it now; the same command may do it at another time, and goes on where it stopped."""
