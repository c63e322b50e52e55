"""How many requests a key may send: a bucket of tokens for each, filled at a steady rate, in every gateway on its own.

Where there are no keys, an address has the bucket. Health, the page and its files are free.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.keys import OPEN_PATHS
from serve.problems import problem_response

__all__ = ["Limited"]

_MOST_CALLERS = 10_000  # buckets that are kept; the one that was used longest ago goes first


class Limited:
    """ASGI middleware, inside `Guard`: who calls is known here.

    Args:
        app: what is protected.
        per_s: requests a second, in the long run.
        burst: requests at once, after a pause.
        clock: seconds, ever growing; tests bring their own.
    """

    def __init__(self, app: ASGIApp, *, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller: (tokens, when)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 429 and say when to come again."""
        free = scope["type"] != "http" or scope["path"] in OPEN_PATHS or scope["path"].startswith("/static/")
        wait_s = 0.0 if free else self._take(_caller(scope))
        if wait_s <= 0:
            await self._app(scope, receive, send)
            return
        detail = f"more than {self._per_s:g} requests a second (and {self._burst} at once); come again in {wait_s:.1f} s"
        headers = {"Retry-After": str(math.ceil(wait_s))}
        await problem_response(scope, 429, detail, headers=headers)(scope, receive, send)

    def _take(self, caller: str) -> float:
        """Take a token; the seconds until there is one, 0 where there was."""
        now = self._clock()
        tokens, at = self._buckets.pop(caller, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - at) * self._per_s)
        taken = tokens >= 1.0
        self._buckets[caller] = (tokens - taken, now)
        if len(self._buckets) > _MOST_CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if taken else (1.0 - tokens) / self._per_s


def _caller(scope: Scope) -> str:
    client = scope.get("client")
    return scope.get("state", {}).get("key_name") or (client[0] if client else "unknown")
