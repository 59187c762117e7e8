"""Which deployments the running application has, as Serve's controller knows them."""

import asyncio
import logging
import time
from contextvars import Context

from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

log = logging.getLogger("ray.serve")

MAX_AGE_S = 0.5
"""The controller is asked at most this often, seconds. An answer takes it 1 ms."""

REPLY_TIMEOUT_S = 2.0
"""How long a caller waits for the controller, seconds."""


class RunningApplication:
    """The deployments of one application. Belongs to one event loop."""

    def __init__(self, application: str) -> None:
        self._application = application
        self._names: frozenset[str] | None = None
        self._asked_at_s = -MAX_AGE_S
        self._asking: asyncio.Future[frozenset[str] | None] | None = None

    async def includes(self, name: str) -> bool:
        """Whether the application has a deployment of that name. It has none from the moment it is being removed.

        True while the controller does not answer: it is replaced without a change to the application.
        """
        if self._asking is None and time.monotonic() - self._asked_at_s >= MAX_AGE_S:
            self._asked_at_s = time.monotonic()
            # Unlike `asyncio.to_thread`, in no context: Ray would cancel the call together with the request that is first to ask.
            self._asking = asyncio.get_running_loop().run_in_executor(None, self._ask)
            self._asking.add_done_callback(self._take, context=Context())
        if self._asking is not None:
            await asyncio.wait([self._asking], timeout=REPLY_TIMEOUT_S)
        return self._names is None or name in self._names

    def _ask(self) -> frozenset[str] | None:
        # `serve.status` would ask for every application in all details, which takes the controller ten times as long.
        client = _get_global_client()
        assert client is not None
        overview = client.get_serve_status(self._application)
        if overview.app_status.status in (ApplicationStatus.NOT_STARTED, ApplicationStatus.DELETING):
            return frozenset()
        # While `serve deploy` builds the application anew, and if that fails, Serve names none; the old ones go on.
        return frozenset(deployment.name for deployment in overview.deployment_statuses) or self._names

    def _take(self, asked: "asyncio.Future[frozenset[str] | None]") -> None:
        self._asking = None
        if asked.cancelled():
            return
        if (error := asked.exception()) is not None:
            log.warning("Serve's controller is unreachable: %r", error)
        else:
            self._names = asked.result()
