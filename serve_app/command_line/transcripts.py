"""Writes transcripts to their files or to standard output."""

from collections.abc import Callable, Iterator, Sequence

from serve_app.command_line.client import Failure, reason
from serve_app.command_line.parallel import in_order
from serve_app.command_line.progress import ProgressDisplay
from serve_app.command_line.recordings import Destination, write_atomically

Outcome = str | Exception
"""A transcript, or the error that prevented it."""


def write_transcripts(
    destinations: Sequence[Destination],
    outcomes: Iterator[tuple[int, Outcome]],
    display: ProgressDisplay,
    on_written: Callable[[int], None] | None = None,
) -> int:
    """Write the transcripts, which come with the indices of their destinations; returns the number of failures.

    Standard output gets them in the order of the destinations; files are written as soon as they are ready. `on_written` is
    called with the index of each one that is written.
    """
    failures = 0
    # Either all go to standard output or none does.
    for index, outcome in outcomes if destinations and destinations[0].output else in_order(outcomes):
        destination = destinations[index]
        try:
            display.say(f"{destination.name}: {_write(destination, outcome, display)}")
            if on_written is not None:
                on_written(index)
        except Failure as failure:
            failures += 1
            display.say(f"{destination.name}: failed: {failure}")
    return failures


def _write(destination: Destination, outcome: Outcome, display: ProgressDisplay) -> str:
    """Write a transcript; returns the text of its line in the progress. Raises Failure."""
    if isinstance(outcome, Exception):
        raise Failure(reason(outcome))
    if destination.output is None:
        display.write(outcome.encode())
        return "done"
    try:
        write_atomically(destination.output, outcome.encode())
    except OSError as error:
        raise Failure(f"{destination.output} cannot be written: {error.strerror}") from error
    return str(destination.output)
