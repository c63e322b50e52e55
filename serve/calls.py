"""Calls of a gateway to replicas of other deployments.

They change nothing, so one that meets a replica that dies is made once more, and one that meets replicas that hang up to twice.
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
_MOST_REPEATED = 2  # times that a call is made once more because nothing comes
_MOST_SECOND_CALLS = 16  # at once, in a gateway: where everything is slow, asking twice makes it slower


class Calls:
    """Makes calls, with the patience that the service was told to have."""

    def __init__(self, args: ServeArgs) -> None:
        self._timeout_s = args.request_timeout_s
        self._second_after_s = args.second_call_after_s
        self.again = 0  # calls under way that repeat others

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        """A call to a callee, made again when its replica dies or does not answer soon.

        Raises:
            Problem: 503 when it cannot be reached, 504 when it takes too long.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._answered(call)
        except _GONE as error:
            raise Problem(503, "a part of the service is being restarted; try again shortly") from error
        except _REFUSED as error:
            raise Problem(503, "the service has more requests than it can take; try again shortly") from error
        except TimeoutError as error:
            raise Problem(504, f"a part of the service did not answer within {self._timeout_s:g} s") from error

    async def _answered(self, call: Callable[[], Awaitable[T]]) -> T:
        """The first answer of a call and its repetitions; Serve gives each of those to a replica that has less to do.

        One that hangs may look idle to Serve for a moment and be given the second call, too; hence a third.
        """
        calls, repeated = {asyncio.create_task(_awaited(call))}, 0
        try:
            while True:
                wait_s = self._second_after_s if repeated < _MOST_REPEATED else None
                done, waiting = await asyncio.wait(calls, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: task.exception() is not None):
                    error = task.exception()
                    other_may = bool(waiting) or (isinstance(error, _GONE) and not repeated)
                    if not (isinstance(error, (*_GONE, *_REFUSED)) and other_may):
                        return task.result()
                calls = waiting
                if (done and repeated) or repeated == _MOST_REPEATED or (not done and self.again >= _MOST_SECOND_CALLS):
                    continue
                log.warning("a replica %s; asking another one", "went away" if done else "does not answer")
                calls.add(asyncio.create_task(_awaited(call)))
                self.again += 1
                repeated += 1
        finally:
            self.again -= repeated
            for task in calls:
                task.cancel()


async def _awaited(call: Callable[[], Awaitable[T]]) -> T:
    return await call()
