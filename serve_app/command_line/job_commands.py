"""The command `jobs`: lists, follows, fetches and cancels the jobs of the server."""

import json
from collections.abc import Iterable
from pathlib import Path

import click
from click.core import ParameterSource

from serve_app.command_line.client import Failure
from serve_app.command_line.job_client import ACTIVE, MAX_FOLLOWED, STATES, Job, JobClient, end_of, title
from serve_app.command_line.job_display import follow, forget, opened, table
from serve_app.command_line.options import WORDS, connection_options, format_fields
from serve_app.command_line.parallel import in_parallel
from serve_app.command_line.progress import ProgressDisplay
from serve_app.command_line.recordings import EXTENSIONS, Destination, check_outputs, make_folder
from serve_app.command_line.transcripts import write_transcripts


@click.group(invoke_without_command=True)
@connection_options
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Maximum number of jobs.")
@click.option("--json", "as_json", is_flag=True, help="Everything that the server says about them, as a JSON array.")
@click.pass_context
def jobs(context: click.Context, url: str, api_key: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """List the jobs of this key, newest first; or watch, fetch or cancel some."""
    if context.invoked_subcommand is not None:
        if any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in context.params):
            raise click.UsageError(f"Options are written after `{context.invoked_subcommand}`.")
        return
    with opened(url, api_key) as (client, display):
        with display.row("jobs") as row:
            found = client.listed(row, state=state, limit=limit)
        if as_json:
            display.write(f"{json.dumps(found, indent=2)}\n".encode())
        elif found:
            display.write(table(found).encode())
        else:
            display.say("There are no such jobs.")


@jobs.command()
@click.argument("ids", nargs=-1)
@connection_options
def watch(ids: tuple[str, ...], url: str, api_key: str | None) -> None:
    """Follow jobs until they have ended. Without IDS: all that are queued or running.

    Exit code: 0 if all have ended well or were cancelled, 1 if one failed or cannot be followed, 130 after Ctrl-C.
    """
    with opened(url, api_key) as (client, display):
        if not ids:
            with display.row("jobs") as row:
                active = [job for state in ACTIVE for job in client.listed(row, state=state)]
            # Oldest first, as they end about in this order.
            ids = tuple(job["id"] for job in sorted(active, key=lambda job: job["created_at"]))
            if not ids:
                display.say("No jobs are queued or running.")
        failures = follow(ids, client, display)
    raise SystemExit(1 if failures else 0)


@jobs.command()
@click.argument("ids", nargs=-1, required=True)
@connection_options
@click.option("--format", "response_format", type=click.Choice(list(EXTENSIONS)), help="Without it: as the job was sent.")
@WORDS
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the transcripts, created if missing. Without it they go to standard output.",
)
@click.option("--overwrite", is_flag=True, help="Overwrite transcripts in --output-dir.")
@click.option("--forget", "forgets", is_flag=True, help="Delete each job once its transcript is written.")
def result(
    ids: tuple[str, ...],
    url: str,
    api_key: str | None,
    response_format: str | None,
    words: bool,
    output_dir: Path | None,
    overwrite: bool,
    forgets: bool,
) -> None:
    """Fetch the transcripts of completed jobs.

    Exit code: 0 if every transcript is written or skipped, 1 if one or more are not, 2 if the command line is wrong.
    """
    rendering = format_fields(response_format, words)
    with opened(url, api_key) as (client, display):
        found, failures = _get(dict.fromkeys(ids), client, display)
        destinations = [Destination(title(job), output_dir and output_dir / _file_name(job, response_format)) for job in found]
        check_outputs(destinations)
        make_folder(output_dir)
        todo: list[tuple[Job, Destination]] = []
        for job, destination in zip(found, destinations, strict=True):
            if destination.is_finished and not overwrite:
                display.say(f"{destination.name}: skipped, {destination.output} is there")
            else:
                todo.append((job, destination))

        def fetch(job: Job) -> str:
            with display.row(title(job)) as row:
                return client.result(job["id"], rendering, row)

        def forget_job(index: int) -> None:
            job, destination = todo[index]
            forget(job, destination.name, client, display)

        transcripts = in_parallel(enumerate(job for job, _ in todo), fetch, MAX_FOLLOWED)
        failures += write_transcripts([each for _, each in todo], transcripts, display, forget_job if forgets else None)
    raise SystemExit(1 if failures else 0)


@jobs.command()
@click.argument("ids", nargs=-1, required=True)
@connection_options
def cancel(ids: tuple[str, ...], url: str, api_key: str | None) -> None:
    """Cancel jobs that are queued or running. The server keeps them, without a transcript.

    Exit code: 0 if all are cancelled, 1 if one had ended otherwise or does not exist.
    """
    failures = 0
    with opened(url, api_key) as (client, display):
        for job_id in ids:
            with display.row(job_id) as row:
                try:
                    job = client.get(job_id, row)
                    if job["state"] in ACTIVE:
                        client.delete(job_id, row)
                    elif job["state"] != "cancelled":
                        raise Failure(f"it has ended: {end_of(job)}")
                    display.say(f"{title(job)}: cancelled")
                except Failure as failure:
                    failures += 1
                    display.say(f"{job_id}: not cancelled: {failure}")
    raise SystemExit(1 if failures else 0)


def _get(ids: Iterable[str], client: JobClient, display: ProgressDisplay) -> tuple[list[Job], int]:
    """The jobs, and how many of them could not be had."""
    found: list[Job] = []
    failures = 0
    for job_id in ids:
        with display.row(job_id) as row:
            try:
                found.append(client.get(job_id, row))
            except Failure as failure:
                failures += 1
                display.say(f"{job_id}: failed: {failure}")
    return found, failures


def _file_name(job: Job, response_format: str | None) -> str:
    """Of its transcript, as `transcribe` calls it; without what is not for file names, as any client may have chosen the name."""
    name = "".join(sign if sign.isprintable() else "_" for sign in job["filename"] or job["id"])
    stem = Path(name.replace("\\", "/")).stem
    # Without a format, the result is JSON.
    return f"{stem}.{EXTENSIONS.get(response_format or job['response_format'] or 'json', 'txt')}"
