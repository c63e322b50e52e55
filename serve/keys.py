"""API keys, and who may call what.

A keys file has one key a line, `<scope>[,<scope>] <sha256 of the key, in hex>`, blank lines and `#` comments aside; it holds no
secret. Scopes: `search` (every question), `write` (items), `admin` (which release is live). A line grants what it lists, no more.
Without a file, questions are open and changes are taken from this very machine only.
"""

import hashlib
import hmac
import ipaddress
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from perdure.errors import ConfigError
from serve.problems import Problem, problem_response

__all__ = ["SCOPES", "Guard", "Keys", "is_loopback"]

log = logging.getLogger(__name__)

SCOPES = frozenset({"search", "write", "admin"})
OPEN_PATHS = frozenset({"/", "/docs", "/healthz", "/readyz", "/favicon.ico"})


class Keys:
    """The keys of a file, read again when the file changes, so that a key is revoked without a restart.

    Raises:
        ConfigError: the file is missing, empty or a line is not as described; all bad lines at once. Digests are not shown.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._keys = _parse(path)

    def scopes(self, key: str) -> frozenset[str] | None:
        """What a key may do; None when it is not in the file. Takes the same time whichever line matches, or none."""
        self._refresh()
        digest = hashlib.sha256(key.encode()).digest()
        found: frozenset[str] | None = None
        for known, scopes in self._keys:
            if hmac.compare_digest(known, digest):
                found = (found or frozenset()) | scopes
        return found

    def _refresh(self) -> None:
        """Read the file again if it changed; a file that became unreadable grants nothing until it is mended."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        try:
            self._keys = _parse(self._path)
        except ConfigError as error:
            log.error("keys file: every key is refused until it is mended: %s", error)
            self._keys = ()
        self._stamp = stamp


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _parse(path: Path) -> tuple[tuple[bytes, frozenset[str]], ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"keys file {path}", [f"cannot be read: {error}"]) from None
    keys: list[tuple[bytes, frozenset[str]]] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        scopes = frozenset(words[0].split(","))
        if len(words) != 2 or not scopes <= SCOPES:
            problems.append(f"line {number}: expected '<scope>[,<scope>] <sha256>', scopes of {', '.join(sorted(SCOPES))}")
            continue
        try:
            digest = bytes.fromhex(words[1])
        except ValueError:
            digest = b""
        if len(digest) != 32:
            problems.append(f"line {number}: the second word is not a sha256 in hex (64 digits); make one with: printf %s KEY | sha256sum")
            continue
        keys.append((digest, scopes))
    if not keys and not problems:
        problems.append("it holds no key, so nobody could call; add one or start without a keys file")
    if problems:
        raise ConfigError(f"keys file {path}", problems)
    return tuple(keys)


def is_loopback(host: str) -> bool:
    """Whether an address or name means this machine and nothing else."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def needed_scope(method: str, path: str) -> str:
    """The scope of a route; what is not known to be a question is a change."""
    if method in ("GET", "HEAD", "OPTIONS") or path in ("/v1/search", "/v1/search/batch"):
        return "search"
    return "write" if path == "/v1/items" or path.startswith("/v1/items/") else "admin"


class Guard:
    """ASGI middleware: keys, the loopback rule and the size of bodies, decided before a route sees the request."""

    def __init__(self, app: ASGIApp, *, keys: Keys | None, host: str, max_body_bytes: int) -> None:
        self._app = app
        self._keys = keys
        self._host = host
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._authorise(scope, headers)
            self._check_length(headers)
        except Problem as problem:
            await problem_response(scope, problem.status_code, problem.detail, headers=problem.headers)(scope, receive, send)
            return
        await self._app(scope, _limited(receive, self._max_body_bytes), send)

    def _authorise(self, scope: Scope, headers: Mapping[bytes, str]) -> None:
        path: str = scope["path"]
        if path in OPEN_PATHS or path.startswith("/static/"):
            return
        needed = needed_scope(scope["method"], path)
        if self._keys is None:
            if needed != "search":
                _require_loopback(scope, headers, self._host)
            return
        kind, _, key = headers.get(b"authorization", "").partition(" ")
        granted = self._keys.scopes(key.strip()) if kind.lower() == "bearer" else None
        if granted is None:
            raise Problem(
                401, "this server needs a key: send the header 'Authorization: Bearer KEY'", headers={"WWW-Authenticate": "Bearer"}
            )
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        scope.setdefault("state", {})["key_name"] = f"key-{digest[:8]}"  # the first digits of its line in the file
        if needed not in granted:
            raise Problem(403, f"this key may {', '.join(sorted(granted))}; {scope['method']} {path} needs the scope '{needed}'")

    def _check_length(self, headers: Mapping[bytes, str]) -> None:
        length = headers.get(b"content-length", "")
        if length.isdecimal() and int(length) > self._max_body_bytes:
            raise _too_large(self._max_body_bytes, int(length))


def _require_loopback(scope: Scope, headers: Mapping[bytes, str], host: str) -> None:
    """Without keys, take changes from this machine only, and not from a web page of somebody else's that is open on it."""
    client: Any = scope.get("client")
    name = urlsplit("//" + headers.get(b"host", "")).hostname or ""
    origin = headers.get(b"origin")
    here = is_loopback(host) and is_loopback(name) and client is not None and is_loopback(client[0])
    own_page = origin is None or urlsplit(origin).netloc == headers.get(b"host", "")
    if not (here and own_page):
        raise Problem(403, "changes are taken from this machine only, unless the server is started with a keys file (PERDURE_KEYS)")


def _limited(receive: Receive, max_bytes: int) -> Receive:
    """The same body, cut off with a 413 when it grows too large: chunked bodies do not say their length beforehand."""
    seen = 0

    async def limited() -> Any:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > max_bytes:
            raise _too_large(max_bytes, seen)
        return message

    return limited


def _too_large(limit: int, found: int) -> Problem:
    return Problem(413, f"the body has {found:,} bytes or more; this server takes up to {limit:,}. Send a smaller picture")
