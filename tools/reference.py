"""Print docs/reference.md: routes and fields from the API's own description, commands and options from the command line's.

python -m tools.reference >docs/reference.md
"""

import asyncio
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click

from serve_app.api import create_api, realtime, websocket
from serve_app.command_line import main as command_line
from serve_app.jobs.service import JobService
from serve_app.settings import JobSettings
from testing.fake_service import FakeService

HEAD = """# Reference

Made by `python -m tools.reference`, from the server's own description of its API (`/openapi.json`) and from the help of
`parakeet-serve`. What the fields and options mean in full is in [API](api.md), [jobs](jobs.md) and
[command line](command_line.md); settings are in [configuration](configuration.md#all-settings), metrics in
[operating](operating.md#metrics), error codes in [troubleshooting](troubleshooting.md#error-codes)."""

SOCKETS = {
    websocket.PATH: "Files and live speech.",
    realtime.PATH: "OpenAI's Realtime API, transcription sessions.",
}
"""The description of an API has no WebSockets."""

Schema = Mapping[str, Any]


def description() -> dict[str, Any]:
    """The OpenAPI document of a server with jobs."""
    with tempfile.TemporaryDirectory() as folder:
        service = FakeService(jobs=JobSettings(directory=folder)).service
        jobs = JobService.of(service)
        try:
            return create_api(service, job_service=jobs).openapi()
        finally:
            asyncio.run(jobs.store.close())


def routes(document: Schema) -> list[tuple[str, str, Schema]]:
    """Method, path and operation of every route, in the order of the document."""
    return [(method.upper(), path, op) for path, ops in document["paths"].items() for method, op in ops.items()]


def fields(document: Schema, operation: Schema) -> list[tuple[str, str, Schema]]:
    """Place (`form`, `body`, `query`, `header`, `path`), name and schema of everything that a request may have."""
    found = [(field["in"], field["name"], field | field["schema"]) for field in operation.get("parameters", [])]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
        place = "form" if kind.startswith("multipart/") else "body"
        required = schema.get("required", [])
        found += [(place, name, field | {"required": name in required}) for name, field in schema["properties"].items()]
    return found


def commands(command: click.Command = command_line, name: str = "parakeet-serve") -> Iterator[tuple[str, click.Command]]:
    """Every command with its whole name; groups without subcommands of their own are left out."""
    if command is not command_line:
        yield name, command
    if isinstance(command, click.Group):
        for sub, inner in command.commands.items():
            yield from commands(inner, f"{name} {sub}")


def _cell(text: str) -> str:
    return " ".join(text.replace("\b", "").split()).replace("|", "\\|")


def _values(schema: Schema) -> str:
    """Possible values, bounds and default of a field."""
    kind = next((option for option in schema.get("anyOf", []) if option.get("type") != "null"), schema)
    inner = kind.get("items", kind)
    name = ", ".join(f"`{value}`" for value in inner["enum"]) if "enum" in inner else str(inner.get("type", "object"))
    words = ["list of " + name if "items" in kind else name]
    if "minimum" in inner:
        words.append(f"{inner['minimum']:g} to {inner['maximum']:g}" if "maximum" in inner else f"{inner['minimum']:g} or more")
    if (default := schema.get("default")) not in (None, [], ""):
        words.append(f"default `{json.dumps(default)}`")
    if schema.get("required") is True:
        words.append("required")
    return "; ".join(words)


def _table(columns: str, rows: Iterable[str]) -> list[str]:
    return [columns, "|" + "---|" * (columns.count("|") - 1), *rows]


def route_tables() -> str:
    """Every route, and for each the fields of its requests."""
    document = description()
    rows = [
        f"| `{method} {path}` | {_cell(operation['description'])} | {', '.join(sorted(operation['responses']))} |"
        for method, path, operation in routes(document)
    ]
    rows += [f"| `WebSocket {path}` | {text} | |" for path, text in SOCKETS.items()]
    parts = ["\n".join(["## Routes", "", *_table("| route | meaning | statuses |", rows)])]
    for method, path, operation in routes(document):
        lines = [
            f"| `{name}` | {place} | {_values(schema)} | {_cell(schema.get('description', ''))} |"
            for place, name, schema in fields(document, operation)
        ]
        if lines:
            parts.append("\n".join([f"### {method} {path}", "", *_table("| field | where | values | meaning |", lines)]))
    return "\n\n".join(parts)


def command_tables() -> str:
    """Every command with its options."""
    parts = ["## Command line"]
    for name, command in commands():
        context = click.Context(command)
        arguments = [parameter.make_metavar(context) for parameter in command.params if isinstance(parameter, click.Argument)]
        options = [_option(parameter) for parameter in command.params if isinstance(parameter, click.Option)]
        meaning = _cell(command.help or "").replace("*", "\\*")
        table = _table("| option | variable | default | meaning |", options)
        parts.append("\n".join([f"### {' '.join([name, *arguments])}", "", meaning, "", *table]))
    return "\n\n".join(parts)


def _option(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    variable = f"`{option.envvar}`" if option.envvar else ""
    default = f"`{option.default}`" if isinstance(option.default, str | int) and not option.is_flag else ""
    values = ", ".join(f"`{choice}`" for choice in option.type.choices) + ". " if isinstance(option.type, click.Choice) else ""
    return f"| {names} | {variable} | {default} | {values}{_cell(option.help or '')} |"


def page() -> str:
    """The whole page."""
    return "\n\n".join([HEAD, route_tables(), command_tables()]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
