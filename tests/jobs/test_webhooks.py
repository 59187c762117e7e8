"""Delivery from both stores to real HTTP servers."""

from contextlib import AsyncExitStack
from email.utils import formatdate

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from serve_app.jobs.model import Completed, JobError
from serve_app.jobs.sql_store import SqlStore
from serve_app.jobs.store import MAX_STEP_S, JobStore
from serve_app.jobs.webhook_client import WebhookClient
from serve_app.jobs.webhook_messages import JITTER, MAX_TRIES
from serve_app.jobs.webhooks import Deliverer
from tests.jobs.deliveries import NEW, OLD, deliver, delivering, delivery_of, ended, make_deliverer, settled
from tests.jobs.receivers import Received, Receiver, answer, receiver
from tests.jobs.stores import PROVENANCE, Clock, claimed, queued


async def pass_time(store: JobStore, clock: Clock, until_s: float) -> None:
    """In steps that are no jumps of the clock."""
    while clock.now_s < until_s:
        clock.advance(min(MAX_STEP_S, until_s - clock.now_s))
        await store.sweep()


class TestMessages:
    async def test_every_end_of_a_job_is_told(self, store: SqlStore, webhook_client: WebhookClient, target: Receiver) -> None:
        for outcome in (Completed(b"{}", 10.0), JobError("invalid_audio", "No audio.")):
            await queued(store, webhook_url=target.url(), metadata={"a": 1})
            _, lease = await claimed(store)
            await store.resume(lease, PROVENANCE)
            await store.finish(lease, outcome)
        await ended(store, target.url())
        await deliver(make_deliverer(store, webhook_client), target, 3)
        messages = [Webhook(OLD).verify(request.body, request.headers) for request in target.received]
        assert sorted(message["type"] for message in messages) == ["job.cancelled", "job.completed", "job.failed"]
        for request, message in zip(target.received, messages, strict=True):
            status = await store.status("alice", message["data"]["id"])
            assert message["data"] == {"id": status.job.job_id, "state": status.job.state.value, "metadata": {"a": 1}}
            (delivery,) = status.deliveries
            assert (delivery.is_delivered, delivery.next_try_at_s, delivery.tries) == (True, None, 1)
            assert request.headers["webhook-id"] == delivery.delivery_id
            assert request.headers["content-type"] == "application/json"

    async def test_secrets_are_changed(self, store: SqlStore, webhook_client: WebhookClient, target: Receiver) -> None:
        accepted = []
        for count, secrets in enumerate([(OLD,), (NEW, OLD), (NEW,)], 1):
            await ended(store, target.url())
            await deliver(make_deliverer(store, webhook_client, *secrets), target, count)
            request = target.received[-1]
            accepted.append([is_signed_with(secret, request) for secret in (OLD, NEW)])
        assert accepted == [[True, False], [True, True], [False, True]]

    async def test_without_a_secret_there_is_no_delivery(self, webhook_client: WebhookClient, store: SqlStore) -> None:
        for secrets in ([], ["whsec_short"], [OLD, "secret"]):
            with pytest.raises(ValueError, match="secret"):
                Deliverer(store, webhook_client, secrets)


def is_signed_with(secret: str, request: Received) -> bool:
    try:
        Webhook(secret).verify(request.body, request.headers)
    except WebhookVerificationError:
        return False
    return True


