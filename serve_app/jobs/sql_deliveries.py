"""Webhook messages: queued in the transaction that ends a job, taken for one try at a time."""

from serve_app.jobs.database import Row, Transaction
from serve_app.jobs.model import Delivery, LeaseLost, new_id
from serve_app.jobs.sql_rows import delivery_of


def add(transaction: Transaction, job: Row) -> None:
    """Queue the message that a job has ended."""
    transaction.rows(
        """INSERT INTO deliveries (delivery_id, job_id, state, metadata, webhook_url, created_at_s, next_try_at_s)
           VALUES (:delivery_id, :job_id, :state, :metadata, :webhook_url, :ended_at_s, :ended_at_s)""",
        delivery_id=new_id("msg"),
        **{name: job[name] for name in ("job_id", "state", "metadata", "webhook_url", "ended_at_s")},
    )


def claim(transaction: Transaction, now_s: float, lease_s: float) -> Delivery | None:
    """The message that has been due for longest, due again in `lease_s`; None: none is due."""
    row = transaction.first(
        f"""SELECT delivery_id FROM deliveries WHERE next_try_at_s <= :now_s
            ORDER BY next_try_at_s LIMIT 1{transaction.SKIP_LOCKED}""",
        now_s=now_s,
    )
    if row is None:
        return None
    return delivery_of(
        transaction.one(
            """UPDATE deliveries SET tries = tries + 1, next_try_at_s = :until_s
               WHERE delivery_id = :delivery_id RETURNING *""",
            delivery_id=row["delivery_id"],
            until_s=now_s + lease_s,
        )
    )


def settle(transaction: Transaction, delivery: Delivery, error: str | None, next_try_at_s: float | None) -> None:
    """Record a try. A message that is settled after its job was deleted is deleted too. Raises LeaseLost."""
    settled = transaction.rows(
        """UPDATE deliveries SET next_try_at_s = :next_try_at_s, is_delivered = :is_delivered, error = :error
           WHERE delivery_id = :delivery_id AND tries = :tries AND next_try_at_s IS NOT NULL RETURNING job_id""",
        next_try_at_s=next_try_at_s,
        is_delivered=int(error is None),
        error=error,
        delivery_id=delivery.delivery_id,
        tries=delivery.tries,
    )
    if not settled:
        raise LeaseLost(delivery.delivery_id)
    transaction.rows(
        """DELETE FROM deliveries WHERE delivery_id = :delivery_id AND next_try_at_s IS NULL
           AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.job_id = deliveries.job_id)""",
        delivery_id=delivery.delivery_id,
    )
