"""Options that the commands share: which server, and what to ask it for."""

from collections.abc import Callable
from typing import Any

import click
import httpx2


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
    """The server's variable of the same name holds several keys with commas between."""
    if value and not value.isprintable():
        raise click.BadParameter("it has characters that a header cannot have.")
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
        help="Key for a server that wants one; of several with commas, the first.",
    ),
    click.option("--model", help="A model of the server instead of its default."),
    click.option("--language", help="Language that is spoken, as a code (en) or an English name."),
    click.option("--keyword", "keywords", multiple=True, help="A word or phrase to listen for. May be given several times."),
)


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: `url`, `api_key`, `model`, `language` and `keywords`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
