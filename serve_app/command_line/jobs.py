"""Jobs of `transcribe`: the recordings that the arguments name, and where the transcript of each is written."""

import glob
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

EXTENSIONS = {
    "text": "txt",
    "json": "json",
    "verbose_json": "json",
    "srt": "srt",
    "vtt": "vtt",
    "csv": "csv",
    "tsv": "tsv",
}
"""File name extensions of transcripts, by response format."""

STANDARD_INPUT = 0
"""Its file descriptor."""

Source = Path | int
"""A path, or the descriptor of an open file."""


@dataclass(frozen=True, slots=True)
class Job:
    """One recording to transcribe."""

    name: str
    """Shown in progress and messages."""
    source: Source
    output: Path | None
    """None: standard output."""

    @property
    def is_standard_input(self) -> bool:
        return self.source == STANDARD_INPUT

    @property
    def is_finished(self) -> bool:
        return self.output is not None and self.output.exists()


def plan(arguments: Sequence[str], output_dir: Path | None, response_format: str) -> list[Job]:
    """The jobs in the order of the arguments, one for each recording. Raises click.UsageError."""
    sources = dict.fromkeys(source for argument in arguments for source in _find(argument))
    jobs = [_job(source, output_dir, EXTENSIONS[response_format]) for source in sources]
    first_by_output: dict[Path, Job] = {}
    for job in jobs:
        if job.output is not None and (other := first_by_output.setdefault(job.output, job)) is not job:
            raise click.UsageError(f"{other.name} and {job.name} would both be written to {job.output}.")
    return jobs


def _find(argument: str) -> list[Source]:
    if argument == "-":
        return [STANDARD_INPUT]
    # Names first, then patterns: a name may have brackets.
    if os.path.isfile(argument):
        return [Path(argument)]
    if os.path.exists(argument):
        raise click.UsageError(f"{argument} is not a file. For the files of a folder use '{Path(argument) / '*'}'.")
    found = sorted(Path(name) for name in glob.glob(argument, recursive=True) if os.path.isfile(name))
    if not found:
        raise click.UsageError(f"There is no file {argument}.")
    return [*found]


def _job(source: Source, output_dir: Path | None, extension: str) -> Job:
    name, stem = ("stdin", "stdin") if isinstance(source, int) else (str(source), source.stem)
    return Job(name, source, output_dir and output_dir / f"{stem}.{extension}")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it exists completely or not at all."""
    # The name is chosen before the file is created, so that the clean-up covers an interruption at any moment.
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
