"""The clock of a store, and what happens when it jumps.

The table `clock` has the time of the last sweep. If a transaction finds the clock far from it, that may be a jump, or the server
was down. Either way the points in time at which something ends move by the difference, before anything is compared with them.
"""

from serve_app.jobs.database import Transaction
from serve_app.jobs.store import MAX_STEP_S

_BACK_S = 1.0
"""Corrections of the clock by less than this are none of a jump, seconds."""

_DEADLINES = {
    "jobs": ("lease_until_s", "expires_at_s", "idempotent_until_s"),
    "deliveries": ("next_try_at_s",),
}


def now_of(transaction: Transaction, clock_s: float | None) -> float:
    """The time, seconds since 1970: `clock_s`, or where that is None, the database's. Call it first in a transaction."""
    now_s, seen_s = _read(transaction, clock_s, lock=False)
    if _is_jump(now_s - seen_s):
        # Read again with the row locked: another process may have seen the jump at the same time.
        now_s, seen_s = _read(transaction, clock_s, lock=True)
        if _is_jump(now_s - seen_s):
            for table, columns in _DEADLINES.items():
                for column in columns:
                    transaction.rows(
                        f"UPDATE {table} SET {column} = {column} + :step_s WHERE {column} IS NOT NULL", step_s=now_s - seen_s
                    )
            tick(transaction, now_s)
    return now_s


def tick(transaction: Transaction, now_s: float) -> None:
    """Note the time."""
    transaction.rows("UPDATE clock SET seen_s = :now_s", now_s=now_s)


def _read(transaction: Transaction, clock_s: float | None, *, lock: bool) -> tuple[float, float]:
    locking = transaction.FOR_UPDATE if lock else ""
    row = transaction.one(f"SELECT seen_s, {transaction.NOW} AS now_s FROM clock{locking}", now_s=clock_s)
    return row["now_s"], row["seen_s"]


def _is_jump(step_s: float) -> bool:
    return not -_BACK_S <= step_s <= MAX_STEP_S
