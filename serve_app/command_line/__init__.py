"""`parakeet-serve`, a client of the server for people. Imports nothing of the server, so that it starts at once."""

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from serve_app import __version__
from serve_app.command_line.client import Client, Failure
from serve_app.command_line.display import Display
from serve_app.command_line.jobs import EXTENSIONS, Job, plan
from serve_app.command_line.options import server_options
from serve_app.command_line.work import work_through

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Speech to text by a Parakeet server."""


@main.command()
@click.argument("files", nargs=-1, required=True)
@server_options
@click.option(
    "--format",
    "response_format",
    type=click.Choice(list(EXTENSIONS)),
    default="text",
    show_default=True,
    help="Form of the transcripts.",
)
@click.option("--words", is_flag=True, help="With --format verbose_json: the time of every word.")
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


@main.command()
@click.argument("source", required=False)
@server_options
@click.option("--times", "with_times", is_flag=True, help="Begin every line with its time.")
@click.option(
    "--encoding",
    type=click.Choice(["pcm_s16le", "pcm_f32le", "mulaw", "alaw"]),
    help="Of raw samples from standard input. Without it: a media file, or 16-bit samples.",
)
@click.option("--rate", type=int, default=16_000, show_default=True, help="Of raw samples, Hz.")
@click.option("--channels", type=int, default=1, show_default=True, help="Of raw samples, interleaved.")
def listen(
    source: str | None,
    url: str,
    api_key: str | None,
    model: str | None,
    language: str | None,
    keywords: tuple[str, ...],
    with_times: bool,
    encoding: str | None,
    rate: int,
    channels: int,
) -> None:
    """Transcribe speech while it is spoken: from the microphone, from SOURCE, a file, at the pace of speech, or from - , standard
    input.

    Every finished segment is a line of standard output; on a terminal the words before they are final are shown behind it.
    Ctrl-C ends the speech, and what was said until then is transcribed to its end.

    Ends with 0 when that is done, 1 on a failure, 2 when the command line is wrong.
    """
    # What reads audio is not needed, nor loaded, for anything else.
    from serve_app.command_line import listening, speech

    fields = {"model": model, "language": language, "keywords": list(keywords)}
    try:
        if source is None:
            said = speech.of_microphone()
        elif source == "-":
            said = speech.of_standard_input(encoding, rate, channels)
        else:
            said = speech.of_file(Path(source))
        with listening.Screen(with_times=with_times) as screen:
            asyncio.run(listening.listen(url, api_key, {n: v for n, v in fields.items() if v}, said, screen))
    except Failure as failure:
        raise click.ClickException(str(failure)) from None


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
