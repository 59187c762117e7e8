"""What is to be done: the recordings that the arguments name, and where the transcript of each goes."""

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
"""By response format."""

STANDARD_INPUT = 0

Source = Path | int
"""A path, or the descriptor of an open file."""


@dataclass(frozen=True, slots=True)
class Job:
    """One recording. An `output` of None is standard output."""

    name: str
    """For people."""
    source: Source
    output: Path | None

    @property
    def is_standard_input(self) -> bool:
        return self.source == STANDARD_INPUT

    @property
    def is_finished(self) -> bool:
        return self.output is not None and self.output.exists()


def plan(arguments: Sequence[str], output_dir: Path | None, response_format: str) -> list[Job]:
    """A job for every recording, once each; raises click.UsageError."""
    sources = dict.fromkeys(source for argument in arguments for source in _find(argument))
    jobs = [_job(source, output_dir, EXTENSIONS[response_format]) for source in sources]
    writers: dict[Path, Job] = {}
    for job in jobs:
        if job.output is not None and (other := writers.setdefault(job.output, job)) is not job:
            raise click.UsageError(f"{other.name} and {job.name} would both be written to {job.output}.")
    return jobs


def _find(argument: str) -> list[Source]:
    if argument == "-":
        return [STANDARD_INPUT]
    # Before it is taken for a pattern: names may have brackets.
    if os.path.isfile(argument):
        return [Path(argument)]
    if os.path.exists(argument):
        raise click.UsageError(f"{argument} is not a file. The files of a folder are '{Path(argument) / '*'}'.")
    found = sorted(Path(name) for name in glob.glob(argument, recursive=True) if os.path.isfile(name))
    if not found:
        raise click.UsageError(f"There is no file {argument}.")
    return [*found]


def _job(source: Source, output_dir: Path | None, extension: str) -> Job:
    name, stem = ("stdin", "stdin") if isinstance(source, int) else (str(source), source.stem)
    return Job(name, source, output_dir and output_dir / f"{stem}.{extension}")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there completely or not at all."""
    # Known before it exists, so that no interruption comes between its making and the clean-up.
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
