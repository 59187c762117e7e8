"""`parakeet-serve`, the command-line client. It does not import the server, so it starts fast."""

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
from serve_app.command_line.job_client import JobClient
from serve_app.command_line.job_commands import INTERRUPTED, jobs, submit
from serve_app.command_line.job_runner import run_jobs
from serve_app.command_line.jobs import EXTENSIONS, Job, plan
from serve_app.command_line.options import server_options
from serve_app.command_line.progress import ProgressDisplay


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Transcribe speech with a Parakeet server."""


main.add_command(submit)
main.add_command(jobs)


@main.command()
@click.argument("files", nargs=-1, required=True)
@server_options
@click.option(
    "--format",
    "response_format",
    type=click.Choice(list(EXTENSIONS)),
    default="text",
    show_default=True,
    help="Format of the transcripts.",
)
@click.option("--track", type=click.IntRange(min=0), help="Number of the audio track, from 0. Without it: the default track.")
@click.option("--channels", "multichannel", is_flag=True, help="Every channel of a recording by itself.")
@click.option("--words", is_flag=True, help="With --format verbose_json: the time of every word.")
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for one transcript per recording; created if missing. Without it the transcripts go to standard output.",
)
@click.option(
    "--jobs", "max_parallel", type=click.IntRange(min=1), default=2, show_default=True, help="Files to transcribe in parallel."
)
@click.option(
    "--as-jobs",
    is_flag=True,
    help="By jobs of the server, which go on if this command is interrupted: the same command fetches their transcripts later.",
)
@click.option("--overwrite", is_flag=True, help="Transcribe every file, and overwrite transcripts in --output-dir.")
def transcribe(
    files: tuple[str, ...],
    url: str,
    api_key: str | None,
    model: str | None,
    language: str | None,
    response_format: str,
    track: int | None,
    multichannel: bool,
    words: bool,
    keywords: tuple[str, ...],
    output_dir: Path | None,
    max_parallel: int,
    as_jobs: bool,
    overwrite: bool,
) -> None:
    """Transcribe FILES: paths, patterns such as 'talks/**/*.mp3', or - for standard input.

    Transcripts appear in --output-dir only when they are complete. A recording whose transcript is there is skipped.

    Exit code: 0 if every file is done or skipped, 1 if one or more failed, 2 if the command line is wrong, 130 after Ctrl-C.
    """
    if words and response_format != "verbose_json":
        raise click.UsageError("--words needs --format verbose_json.")
    recordings = plan(files, output_dir, response_format)
    if output_dir is not None:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise click.UsageError(f"{output_dir} cannot be created: {error.strerror}.") from None
    fields = {
        "response_format": response_format,
        "model": model,
        "language": language,
        "track": None if track is None else str(track),
        "multichannel": "true" if multichannel else None,
        "timestamp_granularities[]": ["word", "segment"] if words else [],
        "keywords[]": list(keywords),
    }
    with contextlib.ExitStack() as stack:
        try:
            display = stack.enter_context(ProgressDisplay())
            todo: list[Job] = []
            for job in recordings:
                if job.is_finished and not overwrite:
                    display.say(f"{job.name}: skipped, {job.output} is there")
                else:
                    todo.append(stack.enter_context(_spooled(job)) if job.is_standard_input else job)
            given = {name: value for name, value in fields.items() if value}
            client: JobClient | Client = JobClient(url, api_key, given) if as_jobs else Client(url, api_key, given)
            stack.enter_context(client)
            failures = run_jobs(todo, client, display, max_parallel)
        except KeyboardInterrupt:
            if as_jobs:
                click.echo("What was sent stays on the server; the same command goes on with it.", err=True)
            raise SystemExit(INTERRUPTED) from None
    raise SystemExit(1 if failures else 0)


@main.command()
@click.argument("source", required=False)
@server_options
@click.option("--times", "with_times", is_flag=True, help="Begin every line with its start time.")
@click.option(
    "--encoding",
    type=click.Choice(["pcm_s16le", "pcm_f32le", "mulaw", "alaw"]),
    help="Encoding of raw samples from standard input. Without it: a media file, or 16-bit samples.",
)
@click.option("--rate", type=int, default=16_000, show_default=True, help="Sample rate of raw samples, Hz.")
@click.option("--channels", type=int, default=1, show_default=True, help="Interleaved channels of raw samples.")
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
    """Transcribe live speech: from the microphone, from the file SOURCE in real time, or from - , standard input.

    Every final segment is a line of standard output; on a terminal the words that follow it are shown before they are final.
    Ctrl-C stops the audio; what was said before is still transcribed.

    Exit code: 0 if all of the speech is transcribed, 1 after a failure, 2 if the command line is wrong.
    """
    # These modules load what reads audio, which no other command needs.
    from serve_app.command_line import audio_sources, live_client

    fields = {"model": model, "language": language, "keywords": list(keywords)}
    try:
        if source is None:
            audio = audio_sources.from_microphone()
        elif source == "-":
            audio = audio_sources.from_standard_input(encoding, rate, channels)
        else:
            audio = audio_sources.from_file(Path(source))
        with live_client.Screen(with_times=with_times) as screen:
            asyncio.run(live_client.listen(url, api_key, {n: v for n, v in fields.items() if v}, audio, screen))
    except Failure as failure:
        raise click.ClickException(str(failure)) from None


@contextlib.contextmanager
def _spooled(job: Job) -> Iterator[Job]:
    """The job with standard input copied to a file, which can be sent again. The file has no name, so it is always removed."""
    with tempfile.TemporaryFile() as file:
        try:
            shutil.copyfileobj(sys.stdin.buffer, file)
            file.flush()
        except OSError as error:
            raise click.ClickException(f"Standard input cannot be stored: {error.strerror}.") from None
        yield replace(job, source=file.fileno())
