"""Several recordings at once, by threads; what comes of each is written by the one that began them."""

import threading
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue

from serve_app.command_line.client import Client, Failure
from serve_app.command_line.display import Display
from serve_app.command_line.jobs import Job, write_whole

Outcome = bytes | Exception
"""A transcript, or why there is none."""


def work_through(jobs: Sequence[Job], client: Client, display: Display, at_once: int) -> int:
    """Do the jobs and write their results, to standard output in their order; gives how many failed."""
    outcomes = _outcomes(jobs, client, display, at_once)
    failures = 0
    # Either all go to standard output or none.
    for number, outcome in outcomes if jobs and jobs[0].output else _in_order(outcomes):
        job = jobs[number]
        try:
            display.say(f"{job.name}: {_finish(job, outcome, display)}")
        except Failure as failure:
            failures += 1
            display.say(f"{job.name}: failed: {failure}")
    return failures


def _outcomes(jobs: Sequence[Job], client: Client, display: Display, at_once: int) -> Iterator[tuple[int, Outcome]]:
    """What comes of each job, by its place in `jobs`, in the order in which they end."""
    waiting: SimpleQueue[tuple[int, Job]] = SimpleQueue()
    ended: SimpleQueue[tuple[int, Outcome]] = SimpleQueue()
    for item in enumerate(jobs):
        waiting.put(item)

    def work() -> None:
        while True:
            try:
                number, job = waiting.get_nowait()
            except Empty:
                return
            try:
                with display.row(job.name) as row:
                    outcome: Outcome = client.transcribe(job.source, row).encode()
            except Exception as error:
                outcome = error
            ended.put((number, outcome))

    for _ in range(min(at_once, len(jobs))):
        # Daemons, so that Ctrl-C need not wait for the network.
        threading.Thread(target=work, daemon=True).start()
    for _ in jobs:
        yield ended.get()


def _in_order(outcomes: Iterator[tuple[int, Outcome]]) -> Iterator[tuple[int, Outcome]]:
    held: dict[int, Outcome] = {}
    following = 0
    for number, outcome in outcomes:
        held[number] = outcome
        while following in held:
            yield following, held.pop(following)
            following += 1


def _finish(job: Job, outcome: Outcome, display: Display) -> str:
    """Write a transcript; gives what to say of it. Raises Failure."""
    if isinstance(outcome, Failure):
        raise outcome
    if isinstance(outcome, Exception):
        raise Failure(repr(outcome))
    if job.output is None:
        display.write(outcome)
        return "done"
    try:
        write_whole(job.output, outcome)
    except OSError as error:
        raise Failure(f"{job.output} cannot be written: {error.strerror}") from error
    return str(job.output)
