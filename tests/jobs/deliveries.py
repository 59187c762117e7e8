"""What the tests of webhooks share: jobs that have ended, a deliverer at work, and waiting for it."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from serve_app.jobs.model import Delivery
from serve_app.jobs.store import JobStore
from serve_app.jobs.webhook_client import WebhookClient
from serve_app.jobs.webhooks import Deliverer
from tests.jobs.receivers import Receiver
from tests.jobs.stores import queued

OLD, NEW = (f"whsec_{base64.b64encode(bytes([n]) * 24).decode()}" for n in (1, 2))
"""Secrets."""


@asynccontextmanager
async def delivering(deliverer: Deliverer) -> AsyncIterator[None]:
    """It is at work, and finishes what it has begun."""
    running = asyncio.create_task(deliverer.run())
    try:
        yield
    finally:
        deliverer.stop()
        await running


def make_deliverer(store: JobStore, client: WebhookClient, *secrets: str) -> Deliverer:
    return Deliverer(store, client, secrets or [OLD], poll_s=0.01)


async def deliver(deliverer: Deliverer, target: Receiver, count: int) -> None:
    """Deliver until `count` messages have arrived at the target, and what became of them is recorded."""
    async with delivering(deliverer):
        await until(lambda: len(target.received) >= count)
    assert len(target.received) == count


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it is true."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def ended(store: JobStore, url: str) -> str:
    """The id of a job that is cancelled."""
    job_id = await queued(store, webhook_url=url, metadata={"a": 1})
    await store.cancel("alice", job_id)
    return job_id


async def delivery_of(store: JobStore, job_id: str) -> Delivery:
    """As it is now."""
    (delivery,) = (await store.status("alice", job_id)).deliveries
    return delivery


async def settled(store: JobStore, job_id: str) -> Delivery:
    """As it is when there will be no more tries."""
    async with asyncio.timeout(20):
        while (delivery := await delivery_of(store, job_id)).next_try_at_s is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return delivery
