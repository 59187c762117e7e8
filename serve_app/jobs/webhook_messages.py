"""What a webhook message is, and when it is tried again: pure functions. See https://www.standardwebhooks.com."""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from serve_app.jobs.model import Delivery

SECRET_PREFIX = "whsec_"
KEY_BYTES = range(24, 65)
"""Lengths that the key of a secret may have."""

MAX_TRIES = 10
FIRST_DELAY_S = 10.0
"""Between the first try and the second, seconds. Each delay is DELAY_FACTOR times the one before: 10 s, 30 s, ... 18 hours."""
DELAY_FACTOR = 3.0
JITTER = 0.2
"""By so much of itself a delay may be longer or shorter, so that messages that failed together come apart."""
MAX_RETRY_AFTER_S = 86_400.0
"""A target may ask for a longer delay, but not for one longer than this, seconds."""


def key_of(secret: str) -> bytes:
    """The key of a secret `whsec_...`. Raises ValueError, whose message does not show the secret."""
    try:
        if not secret.startswith(SECRET_PREFIX):
            raise ValueError
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"a webhook secret is `{SECRET_PREFIX}` and base64") from None
    if len(key) not in KEY_BYTES:
        raise ValueError(f"the base64 of a webhook secret stands for {KEY_BYTES.start} to {KEY_BYTES.stop - 1} bytes")
    return key


def body_of(delivery: Delivery) -> bytes:
    """The body of a message, the same in every try."""
    ended_at = datetime.fromtimestamp(delivery.created_at_s, UTC).isoformat(timespec="milliseconds")
    body = {
        "type": f"job.{delivery.state.value}",
        "timestamp": ended_at.replace("+00:00", "Z"),
        "data": {"id": delivery.job_id, "state": delivery.state.value, "metadata": delivery.metadata},
    }
    return json.dumps(body, separators=(",", ":")).encode()


def signed_headers(delivery_id: str, body: bytes, keys: Iterable[bytes], now_s: float) -> dict[str, str]:
    """The headers by which a receiver knows who sent the body, and when: one signature for each key."""
    timestamp = str(int(now_s))
    content = f"{delivery_id}.{timestamp}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in keys]
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def is_delivered(status: int) -> bool:
    return 200 <= status < 300


def ends_tries(status: int) -> bool:
    """Whether the target does not want the message: a client error that is not one of time."""
    return 400 <= status < 500 and status not in (408, 429)


def delay_s(tries: int, chance: float, asked_s: float | None = None) -> float | None:
    """Seconds between the failure of try `tries`, from 1, and the next one; None: it was the last. `chance` is from 0 to 1.
    `asked_s` is what the target asked for: it can make the delay longer, but not shorter, or the tries would be over too soon."""
    if tries >= MAX_TRIES:
        return None
    regular_s = FIRST_DELAY_S * DELAY_FACTOR ** (tries - 1) * (1 + JITTER * (2 * chance - 1))
    return max(regular_s, min(asked_s or 0.0, MAX_RETRY_AFTER_S))


def asked_delay_s(retry_after: str | None, now_s: float) -> float | None:
    """Seconds that a header `Retry-After` stands for, a number or a date; None if there is none, or it is invalid."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    # Without a zone it is UTC, too.
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now_s
