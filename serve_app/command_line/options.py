"""What several commands share: options, the form fields that they mean, and an exit code."""

import base64
import mimetypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import httpx2

from serve_app.command_line.recordings import EXTENSIONS

INTERRUPTED = 130
"""Exit code after Ctrl-C, by the convention of shells: 128 + SIGINT."""

Fields = dict[str, str | list[str]]
"""Fields of a form, or parameters of a query."""

Decorator = Callable[..., Any]


def _checked_url(_context: click.Context, _option: click.Parameter, value: str) -> str:
    """The address without a trailing `/v1`."""
    try:
        url = httpx2.URL(value)
    except httpx2.InvalidURL as error:
        raise click.BadParameter(f"{value}: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise click.BadParameter(f"{value} does not begin with http:// or https:// and a host.")
    return value.rstrip("/").removesuffix("/v1").rstrip("/")


def _checked_key(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """The first key: `API_KEY` is also a variable of the server, where it may hold several, separated by commas."""
    if value and not value.isprintable():
        raise click.BadParameter("it has characters that are not allowed in a header.")
    return (value or "").split(",")[0].strip() or None


CONNECTION: Sequence[Decorator] = (
    click.option(
        "--url",
        default="http://127.0.0.1:8000",
        envvar="PARAKEET_URL",
        show_default=True,
        show_envvar=True,
        callback=_checked_url,
        help="Address of the server.",
    ),
    click.option(
        "--api-key",
        envvar="API_KEY",
        show_envvar=True,
        callback=_checked_key,
        help="API key, if the server requires one; of several separated by commas, the first is used.",
    ),
)
"""In the order of the help text, as the others."""

SPEECH: Sequence[Decorator] = (
    click.option("--model", help="Name of a model. Without it: the server's default model."),
    click.option("--language", help="Language of the speech, as a code (en) or an English name."),
    click.option("--keyword", "keywords", multiple=True, help="A word or phrase that is likely to occur. Can be repeated."),
)

FORMAT = click.option(
    "--format",
    "response_format",
    type=click.Choice(list(EXTENSIONS)),
    default="text",
    show_default=True,
    help="Format of the transcripts.",
)

WORDS = click.option("--words", is_flag=True, help="With --format verbose_json: the time of every word.")

CHANNELS = click.option("--channels", "multichannel", is_flag=True, help="Every channel of a recording by itself.")


def _read_reference(_context: click.Context, _option: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Data URLs by name, from `NAME=FILE`."""
    references = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name.strip() and equals and path):
            raise click.BadParameter(f"{value} is not NAME=FILE.")
        try:
            content = Path(path).expanduser().read_bytes()
        except OSError as error:
            raise click.BadParameter(f"{path} cannot be read: {error.strerror}.") from None
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        references[name] = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return references


SPEAKERS: Sequence[Decorator] = (
    click.option("--diarize", "diarize", flag_value="true", help="Find out who speaks."),
    click.option(
        "--diarize-optional", "diarize", flag_value="optional", help="The same, where the server can; otherwise without speakers."
    ),
    click.option(
        "--speakers",
        multiple=True,
        callback=_read_reference,
        metavar="NAME=FILE",
        help="Somebody who may speak, and 2 to 10 s of their speech. Can be repeated; implies --diarize.",
    ),
)

FILES: Sequence[Decorator] = (
    FORMAT,
    click.option("--track", type=click.IntRange(min=0), help="Number of the audio track, from 0. Without it: the default track."),
    CHANNELS,
    *SPEAKERS,
    WORDS,
    click.option(
        "--parallel",
        "max_parallel",
        type=click.IntRange(min=1, max=256),
        default=2,
        show_default=True,
        help="Files to send at once.",
    ),
)


def _add(options: Sequence[Decorator], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: adds `url` and `api_key` to a command."""
    return _add(CONNECTION, command)


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: adds `url`, `api_key`, `model`, `language` and `keywords` to a command."""
    return _add([*CONNECTION, *SPEECH], command)


def file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: adds those of `server_options`, `response_format`, `track`, `multichannel`, `diarize`, `speakers`, `words` and
    `max_parallel`."""
    return _add([*CONNECTION, *SPEECH, *FILES], command)


def speech_fields(
    response_format: str | None,
    *,
    model: str | None,
    language: str | None,
    track: int | None,
    multichannel: bool,
    keywords: Sequence[str],
    diarize: str | None,
    speakers: Mapping[str, str],
) -> Fields:
    """What is transcribed, and how. `response_format`: in which the transcript is fetched."""
    needs_speakers = bool(speakers) or response_format == "diarized_json"
    fields: dict[str, Any] = {
        "model": model,
        "language": language,
        "track": None if track is None else str(track),
        "multichannel": "true" if multichannel else None,
        "keywords[]": list(keywords),
        "diarize": diarize or ("true" if needs_speakers else None),
        "known_speaker_names[]": list(speakers),
        "known_speaker_references[]": list(speakers.values()),
    }
    return {name: value for name, value in fields.items() if value}


def format_fields(response_format: str | None, words: bool) -> Fields:
    """How the transcript is rendered. Raises click.UsageError."""
    if words and response_format != "verbose_json":
        raise click.UsageError("--words needs --format verbose_json.")
    fields: Fields = {} if response_format is None else {"response_format": response_format}
    return fields | {"timestamp_granularities[]": ["word", "segment"]} if words else fields
