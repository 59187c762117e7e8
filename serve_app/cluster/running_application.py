"""Which deployments the running application has, as Serve's controller knows them."""

import asyncio
import logging
import time

from ray import serve
from ray.serve.schema import ApplicationStatus

log = logging.getLogger("ray.serve")

MAX_AGE_S = 2.0
"""The controller is asked at most this often, seconds."""


class RunningApplication:
    """The deployments of one application. Belongs to one event loop."""

    def __init__(self, application: str) -> None:
        self._application = application
        self._names: frozenset[str] | None = None
        self._asked_at_s = -MAX_AGE_S
        self._asking: asyncio.Future[frozenset[str]] | None = None

    async def includes(self, name: str) -> bool:
        """Whether the application has a deployment of that name. It has none from the moment it is being removed.

        True while the controller does not answer: it is replaced without a change to the application.
        """
        if self._asking is None and time.monotonic() - self._asked_at_s >= MAX_AGE_S:
            self._asked_at_s = time.monotonic()
            self._asking = asyncio.ensure_future(asyncio.to_thread(self._ask))
            self._asking.add_done_callback(self._take)
        if self._asking is not None:
            await asyncio.wait([self._asking], timeout=MAX_AGE_S)
        return self._names is None or name in self._names

    def _ask(self) -> frozenset[str]:
        application = serve.status().applications.get(self._application)
        if application is None or application.status == ApplicationStatus.DELETING:
            return frozenset()
        return frozenset(application.deployments)

    def _take(self, asked: "asyncio.Future[frozenset[str]]") -> None:
        self._asking = None
        if asked.cancelled():
            return
        if (error := asked.exception()) is not None:
            log.warning("Serve's controller is unreachable: %r", error)
        else:
            self._names = asked.result()
