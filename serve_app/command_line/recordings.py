"""The recordings that the arguments of a command name, and where the transcript of each is written."""

import contextlib
import glob
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

EXTENSIONS = {
    "text": "txt",
    "json": "json",
    "verbose_json": "json",
    "diarized_json": "json",
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
class Destination:
    """Where a transcript goes."""

    name: str
    """Of the recording, shown in progress and messages."""
    output: Path | None
    """None: standard output."""

    @property
    def is_finished(self) -> bool:
        return self.output is not None and self.output.exists()


@dataclass(frozen=True, slots=True)
class Recording(Destination):
    """One recording to transcribe."""

    source: Source

    @property
    def is_standard_input(self) -> bool:
        return self.source == STANDARD_INPUT


def plan(
    arguments: Sequence[str], output_dir: Path | None, response_format: str, *, with_folders: bool = False
) -> list[Recording]:
    """The recordings in the order of the arguments, each once. `with_folders`: a folder means the files in it.

    Raises click.UsageError.
    """
    sources = dict.fromkeys(source for argument in arguments for source in _find(argument, with_folders))
    recordings = [_recording(source, output_dir, EXTENSIONS[response_format]) for source in sources]
    check_outputs(recordings)
    return recordings


def check_outputs(destinations: Iterable[Destination]) -> None:
    """Raises click.UsageError if two are the same file."""
    first_by_output: dict[Path, Destination] = {}
    for each in destinations:
        if each.output is not None and (other := first_by_output.setdefault(each.output, each)) is not each:
            raise click.UsageError(f"{other.name} and {each.name} would both be written to {each.output}.")


def make_folder(folder: Path | None) -> None:
    """Create the folder of the transcripts, if there is to be one. Raises click.UsageError."""
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise click.UsageError(f"{folder} cannot be created: {error.strerror}.") from None


@contextlib.contextmanager
def spooled(recording: Recording) -> Iterator[Recording]:
    """The recording with standard input copied to a file, which can be sent again. The file has no name, so it is always
    removed."""
    with tempfile.TemporaryFile() as file:
        try:
            shutil.copyfileobj(sys.stdin.buffer, file)
            file.flush()
        except OSError as error:
            raise click.ClickException(f"Standard input cannot be stored: {error.strerror}.") from None
        yield replace(recording, source=file.fileno())


def _find(argument: str, with_folders: bool) -> list[Source]:
    if argument == "-":
        return [STANDARD_INPUT]
    # Names first, then patterns: a name may have brackets.
    if os.path.isfile(argument):
        return [Path(argument)]
    if with_folders and os.path.isdir(argument):
        return [*sorted(path for path in Path(argument).iterdir() if path.is_file() and not path.name.startswith("."))]
    if os.path.exists(argument):
        raise click.UsageError(f"{argument} is not a file. For the files of a folder use '{Path(argument) / '*'}'.")
    found = sorted(Path(name) for name in glob.glob(argument, recursive=True) if os.path.isfile(name))
    if not found:
        raise click.UsageError(f"There is no file {argument}.")
    return [*found]


def _recording(source: Source, output_dir: Path | None, extension: str) -> Recording:
    name, stem = ("stdin", "stdin") if isinstance(source, int) else (str(source), source.stem)
    return Recording(name, output_dir and output_dir / f"{stem}.{extension}", source)


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
