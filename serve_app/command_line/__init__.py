"""`parakeet-serve`, a client of the server for people. Imports nothing of the server, so that it starts at once."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import httpx2

from serve_app import __version__
from serve_app.command_line.client import Client
from serve_app.command_line.display import Display
from serve_app.command_line.jobs import EXTENSIONS, Job, plan
from serve_app.command_line.work import work_through

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def _checked_url(_context: click.Context, _option: click.Parameter, value: str) -> str:
    """The address without what is after the host and port, or the prefix of a proxy."""
    try:
        url = httpx2.URL(value)
    except httpx2.InvalidURL as error:
        raise click.BadParameter(f"{value}: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise click.BadParameter(f"{value} does not begin with http:// or https:// and a host.")
    return value.rstrip("/").removesuffix("/v1").rstrip("/")


def _checked_key(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value and not value.isprintable():
        raise click.BadParameter("it has characters that a header cannot have.")
    return value


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Speech to text by a Parakeet server."""


@main.command()
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--url",
    default="http://127.0.0.1:8000",
    envvar="PARAKEET_URL",
    show_default=True,
    show_envvar=True,
    callback=_checked_url,
    help="Address of the server.",
)
@click.option(
    "--api-key",
    envvar="API_KEY",
    show_envvar=True,
    callback=_checked_key,
    help="Key for a server that wants one; of several with commas, the first.",
)
@click.option("--model", help="A model of the server instead of its default.")
@click.option("--language", help="Language that is spoken, as a code (en) or an English name.")
@click.option(
    "--format",
    "response_format",
    type=click.Choice(list(EXTENSIONS)),
    default="text",
    show_default=True,
    help="Form of the transcripts.",
)
@click.option("--words", is_flag=True, help="With --format verbose_json: the time of every word.")
@click.option("--keyword", "keywords", multiple=True, help="A word or phrase to listen for. May be given several times.")
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for one file per recording, made if missing. Without it the transcripts go to standard output.",
)
@click.option("--jobs", "at_once", type=click.IntRange(min=1), default=2, show_default=True, help="Files at once.")
@click.option("--overwrite", is_flag=True, help="Transcribe again what is already in --output-dir.")
def transcribe(
    files: tuple[str, ...],
    url: str,
    api_key: str | None,
    model: str | None,
    language: str | None,
    response_format: str,
    words: bool,
    keywords: tuple[str, ...],
    output_dir: Path | None,
    at_once: int,
    overwrite: bool,
) -> None:
    """Transcribe FILES: paths, patterns such as 'talks/**/*.mp3', or - for standard input.

    A transcript in --output-dir is complete, and its recording is skipped the next time.

    Ends with 0 when every file is done or skipped, 1 when one or more failed, 2 when the command line is wrong, 130 on Ctrl-C.
    """
    if words and response_format != "verbose_json":
        raise click.UsageError("--words needs --format verbose_json.")
    jobs = plan(files, output_dir, response_format)
    if output_dir is not None:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise click.UsageError(f"{output_dir} cannot be made: {error.strerror}.") from None
    fields = {
        "response_format": response_format,
        "model": model,
        "language": language,
        "timestamp_granularities[]": ["word", "segment"] if words else [],
        "keywords[]": list(keywords),
    }
    with contextlib.ExitStack() as stack:
        try:
            display = stack.enter_context(Display())
            todo: list[Job] = []
            for job in jobs:
                if job.is_finished and not overwrite:
                    display.say(f"{job.name}: skipped, {job.output} is there")
                else:
                    todo.append(stack.enter_context(_spooled(job)) if job.is_standard_input else job)
            client = stack.enter_context(Client(url, api_key, {name: value for name, value in fields.items() if value}))
            failures = work_through(todo, client, display, at_once)
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
    raise SystemExit(1 if failures else 0)


@contextlib.contextmanager
def _spooled(job: Job) -> Iterator[Job]:
    """The same with standard input in a file, which can be sent anew. It has no name, so nothing can leave it behind."""
    with tempfile.TemporaryFile() as file:
        try:
            shutil.copyfileobj(sys.stdin.buffer, file)
            file.flush()
        except OSError as error:
            raise click.ClickException(f"Standard input cannot be stored: {error.strerror}.") from None
        yield replace(job, source=file.fileno())
