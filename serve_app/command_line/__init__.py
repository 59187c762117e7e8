"""`parakeet-serve`, the command-line client. It does not import the server, so it starts fast."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from serve_app import __version__
from serve_app.command_line.client import Client, Failure
from serve_app.command_line.job_client import JobClient
from serve_app.command_line.job_commands import jobs
from serve_app.command_line.job_transcripts import transcribe_by_jobs
from serve_app.command_line.options import INTERRUPTED, file_options, format_fields, server_options, speech_fields
from serve_app.command_line.parallel import in_parallel
from serve_app.command_line.progress import ProgressDisplay
from serve_app.command_line.recordings import Recording, make_folder, plan, spooled
from serve_app.command_line.submit_command import submit
from serve_app.command_line.transcripts import write_transcripts

LEFT = "Interrupted. The jobs go on on the server; the same command fetches their transcripts and sends what is missing."


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Transcribe speech with a Parakeet server."""


main.add_command(submit)
main.add_command(jobs)


@main.command()
@click.argument("files", nargs=-1, required=True)
@file_options
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for one transcript per recording; created if missing. Without it the transcripts go to standard output.",
)
@click.option("--overwrite", is_flag=True, help="Transcribe every file, and overwrite transcripts in --output-dir.")
@click.option("--jobs", "by_jobs", is_flag=True, help="Send the files as jobs, which go on when this command is interrupted.")
@click.option("--forget", "forgets", is_flag=True, help="With --jobs and --output-dir: delete jobs whose transcript is written.")
def transcribe(
    files: tuple[str, ...],
    url: str,
    api_key: str | None,
    response_format: str,
    words: bool,
    output_dir: Path | None,
    max_parallel: int,
    overwrite: bool,
    by_jobs: bool,
    forgets: bool,
    **speech_options: Any,
) -> None:
    """Transcribe FILES: paths, patterns such as 'talks/**/*.mp3', or - for standard input; with --jobs also folders.

    Transcripts appear in --output-dir only when they are complete. A recording whose transcript is there is skipped.

    With --jobs, the same command goes on after an interruption: it finds the jobs that it has made.

    Exit code: 0 if every file is done or skipped, 1 if one or more failed, 2 if the command line is wrong, 130 after Ctrl-C.
    """
    if forgets and not (by_jobs and output_dir):
        raise click.UsageError("--forget needs --jobs and --output-dir.")
    speech, rendering = speech_fields(response_format, **speech_options), format_fields(response_format, words)
    recordings = plan(files, output_dir, response_format, with_folders=by_jobs)
    make_folder(output_dir)
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(ProgressDisplay())
        try:
            todo: list[Recording] = []
            for each in recordings:
                if each.is_finished and not overwrite:
                    display.say(f"{each.name}: skipped, {each.output} is there")
                else:
                    todo.append(stack.enter_context(spooled(each)) if each.is_standard_input else each)
            if by_jobs:
                job_client = stack.enter_context(JobClient(url, api_key))
                failures = transcribe_by_jobs(
                    todo, job_client, speech, rendering, display, max_parallel=max_parallel, forgets=forgets
                )
            else:
                client = stack.enter_context(Client(url, api_key, speech | rendering))
                failures = _transcribe(todo, client, display, max_parallel)
        except KeyboardInterrupt:
            if by_jobs:
                display.say(LEFT)
            raise SystemExit(INTERRUPTED) from None
        except Failure as failure:
            raise click.ClickException(str(failure)) from None
    raise SystemExit(1 if failures else 0)


def _transcribe(recordings: Sequence[Recording], client: Client, display: ProgressDisplay, max_parallel: int) -> int:
    """Write the transcripts of the recordings; returns the number of failures."""

    def transcript(recording: Recording) -> str:
        with display.row(recording.name) as row:
            return client.transcribe(recording.source, row)

    return write_transcripts(recordings, in_parallel(enumerate(recordings), transcript, max_parallel), display)


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
@click.option("--separate", "multichannel", is_flag=True, help="Every channel of the audio by itself; lines name theirs.")
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
    multichannel: bool,
) -> None:
    """Transcribe live speech: from the microphone, from the file SOURCE in real time, or from - , standard input.

    Every final segment is a line of standard output; on a terminal the words that follow it are shown before they are final.
    Ctrl-C stops the audio; what was said before is still transcribed.

    Exit code: 0 if all of the speech is transcribed, 1 after a failure, 2 if the command line is wrong.
    """
    # These modules load what reads audio, which no other command needs.
    from serve_app.command_line import audio_sources, live_client

    fields = {"model": model, "language": language, "keywords": list(keywords), "multichannel": multichannel}
    try:
        if source is None:
            audio = audio_sources.from_microphone()
        elif source == "-":
            audio = audio_sources.from_standard_input(encoding, rate, channels)
        else:
            audio = audio_sources.from_file(Path(source), multichannel=multichannel)
        with live_client.Screen(with_times=with_times) as screen:
            asyncio.run(live_client.listen(url, api_key, {n: v for n, v in fields.items() if v}, audio, screen))
    except Failure as failure:
        raise click.ClickException(str(failure)) from None
