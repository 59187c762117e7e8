"""Delivers webhook messages, at least once each: a process that dies between sending one and recording that leaves it to be sent
again, with the same id."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from serve_app import __version__
from serve_app.errors import RequestError
from serve_app.jobs.model import Delivery, LeaseLost
from serve_app.jobs.store import UNAVAILABLE, JobStore
from serve_app.jobs.webhook_client import NoAnswer, WebhookClient
from serve_app.jobs.webhook_messages import (
    MAX_TRIES,
    asked_delay_s,
    body_of,
    delay_s,
    ends_tries,
    is_delivered,
    key_of,
    signed_headers,
)
from serve_app.tasks import stop

log = logging.getLogger("ray.serve")

MAX_AT_ONCE = 32
"""Messages that are on their way at once."""
MAX_PER_HOST = 4
"""So many of them go to one host, so that one which does not answer leaves room for the others."""
POLL_S = 1.0
"""How often a store without messages is asked for one, and one that is unavailable called again, seconds."""


Outcome = Literal["delivered", "failed", "given_up"]
"""Of a try; `given_up`: it was the last one."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a try failed."""

    message: str
    is_final: bool = False
    asked_s: float | None = None
    """The delay that the target asked for, seconds."""


class Deliverer:
    """Sends the messages of a store that are due. Any number of processes may have one.

    `secrets` are those that messages are signed with; there are several while receivers change from one to another. `on_try` gets
    the outcome of each try. The store's leases must last longer than a try does: `webhook_client.TIMEOUT_S`, and a few seconds.
    Raises ValueError if there is no secret, or an invalid one.
    """

    def __init__(
        self,
        store: JobStore,
        client: WebhookClient,
        secrets: Iterable[str],
        *,
        clock_s: Callable[[], float] = time.time,
        poll_s: float = POLL_S,
        on_try: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._client = client
        self._keys = [key_of(secret) for secret in secrets]
        if not self._keys:
            raise ValueError("webhook messages need a secret to be signed with")
        self._clock_s = clock_s
        self._poll_s = poll_s
        self._on_try = on_try
        self._running: dict[asyncio.Task[None], str] = {}
        """Tries in progress, with their hosts."""
        self._is_stopping = False
        self._woken = asyncio.Event()
        """Set when a try has ended, and when this is to stop."""

    async def run(self) -> None:
        """Deliver until `stop`, and then finish what is on its way. If this is cancelled, those messages are sent again when
        their leases have ended."""
        try:
            while not self._is_stopping:
                self._woken.clear()
                delivery = await self._next()
                if delivery is None:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._poll_s):
                            await self._woken.wait()
                else:
                    task = asyncio.create_task(self._deliver(delivery))
                    self._running[task] = delivery.host
                    task.add_done_callback(self._ended)
            while self._running:
                await asyncio.wait(self._running)
        finally:
            await stop(*self._running)

    def stop(self) -> None:
        """Let `run` end. It takes as long as the tries that are in progress."""
        self._is_stopping = True
        self._woken.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._woken.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("webhooks: a try could not be recorded", exc_info=error)

    async def _next(self) -> Delivery | None:
        """A message that is due, if there is room for it."""
        if len(self._running) >= MAX_AT_ONCE:
            return None
        busy = [host for host, count in Counter(self._running.values()).items() if count >= MAX_PER_HOST]
        try:
            return await self._store.claim_delivery(busy)
        except UNAVAILABLE:
            return None
        except Exception:
            log.exception("webhooks: the next message cannot be read")
            return None

    async def _deliver(self, delivery: Delivery) -> None:
        """One try, from sending to recording it."""
        failure = await self._try(delivery)
        if failure is None:
            self._on_try("delivered")
            await self._settle(delivery)
            return
        retry_after_s = None if failure.is_final else delay_s(delivery.tries, random.random(), failure.asked_s)
        self._on_try("given_up" if retry_after_s is None else "failed")
        if retry_after_s is None:
            # The host alone: URLs may contain secrets.
            log.warning("webhook %s to %s is given up: %s", delivery.delivery_id, delivery.host, failure.message)
        await self._settle(delivery, failure.message, retry_after_s)

    async def _try(self, delivery: Delivery) -> Failure | None:
        if delivery.tries > MAX_TRIES:
            # Only where earlier tries were not recorded: the process did not survive them.
            return Failure(delivery.error or "The tries did not end.", is_final=True)
        try:
            body = body_of(delivery)
            headers = signed_headers(delivery.delivery_id, body, self._keys, self._clock_s())
            headers |= {"Content-Type": "application/json", "User-Agent": f"parakeet-ray-serve/{__version__}"}
            answer = await self._client.post(delivery.webhook_url, headers, body)
        except RequestError as error:
            return Failure(error.message, is_final=True)
        except NoAnswer as error:
            return Failure(str(error))
        except Exception:
            log.exception("webhook %s cannot be sent", delivery.delivery_id)
            return Failure("Internal error.")
        if is_delivered(answer.status):
            return None
        asked_s = asked_delay_s(answer.retry_after, self._clock_s())
        return Failure(f"HTTP {answer.status}", is_final=ends_tries(answer.status), asked_s=asked_s)

    async def _settle(self, delivery: Delivery, error: str | None = None, retry_after_s: float | None = None) -> None:
        """Record a try, as soon as the store is available."""
        while True:
            try:
                await self._store.settle_delivery(delivery, error=error, retry_after_s=retry_after_s)
            except LeaseLost:
                # It was claimed anew meanwhile, or this was recorded already.
                return
            except UNAVAILABLE:
                if self._is_stopping:
                    return
                await asyncio.sleep(self._poll_s)
            else:
                return
