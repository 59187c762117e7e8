"""Messages as receivers check them, and the times of their tries."""

import base64
import json
import time
from email.utils import formatdate
from itertools import pairwise
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from serve_app.jobs.model import Delivery, JobState
from serve_app.jobs.webhook_messages import (
    DELAY_FACTOR,
    FIRST_DELAY_S,
    JITTER,
    MAX_RETRY_AFTER_S,
    MAX_TRIES,
    asked_delay_s,
    body_of,
    delay_s,
    ends_tries,
    is_delivered,
    key_of,
    signed_headers,
)

OLD, NEW = (f"whsec_{base64.b64encode(bytes([n]) * 24).decode()}" for n in (1, 2))


def delivery(**values: Any) -> Delivery:
    fields = {
        **{"delivery_id": "msg_1", "job_id": "job_1", "state": JobState.COMPLETED, "metadata": {"name": "München 🎤"}},
        **{"webhook_url": "https://a.com", "created_at_s": 1_800_000_000.25, "tries": 1, "next_try_at_s": None},
        **{"is_delivered": False, "error": None},
    }
    return Delivery(**(fields | values))


class TestBody:
    def test_it_says_what_happened_and_when(self) -> None:
        assert json.loads(body_of(delivery())) == {
            "type": "job.completed",
            "timestamp": "2027-01-15T08:00:00.250Z",
            "data": {"id": "job_1", "state": "completed", "metadata": {"name": "München 🎤"}},
        }

    @pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
    def test_the_other_ends(self, state: JobState) -> None:
        body = json.loads(body_of(delivery(state=state, metadata=None)))
        assert (body["type"], body["data"]) == (f"job.{state}", {"id": "job_1", "state": state.value, "metadata": None})

    def test_it_can_be_written_whatever_the_metadata(self) -> None:
        assert json.loads(body_of(delivery(metadata={"a": "\ud800"})))["data"]["metadata"] == {"a": "\ud800"}


class TestSignature:
    def test_receivers_of_either_secret_accept_it(self) -> None:
        body = body_of(delivery())
        headers = signed_headers("msg_1", body, [key_of(NEW), key_of(OLD)], time.time())
        assert len(headers["webhook-signature"].split(" ")) == 2
        for secret in (OLD, NEW):
            assert Webhook(secret).verify(body, headers)["type"] == "job.completed"

    def test_they_refuse_another_body_id_time_or_secret(self) -> None:
        body = body_of(delivery())
        headers = signed_headers("msg_1", body, [key_of(OLD)], time.time())
        other_time = str(int(headers["webhook-timestamp"]) + 1)
        for changed_body, changed in [
            (body + b" ", {}),
            (body, {"webhook-id": "msg_2"}),
            (body, {"webhook-timestamp": other_time}),
        ]:
            with pytest.raises(WebhookVerificationError, match="signature"):
                Webhook(OLD).verify(changed_body, headers | changed)
        with pytest.raises(WebhookVerificationError, match="signature"):
            Webhook(NEW).verify(body, headers)

    def test_the_example_of_the_specification(self) -> None:
        """Of its reference libraries: https://github.com/standard-webhooks/standard-webhooks."""
        headers = signed_headers(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            b'{"test": 2432232314}',
            [key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")],
            1_614_265_330.9,
        )
        assert headers["webhook-timestamp"] == "1614265330"
        assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

    @pytest.mark.parametrize("secret", ["", "whsec_", "x" * 40, "whsec_###", "whsec_" + "A" * 28, "whsec_" + "A" * 88, "whsec_é"])
    def test_invalid_secrets(self, secret: str) -> None:
        with pytest.raises(ValueError, match="webhook secret") as error:
            key_of(secret)
        assert not secret.removeprefix("whsec_") or secret not in str(error.value)


class TestTries:
    @pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
    def test_ten_in_about_a_day(self, chance: float) -> None:
        delays = [delay_s(tries, chance) for tries in range(1, MAX_TRIES)]
        assert delay_s(MAX_TRIES, chance) is None
        assert delays[0] == FIRST_DELAY_S * (1 + JITTER * (2 * chance - 1))
        assert all(later == pytest.approx(DELAY_FACTOR * (earlier or 0)) for earlier, later in pairwise(delays))
        assert 20 < sum(delay or 0 for delay in delays) / 3600 < 34

    def test_a_target_can_ask_for_more_time_but_not_for_less(self) -> None:
        assert delay_s(1, 0.5, 120.0) == 120.0
        assert delay_s(5, 0.5, 1.0) == delay_s(5, 0.5)
        assert delay_s(1, 0.5, float("inf")) == MAX_RETRY_AFTER_S
        assert delay_s(1, 0.5, -5.0) == delay_s(1, 0.5)
        assert delay_s(MAX_TRIES, 0.5, 120.0) is None

    def test_retry_after(self) -> None:
        now_s = 1_800_000_000.0
        assert asked_delay_s("120", now_s) == 120.0
        assert asked_delay_s(formatdate(now_s + 90, usegmt=True), now_s) == 90.0
        assert asked_delay_s(formatdate(now_s + 90), now_s) == 90.0
        for nothing in (None, "", "soon", "-5", "1.5", "²", "Fri, 99 Jan 2027 00:00:00 GMT"):
            assert asked_delay_s(nothing, now_s) is None

    def test_answers(self) -> None:
        assert [status for status in range(100, 600) if is_delivered(status)] == list(range(200, 300))
        assert [status for status in range(100, 600) if ends_tries(status)] == [
            status for status in range(400, 500) if status not in (408, 429)
        ]