class TestTries:
    async def test_all_of_them(self, store: SqlStore, clock: Clock, webhook_client: WebhookClient, target: Receiver) -> None:
        """Ten tries with the same id and body, each delay longer than the one before."""
        target.answers(answer(500))
        job_id = await ended(store, target.url())
        delays = []
        for tries in range(1, MAX_TRIES + 1):
            await deliver(make_deliverer(store, webhook_client), target, tries)
            delivery = await delivery_of(store, job_id)
            assert (delivery.tries, delivery.error, delivery.is_delivered) == (tries, "HTTP 500", False)
            if delivery.next_try_at_s is not None:
                delays.append(delivery.next_try_at_s - clock.now_s)
                assert await store.claim_delivery() is None
                await pass_time(store, clock, delivery.next_try_at_s)
        assert delivery.next_try_at_s is None
        assert [round(delay / 10 / 3**n) for n, delay in enumerate(delays)] == [1] * (MAX_TRIES - 1)
        assert len({(request.headers["webhook-id"], request.body) for request in target.received}) == 1

    async def test_the_second_one_succeeds(
        self, store: SqlStore, clock: Clock, webhook_client: WebhookClient, target: Receiver
    ) -> None:
        target.answers(answer(503), answer(200, body=b"thanks"))
        job_id = await ended(store, target.url())
        await deliver(make_deliverer(store, webhook_client), target, 1)
        clock.advance(20)
        await deliver(make_deliverer(store, webhook_client), target, 2)
        delivery = await delivery_of(store, job_id)
        assert (delivery.is_delivered, delivery.next_try_at_s, delivery.error, delivery.tries) == (True, None, None, 2)

    @pytest.mark.parametrize("status", [400, 401, 404, 410, 422])
    async def test_a_target_that_does_not_want_it(
        self, store: SqlStore, webhook_client: WebhookClient, target: Receiver, status: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        target.answers(answer(status, "Retry-After: 1"))
        job_id = await ended(store, target.url())
        await deliver(make_deliverer(store, webhook_client), target, 1)
        delivery = await delivery_of(store, job_id)
        assert (delivery.is_delivered, delivery.next_try_at_s, delivery.error) == (False, None, f"HTTP {status}")
        assert "given up" in caplog.text
        assert "/hook" not in caplog.text

    @pytest.mark.parametrize("status", [301, 307, 408, 429, 500, 503])
    async def test_a_target_that_may_want_it_later(
        self, store: SqlStore, clock: Clock, webhook_client: WebhookClient, target: Receiver, status: int
    ) -> None:
        target.answers(answer(status))
        job_id = await ended(store, target.url())
        await deliver(make_deliverer(store, webhook_client), target, 1)
        delivery = await delivery_of(store, job_id)
        assert delivery.next_try_at_s is not None
        assert abs(delivery.next_try_at_s - clock.now_s - 10) <= 10 * JITTER
        assert delivery.error == f"HTTP {status}"

    async def test_a_target_that_says_when(
        self, store: SqlStore, clock: Clock, webhook_client: WebhookClient, target: Receiver
    ) -> None:
        in_an_hour = formatdate(clock.now_s + 3600, usegmt=True)
        target.answers(*(answer(429, f"Retry-After: {retry_after}") for retry_after in ("3600", in_an_hour)))
        for count in (1, 2):
            job_id = await ended(store, target.url())
            await deliver(Deliverer(store, webhook_client, [OLD], clock_s=clock, poll_s=0.01), target, count)
            assert (await delivery_of(store, job_id)).next_try_at_s == clock.now_s + 3600

    async def test_a_redirect_to_a_private_address(
        self, store: SqlStore, webhook_client: WebhookClient, target: Receiver, opened: AsyncExitStack
    ) -> None:
        other = await opened.enter_async_context(receiver("127.0.0.3"))
        target.answers(answer(302, f"Location: {other.url()}"))
        job_id = await ended(store, target.url())
        await deliver(make_deliverer(store, webhook_client), target, 1)
        assert (await delivery_of(store, job_id)).error == "HTTP 302"
        assert other.connections == 0

    async def test_a_target_that_is_not_allowed(
        self, store: SqlStore, webhook_client: WebhookClient, opened: AsyncExitStack
    ) -> None:
        """Also where only the look-up tells."""
        target = await opened.enter_async_context(receiver("127.0.0.3"))
        job_ids = [await ended(store, target.url(host)) for host in (None, "169.254.169.254", "user@127.0.0.1")]
        async with delivering(make_deliverer(store, webhook_client)):
            for job_id in job_ids:
                delivery = await settled(store, job_id)
                assert delivery.error is not None
                assert delivery.error.startswith(
                    ("The host of `webhook_url` is not on the public", "`webhook_url` may have no user")
                )
        assert target.connections == 0
