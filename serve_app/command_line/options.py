"""Command-line options that several commands share: the server's address and key, and fields of the request."""

from collections.abc import Callable
from typing import Any

import click
import httpx2


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


OPTIONS = (
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
    click.option("--model", help="Name of a model. Without it: the server's default model."),
    click.option("--language", help="Language of the speech, as a code (en) or an English name."),
    click.option("--keyword", "keywords", multiple=True, help="A word or phrase that is likely to occur. Can be repeated."),
)
"""In the order of the help text."""


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: adds `url` and `api_key` to a command."""
    for option in reversed(OPTIONS[:2]):
        command = option(command)
    return command


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: adds `url`, `api_key`, `model`, `language` and `keywords` to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
