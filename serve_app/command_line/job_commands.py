"""The commands `submit` and `jobs`: recordings that the server transcribes while nobody waits."""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import click

from serve_app.command_line.client import Failure
from serve_app.command_line.job_client import JobBody, JobClient, State, reason
from serve_app.command_line.jobs import EXTENSIONS, plan, write_atomically
from serve_app.command_line.options import connection_options, server_options
from serve_app.command_line.progress import ProgressDisplay

INTERRUPTED = 130
"""Exit code after Ctrl-C, by the convention of shells: 128 + SIGINT."""

ACTIVE: tuple[State, ...] = ("queued", "running")


@click.command()
@click.argument("files", nargs=-1, required=True)
@server_options
@click.option("--track", type=click.IntRange(min=0), help="Number of the audio track, from 0. Without it: the default track.")
@click.option("--channels", "multichannel", is_flag=True, help="Every channel of a recording by itself.")
@click.option("--priority", type=click.Choice(["normal", "low"]), default="normal", show_default=True)
@click.option("--webhook-url", help="Gets a signed POST request when a job has ended.")
@click.option("--metadata", help="A JSON object that the jobs and their webhook messages have, too.")
@click.option("--ttl", "ttl_s", type=float, help="How long results are kept, seconds. Without it: as the server says.")
def submit(
    files: tuple[str, ...],
    url: str,
    api_key: str | None,
    model: str | None,
    language: str | None,
    keywords: tuple[str, ...],
    track: int | None,
    multichannel: bool,
    priority: str,
    webhook_url: str | None,
    metadata: str | None,
    ttl_s: float | None,
) -> None:
    """Send FILES (paths, or patterns such as 'talks/**/*.mp3') as jobs, and print their ids, one a line.

    The server transcribes them by itself: `parakeet-serve jobs` tells how far it is, and fetches the transcripts.
    """
    fields: dict[str, str | list[str] | None] = {
        "model": model,
        "language": language,
        "keywords[]": list(keywords),
        "track": None if track is None else str(track),
        "multichannel": "true" if multichannel else None,
        "priority": priority,
        "webhook_url": webhook_url,
        "metadata": metadata,
        "ttl_s": None if ttl_s is None else str(ttl_s),
    }
    recordings = plan(files, None, "text")
    if any(recording.is_standard_input for recording in recordings):
        raise click.UsageError("Standard input cannot be sent as a job.")
    failures = 0
    given = {name: value for name, value in fields.items() if value}
    with JobClient(url, api_key, given) as client, _interruptible(), ProgressDisplay() as display:
        for recording in recordings:
            try:
                with display.row(recording.name) as row:
                    # A request that is repeated, because its answer was lost or the server was busy, makes no second job.
                    job = client.submit(recording.source, row, key=uuid.uuid4().hex)
                display.write(f"{job['id']}\n".encode())
            except Failure as failure:
                failures += 1
                display.say(f"{recording.name}: failed: {failure}")
    raise SystemExit(1 if failures else 0)


@click.group()
def jobs() -> None:
    """Jobs of this key on the server: list, follow, fetch and cancel them."""


@jobs.command("list")
@connection_options
@click.option("--state", type=click.Choice(list(get_args(State))), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many, newest first.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, an object a line.")
def list_(url: str, api_key: str | None, state: State | None, limit: int, as_json: bool) -> None:
    """List jobs, newest first."""
    with JobClient(url, api_key, {}) as client, _failing():
        for job in client.list(state, limit):
            click.echo(json.dumps(job) if as_json else _line(job))


@jobs.command()
@click.argument("ids", nargs=-1)
@connection_options
def watch(ids: tuple[str, ...], url: str, api_key: str | None) -> None:
    """Follow jobs until they have ended; without IDS, all that have not. Exit code: 1 if one of them failed."""
    with JobClient(url, api_key, {}) as client, _failing(), _interruptible():
        wanted = [client.get(job_id) for job_id in ids] or [job for state in ACTIVE for job in client.list(state)]
        with ProgressDisplay() as display:
            failures = _watch(wanted, client, display)
    raise SystemExit(1 if failures else 0)


@jobs.command()
@click.argument("ids", nargs=-1, required=True)
@connection_options
@click.option("--format", "response_format", type=click.Choice(list(EXTENSIONS)), default="text", show_default=True)
@click.option("--words", is_flag=True, help="With --format verbose_json: the time of every word.")
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for one transcript per job, named like its recording. Without it they go to standard output.",
)
def result(
    ids: tuple[str, ...], url: str, api_key: str | None, response_format: str, words: bool, output_dir: Path | None
) -> None:
    """Fetch the transcripts of completed jobs, in any format and any number of times."""
    if words and response_format != "verbose_json":
        raise click.UsageError("--words needs --format verbose_json.")
    with JobClient(url, api_key, {}) as client, _failing():
        for job_id in ids:
            text = client.result(job_id, response_format, words=words)
            if output_dir is None:
                click.echo(text, nl=False)
                continue
            output_dir.mkdir(parents=True, exist_ok=True)
            # A name without folders: it comes from the server.
            stem = Path(client.get(job_id)["filename"]).stem or job_id
            path = output_dir / f"{stem}.{EXTENSIONS[response_format]}"
            if path.exists():
                path = path.with_stem(f"{stem}-{job_id}")
            write_atomically(path, text.encode())
            click.echo(path)


@jobs.command()
@click.argument("ids", nargs=-1, required=True)
@connection_options
def cancel(ids: tuple[str, ...], url: str, api_key: str | None) -> None:
    """Cancel jobs; those that have ended are forgotten, with their transcripts."""
    with JobClient(url, api_key, {}) as client, _failing():
        for job_id in ids:
            client.cancel(job_id)


def _watch(wanted: Sequence[JobBody], client: JobClient, display: ProgressDisplay) -> int:
    """Follow the jobs, each with a row; returns how many did not complete."""
    outcomes: list[str | None] = [""] * len(wanted)

    def follow(index: int, job: JobBody) -> None:
        name = job["filename"] or job["id"]
        try:
            with display.row(name) as row:
                ended = client.watch(job["id"], row)
            outcomes[index] = None if ended["state"] == "completed" else reason(ended)
        except Failure as failure:
            outcomes[index] = str(failure)
        display.say(f"{name}: {'done' if outcomes[index] is None else f'failed: {outcomes[index]}'} ({job['id']})")

    # Daemon threads, so that Ctrl-C does not wait for the network.
    threads = [threading.Thread(target=follow, args=each, daemon=True) for each in enumerate(wanted)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(outcome is not None for outcome in outcomes)


def _line(job: JobBody) -> str:
    """One line of the list."""
    done = timedelta(seconds=int(job["done_s"]))
    length = "?" if job["audio_s"] is None else timedelta(seconds=int(job["audio_s"]))
    age = timedelta(seconds=int(time.time() - job["created_at"]))
    columns: tuple[Any, ...] = (job["id"], f"{job['state']:<9}", f"{done} of {length}", f"{age} ago", job["filename"])
    return "  ".join(map(str, columns)) + (f"  {reason(job)}" if job["error"] else "")


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """A Failure ends the command with its message."""
    try:
        yield
    except Failure as failure:
        raise click.ClickException(str(failure)) from None


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """After Ctrl-C the jobs stay on the server."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("The jobs stay on the server: parakeet-serve jobs watch", err=True)
        raise SystemExit(INTERRUPTED) from None
