"""Progress on standard error: a line for every finished file, and on a terminal a row for every file in progress."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn


class ProgressDisplay:
    """Thread-safe, except that only one thread may call `write`."""

    def __init__(self) -> None:
        self.is_live = sys.stderr.isatty()
        self._console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            TextColumn("{task.fields[status]}", markup=False),
        )
        self._progress = Progress(*columns, console=self._console)
        self._rows: Live | None = None

    def __enter__(self) -> Self:
        self._show()
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._hide()

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def write(self, result: bytes) -> None:
        """Write to standard output. The rows are hidden meanwhile, as it may be the same terminal."""
        self._hide()
        click.echo(result, nl=False)
        self._show()

    @contextmanager
    def row(self, name: str) -> Iterator["Row"]:
        """The row of one file, shown inside the `with` block."""
        task = self._progress.add_task(name, total=None, status="")
        try:
            yield Row(self, self._progress, name, task)
        finally:
            self._progress.remove_task(task)

    def _show(self) -> None:
        # A new object each time: a restarted one erases what was written in between.
        if self.is_live:
            self._rows = Live(
                self._progress,
                console=self._console,
                transient=True,
                refresh_per_second=10,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._rows.start()

    def _hide(self) -> None:
        if self._rows is not None:
            self._rows.stop()
            self._rows = None


@dataclass(frozen=True, slots=True)
class Row:
    """The row of one file. It is the Watcher of the file's request."""

    display: ProgressDisplay
    progress: Progress
    name: str
    task: TaskID

    def sent(self, sent_bytes: int, total_bytes: int) -> None:
        self._update(sent_bytes, total_bytes, f"sent {decimal(sent_bytes)} of {decimal(total_bytes)}")

    def queued(self) -> None:
        self._update(0, math.inf, "queued")

    def transcribed(self, audio_s: float, total_s: float | None) -> None:
        of_all = "" if total_s is None else f" of {clock(total_s)}"
        self._update(audio_s, math.inf if total_s is None else total_s, f"transcribed {clock(audio_s)}{of_all}")

    def refused(self, message: str, wait_s: int) -> None:
        self._update(0, math.inf, f"again in {wait_s} s: {message}")
        if not self.display.is_live:
            self.display.say(f"{self.name}: again in {wait_s} s: {message}")

    def _update(self, completed: float, total: float, status: str) -> None:
        self.progress.update(self.task, completed=completed, total=total, status=status)


def clock(seconds: float) -> str:
    """As 1:02:03."""
    return str(timedelta(seconds=int(seconds)))
