"""Delivery where targets hang, processes die and the store is locked."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from serve_app.jobs.database import Database
from serve_app.jobs.sql_store import SqlStore
from serve_app.jobs.sqlite import SqliteConnection
from serve_app.jobs.webhook_client import WebhookClient
from serve_app.jobs.webhook_messages import MAX_TRIES
from serve_app.jobs.webhook_targets import WebhookTargets
from serve_app.jobs.webhooks import MAX_PER_HOST
from tests.jobs.deliveries import OLD, deliver, delivering, delivery_of, ended, make_deliverer, settled, until
from tests.jobs.receivers import Received, Receiver, answer, receiver
from tests.jobs.stores import LEASE_S, Clock


class TestManyAtOnce:
    async def test_a_host_that_hangs_does_not_hold_up_others(
        self, store: SqlStore, webhook_client: WebhookClient, target: Receiver, opened: AsyncExitStack
    ) -> None:
        """Its messages are due before all others, and are far more than are delivered at once."""
        slow = await opened.enter_async_context(receiver("127.0.0.2"))
        go = asyncio.Event()

        async def hang(_: Received) -> bytes:
            await go.wait()
            return answer(204)

        slow.respond = hang
        for _ in range(MAX_PER_HOST * 10):
            await ended(store, slow.url())
        for _ in range(MAX_PER_HOST * 2):
            await ended(store, target.url())
        async with delivering(make_deliverer(store, webhook_client)):
            await until(lambda: len(target.received) == MAX_PER_HOST * 2)
            assert slow.connections == MAX_PER_HOST
            go.set()
            await until(lambda: len(slow.received) == MAX_PER_HOST * 10)

    async def test_two_deliverers_share_the_messages(
        self, make_store: Callable[[], SqlStore], webhook_client: WebhookClient, target: Receiver
    ) -> None:
        stores = [make_store(), make_store()]
        for _ in range(40):
            await ended(stores[0], target.url())
        async with delivering(make_deliverer(stores[0], webhook_client)), delivering(make_deliverer(stores[1], webhook_client)):
            await until(lambda: len(target.received) >= 40)
        assert len({request.headers["webhook-id"] for request in target.received}) == len(target.received) == 40


class TestEnds:
    async def test_a_process_that_dies_in_the_middle(
        self, store: SqlStore, clock: Clock, webhook_client: WebhookClient, target: Receiver
    ) -> None:
        """The message arrives twice, with the same id."""
        responding = target.respond

        async def hang(_: Received) -> bytes:
            await asyncio.Event().wait()
            return b""

        target.respond = hang
        job_id = await ended(store, target.url())
        running = asyncio.create_task(make_deliverer(store, webhook_client).run())
        await until(lambda: len(target.received) == 1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        target.respond = responding
        assert await store.claim_delivery() is None
        clock.advance(LEASE_S)
        await deliver(make_deliverer(store, webhook_client), target, 2)
        first, second = target.received
        assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
        delivery = await delivery_of(store, job_id)
        assert (delivery.is_delivered, delivery.tries) == (True, 2)

    async def test_a_message_whose_tries_kill_the_process(
        self, store: SqlStore, clock: Clock, webhook_client: WebhookClient, target: Receiver
    ) -> None:
        job_id = await ended(store, target.url())
        for _ in range(MAX_TRIES):
            assert await store.claim_delivery() is not None
            clock.advance(LEASE_S)
        other = await ended(store, target.url())
        await deliver(make_deliverer(store, webhook_client), target, 1)
        assert Webhook(OLD).verify(target.received[0].body, target.received[0].headers)["data"]["id"] == other
        delivery = await delivery_of(store, job_id)
        assert (delivery.next_try_at_s, delivery.is_delivered, delivery.error) == (None, False, "The tries did not end.")

    async def test_a_stop_waits_for_what_is_on_its_way(
        self, store: SqlStore, webhook_client: WebhookClient, target: Receiver
    ) -> None:
        go = asyncio.Event()

        async def wait(_: Received) -> bytes:
            await go.wait()
            return answer(204)

        target.respond = wait
        job_id = await ended(store, target.url())
        deliverer = make_deliverer(store, webhook_client)
        running = asyncio.create_task(deliverer.run())
        await until(lambda: len(target.received) == 1)
        deliverer.stop()
        await ended(store, target.url())
        await asyncio.sleep(0.05)
        assert not running.done()
        go.set()
        await running
        assert (await delivery_of(store, job_id)).is_delivered
        assert len(target.received) == 1


async def test_a_fault_of_our_own(
    store: SqlStore, target: Receiver, opened: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a failed try, and the next message goes out."""

    async def look_up(name: str, port: int) -> list[str]:
        return ["no address"]

    client = WebhookClient(WebhookTargets.of(["127.0.0.1"]), look_up=look_up)
    opened.push_async_callback(client.close)
    job_id = await ended(store, target.url("odd.test"))
    await ended(store, target.url())
    await deliver(make_deliverer(store, client), target, 1)
    delivery = await delivery_of(store, job_id)
    assert (delivery.error, delivery.next_try_at_s is None) == ("Internal error.", False)
    assert "cannot be sent" in caplog.text


