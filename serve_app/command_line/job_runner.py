"""Runs jobs in parallel threads, and writes their results from the calling thread."""

import threading
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue

from serve_app.command_line.client import Failure, Transcriber
from serve_app.command_line.jobs import Job, write_atomically
from serve_app.command_line.progress import ProgressDisplay

Outcome = bytes | Exception
"""The transcript of a job in UTF-8, or the error that prevented it."""


def run_jobs(jobs: Sequence[Job], client: Transcriber, display: ProgressDisplay, max_parallel: int) -> int:
    """Run the jobs and write their transcripts; returns the number of failures.

    Standard output gets the transcripts in the order of the jobs; files are written as soon as they are ready.
    """
    outcomes = _outcomes(jobs, client, display, max_parallel)
    failures = 0
    # Either all jobs write to standard output or none does.
    for index, outcome in outcomes if jobs and jobs[0].output else _in_order(outcomes):
        job = jobs[index]
        try:
            display.say(f"{job.name}: {_write(job, outcome, display)}")
        except Failure as failure:
            failures += 1
            display.say(f"{job.name}: failed: {failure}")
    return failures


def _outcomes(
    jobs: Sequence[Job], client: Transcriber, display: ProgressDisplay, max_parallel: int
) -> Iterator[tuple[int, Outcome]]:
    """The index of each job and its outcome, in the order in which the jobs end."""
    waiting: SimpleQueue[tuple[int, Job]] = SimpleQueue()
    ended: SimpleQueue[tuple[int, Outcome]] = SimpleQueue()
    for item in enumerate(jobs):
        waiting.put(item)

    def work() -> None:
        while True:
            try:
                index, job = waiting.get_nowait()
            except Empty:
                return
            try:
                with display.row(job.name) as row:
                    outcome: Outcome = client.transcribe(job.source, row).encode()
            except Exception as error:
                outcome = error
            ended.put((index, outcome))

    for _ in range(min(max_parallel, len(jobs))):
        # Daemon threads, so that Ctrl-C does not wait for the network.
        threading.Thread(target=work, daemon=True).start()
    for _ in jobs:
        yield ended.get()


def _in_order(outcomes: Iterator[tuple[int, Outcome]]) -> Iterator[tuple[int, Outcome]]:
    held: dict[int, Outcome] = {}
    next_index = 0
    for index, outcome in outcomes:
        held[index] = outcome
        while next_index in held:
            yield next_index, held.pop(next_index)
            next_index += 1


def _write(job: Job, outcome: Outcome, display: ProgressDisplay) -> str:
    """Write the transcript of a job; returns the text of its line in the progress. Raises Failure."""
    if isinstance(outcome, Failure):
        raise outcome
    if isinstance(outcome, Exception):
        raise Failure(repr(outcome))
    if job.output is None:
        display.write(outcome)
        return "done"
    try:
        write_atomically(job.output, outcome)
    except OSError as error:
        raise Failure(f"{job.output} cannot be written: {error.strerror}") from error
    return str(job.output)
