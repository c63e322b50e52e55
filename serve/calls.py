"""Calls of a gateway to replicas of other deployments.

They change nothing, so one that meets a replica that dies or hangs is made once more.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve.problems import Problem
from serve.schemas import ServeArgs

__all__ = ["Calls"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_GONE = (ActorDiedError, ActorUnavailableError)
_REFUSED = (BackPressureError, DeploymentUnavailableError)
_MOST_SECOND_CALLS = 16  # at once, in a gateway: where everything is slow, asking twice makes it slower


class Calls:
    """Makes calls, with the patience that the service was told to have."""

    def __init__(self, args: ServeArgs) -> None:
        self._timeout_s = args.request_timeout_s
        self._second_after_s = args.second_call_after_s
        self.again = 0  # calls that are under way for the second time

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        """A call to a callee, made once more when its replica dies or does not answer soon.

        Raises:
            Problem: 503 when it cannot be reached, 504 when it takes too long.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._twice(call)
        except _GONE as error:
            raise Problem(503, "a part of the service is being restarted; try again shortly") from error
        except _REFUSED as error:
            raise Problem(503, "the service has more requests than it can take; try again shortly") from error
        except TimeoutError as error:
            raise Problem(504, f"a part of the service did not answer within {self._timeout_s:g} s") from error

    async def _twice(self, call: Callable[[], Awaitable[T]]) -> T:
        """The first answer of at most two calls; Serve gives the second one to a replica that has less to do."""
        calls, second = {asyncio.create_task(_awaited(call))}, False
        try:
            while True:
                wait_s = None if second else self._second_after_s
                done, waiting = await asyncio.wait(calls, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: task.exception() is not None):
                    error = task.exception()
                    other_may = bool(waiting) or (isinstance(error, _GONE) and not second)
                    if not (isinstance(error, (*_GONE, *_REFUSED)) and other_may):
                        return task.result()
                calls = waiting
                if second or (not done and self.again >= _MOST_SECOND_CALLS):
                    continue
                log.warning("a replica %s; asking another one", "went away" if done else "does not answer")
                calls.add(asyncio.create_task(_awaited(call)))
                self.again += 1
                second = True
        finally:
            self.again -= second
            for task in calls:
                task.cancel()


async def _awaited(call: Callable[[], Awaitable[T]]) -> T:
    return await call()