class TestStoreThatIsUnavailable:
    @pytest.fixture
    async def store(self, sqlite_path: Path, clock: Clock, opened: AsyncExitStack) -> SqlStore:
        """It waits for locks but briefly."""
        database = Database(lambda reads_only: SqliteConnection(sqlite_path, reads_only=reads_only, timeout_s=0.02))
        store = SqlStore(database, lease_s=LEASE_S, clock_s=clock)
        opened.push_async_callback(store.close)
        await store.open()
        return store

    @pytest.fixture
    def locks(self, sqlite_path: Path, opened: AsyncExitStack) -> sqlite3.Connection:
        connection = sqlite3.connect(sqlite_path, isolation_level=None, timeout=20)
        opened.callback(connection.close)
        return connection

    async def test_before_a_message_is_claimed(
        self,
        store: SqlStore,
        webhook_client: WebhookClient,
        target: Receiver,
        locks: sqlite3.Connection,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        await ended(store, target.url())
        locks.execute("BEGIN IMMEDIATE").close()
        async with delivering(make_deliverer(store, webhook_client)):
            await until(lambda: caplog.text.count("locked") >= 3)
            assert target.received == []
            locks.execute("COMMIT").close()
            await until(lambda: len(target.received) == 1)

    async def test_before_a_try_is_recorded(
        self,
        store: SqlStore,
        webhook_client: WebhookClient,
        target: Receiver,
        locks: sqlite3.Connection,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is recorded later, and not sent again."""

        async def lock(_: Received) -> bytes:
            locks.execute("BEGIN IMMEDIATE").close()
            return answer(204)

        target.respond = lock
        job_id = await ended(store, target.url())
        async with delivering(make_deliverer(store, webhook_client)):
            await until(lambda: caplog.text.count("locked") >= 5)
            assert not (await delivery_of(store, job_id)).is_delivered
            locks.execute("COMMIT").close()
            assert (await settled(store, job_id)).is_delivered
        assert len(target.received) == 1

    async def test_a_stop_does_not_wait_for_it(
        self, store: SqlStore, webhook_client: WebhookClient, target: Receiver, locks: sqlite3.Connection, clock: Clock
    ) -> None:
        """The message arrives again, from the next one."""

        async def lock(_: Received) -> bytes:
            if not locks.in_transaction:
                locks.execute("BEGIN IMMEDIATE").close()
            return answer(204)

        target.respond = lock
        job_id = await ended(store, target.url())
        await deliver(make_deliverer(store, webhook_client), target, 1)
        locks.execute("COMMIT").close()
        assert (await delivery_of(store, job_id)).next_try_at_s is not None
        clock.advance(LEASE_S)
        target.answers(answer(204))
        await deliver(make_deliverer(store, webhook_client), target, 2)
        assert (await delivery_of(store, job_id)).is_delivered
