"""Whose turn it is: priorities, and start-time fair queueing between owners.

As in `engine/batch_queue.py`, every job gets a start tag when it is queued: the audio of its owner that is served before it. The
next job is the first entry of an index, and the queue position is a number of entries, however long the queue is. The virtual
time of a priority is the highest start tag of the jobs that were claimed.
"""

from serve_app.jobs.database import Row, Transaction
from serve_app.jobs.model import NewJob, Priority
from serve_app.jobs.store import MAX_POSITION

LOW_EVERY = 4
"""At most one claim in this many is for a low job while there are normal ones."""

LOW_AGEING_S = 600.0
"""How long a low job waits for there to be no normal one, seconds."""

BYTES_PER_S = 16_000
"""Bytes that count as a second of audio, where a file states no length (128 kbit/s)."""


def cost_of(new: NewJob) -> float:
    """What a job costs its owner, seconds of audio."""
    return new.audio_s if new.audio_s is not None else new.upload_bytes / BYTES_PER_S


def enqueue(transaction: Transaction, new: NewJob) -> float:
    """The start tag of a new job. The caller makes sure that one job is created at a time."""
    owner = {"owner": new.owner, "priority": int(new.priority)}
    tags = transaction.one(
        """SELECT (SELECT virtual_time FROM lanes WHERE priority = :priority) AS virtual_time,
                  (SELECT finish_tag FROM shares WHERE owner = :owner AND priority = :priority) AS finish_tag,
                  (SELECT MAX(start_tag) FROM jobs
                   WHERE owner = :owner AND priority = :priority AND state = 'queued') AS last_tag""",
        **owner,
    )
    # Not before the owner's last job: what a cancelled one gave back lies before it.
    start_tag = float(max(tag for tag in tags.values() if tag is not None))
    transaction.rows(
        """INSERT INTO shares VALUES (:owner, :priority, :finish_tag)
           ON CONFLICT (owner, priority) DO UPDATE SET finish_tag = :finish_tag""",
        **owner,
        finish_tag=start_tag + cost_of(new),
    )
    return start_tag


def give_back(transaction: Transaction, row: Row) -> None:
    """Give an owner back what a job has not used that ends in the queue."""
    transaction.rows(
        "UPDATE shares SET finish_tag = finish_tag - :cost WHERE owner = :owner AND priority = :priority",
        owner=row["owner"],
        priority=row["priority"],
        cost=row["cost"],
    )


def take_next(transaction: Transaction, now_s: float) -> str | None:
    """The id of the job whose turn it is, locked against other claims; None: the queue is empty."""
    in_a_row = transaction.one("SELECT normal_in_a_row FROM counters")["normal_in_a_row"]
    order = [Priority.NORMAL, Priority.LOW]
    if in_a_row >= LOW_EVERY - 1:
        low = _head(transaction, Priority.LOW)
        if low is not None and now_s - low["created_at_s"] >= LOW_AGEING_S:
            order.reverse()
    for priority in order:
        head = _head(transaction, priority)
        if head is not None:
            transaction.rows(
                "UPDATE lanes SET virtual_time = :tag WHERE priority = :priority AND virtual_time < :tag",
                priority=int(priority),
                tag=head["start_tag"],
            )
            transaction.rows(
                "UPDATE counters SET normal_in_a_row = :count", count=in_a_row + 1 if priority == Priority.NORMAL else 0
            )
            return str(head["job_id"])
    return None


def _head(transaction: Transaction, priority: Priority) -> Row | None:
    return transaction.first(
        f"""SELECT job_id, start_tag, created_at_s FROM jobs WHERE state = 'queued' AND priority = :priority
            ORDER BY start_tag, number LIMIT 1{transaction.SKIP_LOCKED}""",
        priority=int(priority),
    )


def position_of(transaction: Transaction, row: Row) -> int:
    """The position of a queued job: how many will be claimed before it, plus one, if nothing changes; at most MAX_POSITION."""
    before = transaction.one(
        """SELECT COUNT(*) AS jobs FROM (
               SELECT 1 FROM jobs
               WHERE state = 'queued' AND (priority, start_tag, number) < (:priority, :tag, :number)
               ORDER BY priority, start_tag, number LIMIT :most
           ) AS earlier""",
        priority=row["priority"],
        tag=row["start_tag"],
        number=row["number"],
        most=MAX_POSITION - 1,
    )
    return int(before["jobs"]) + 1


def drop_idle_shares(transaction: Transaction) -> None:
    """Forget the owners whose next job starts at the virtual time, as that of a new owner does."""
    transaction.rows(
        """DELETE FROM shares WHERE finish_tag <= (SELECT virtual_time FROM lanes WHERE lanes.priority = shares.priority)"""
    )
