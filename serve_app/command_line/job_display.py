"""What the commands about jobs show, and what they have in common."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serve_app.command_line.client import Failure, one_line, reason
from serve_app.command_line.job_client import MAX_FOLLOWED, Job, JobClient, end_of, title
from serve_app.command_line.options import INTERRUPTED
from serve_app.command_line.parallel import in_parallel
from serve_app.command_line.progress import ProgressDisplay, clock

TABLE_WIDTH = 1000
"""Maximum characters of a line of the table where it does not go to a terminal."""


@contextlib.contextmanager
def opened(url: str, api_key: str | None) -> Iterator[tuple[JobClient, ProgressDisplay]]:
    """The client and the display of a command. It ends with the message of a Failure, or after Ctrl-C."""
    try:
        with ProgressDisplay() as display, JobClient(url, api_key) as client:
            yield client, display
    except Failure as failure:
        raise click.ClickException(str(failure)) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def follow(job_ids: Sequence[str], client: JobClient, display: ProgressDisplay) -> int:
    """Show jobs until all have ended; returns how many failed or cannot be followed."""

    def ended(job_id: str) -> Job:
        with display.row(job_id) as row:
            job = client.get(job_id, row)
        with display.row(one_line(job["filename"]) or job_id) as row:
            return client.follow(job, row)

    failures = 0
    for job_id, job in in_parallel(((job_id, job_id) for job_id in job_ids), ended, MAX_FOLLOWED):
        if isinstance(job, Exception):
            display.say(f"{job_id}: {reason(job)}")
        else:
            display.say(f"{title(job)}: {end_of(job)}")
        failures += isinstance(job, Exception) or job["state"] == "failed"
    return failures


def forget(job: Job, name: str, client: JobClient, display: ProgressDisplay) -> None:
    """Delete a job that has ended. A failure is only shown: its transcript is written."""
    with display.row(name) as row:
        try:
            client.delete(job["id"], row)
        except Failure as failure:
            display.say(f"{name}: the job is not forgotten: {failure}")


def table(jobs: Sequence[Job]) -> str:
    """One line for each job, below the names of the columns; as wide as the terminal, if it goes to one."""
    is_terminal = sys.stdout.isatty()
    console = Console(width=None if is_terminal else TABLE_WIDTH, file=sys.stdout)
    rows = Table(box=None, pad_edge=False)
    rows.add_column("id", no_wrap=True)
    rows.add_column("state", no_wrap=True)
    rows.add_column("file", no_wrap=True, overflow="ellipsis")
    rows.add_column("progress", no_wrap=True, justify="right")
    rows.add_column("age", no_wrap=True, justify="right")
    for job in jobs:
        cells = (job["id"], job["state"], job["filename"], _progress(job), _age(time.time() - job["created_at"]))
        rows.add_row(*(Text(one_line(cell)) for cell in cells))
    with console.capture() as capture:
        console.print(rows)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _progress(job: Job) -> str:
    if job["state"] == "queued":
        return ""
    return f"{min(job['done_s'] / job['audio_s'], 1):.0%}" if job["audio_s"] else clock(job["done_s"])


def _age(age_s: float) -> str:
    for size_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if age_s >= size_s:
            return f"{int(age_s // size_s)} {unit}"
    # The clocks of server and client may differ.
    return f"{max(0, int(age_s))} s"
