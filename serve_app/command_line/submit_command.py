"""The command `submit`: sends files as jobs."""

import contextlib
import json
import uuid
from typing import Any

import click

from serve_app.command_line.client import reason
from serve_app.command_line.job_display import follow, opened
from serve_app.command_line.options import file_options, format_fields, speech_fields
from serve_app.command_line.parallel import in_order, in_parallel
from serve_app.command_line.recordings import Recording, plan, spooled


def _checked_metadata(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    try:
        if value is None or isinstance(json.loads(value), dict):
            return value
    except ValueError:
        pass
    raise click.BadParameter("it is not a JSON object.")


@click.command()
@click.argument("files", nargs=-1, required=True)
@file_options
@click.option("--webhook-url", help="Gets a signed POST request when a job has ended.")
@click.option("--metadata", callback=_checked_metadata, help="A JSON object that each job has, and its webhook messages.")
@click.option(
    "--ttl", "ttl_s", type=click.FloatRange(min=0, min_open=True), help="How long jobs are kept after their end, seconds."
)
@click.option("--priority", type=click.Choice(["normal", "low"]), help="low: after the normal ones.")
@click.option("--wait", is_flag=True, help="Follow the jobs until all have ended, as `jobs watch` does.")
def submit(
    files: tuple[str, ...],
    url: str,
    api_key: str | None,
    response_format: str,
    words: bool,
    max_parallel: int,
    webhook_url: str | None,
    metadata: str | None,
    ttl_s: float | None,
    priority: str | None,
    wait: bool,
    **speech_options: Any,
) -> None:
    """Send FILES as jobs: paths, patterns such as 'talks/**/*.mp3', or - for standard input.

    Standard output gets the id of each job, one a line, in the order of the files.

    Exit code: 0 if every file is sent, and with --wait no job failed, 1 otherwise, 2 if the command line is wrong.
    """
    job_fields = {"webhook_url": webhook_url, "metadata": metadata, "ttl_s": ttl_s and str(ttl_s), "priority": priority}
    fields = speech_fields(response_format, **speech_options) | format_fields(response_format, words)
    fields |= {name: value for name, value in job_fields.items() if value}
    recordings = plan(files, None, response_format)
    with opened(url, api_key) as (client, display), contextlib.ExitStack() as stack:
        with display.row("jobs") as row:
            client.check(row)

        def send(recording: Recording) -> str:
            with display.row(recording.name) as row:
                job = client.submit(recording.source, fields, uuid.uuid4().hex, row)
            display.say(f"{recording.name}: {job['id']}")
            return job["id"]

        recordings = [stack.enter_context(spooled(each)) if each.is_standard_input else each for each in recordings]
        failures, job_ids = 0, []
        for index, sent in in_order(in_parallel(enumerate(recordings), send, max_parallel)):
            if isinstance(sent, Exception):
                failures += 1
                display.say(f"{recordings[index].name}: failed: {reason(sent)}")
            else:
                job_ids.append(sent)
                display.write(f"{sent}\n".encode())
        if wait:
            failures += follow(job_ids, client, display)
    raise SystemExit(1 if failures else 0)
