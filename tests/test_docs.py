"""The pages name everything that exists, and nothing that does not; examples in JSON are JSON.

tests/server/demo/test_docs.py runs the commands and programs on them.
"""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from typing import Any

import click
import pytest
import yaml

from serve_app import errors
from serve_app.api import realtime, websocket
from serve_app.observe.catalogue import METRICS
from serve_app.settings import Settings
from testing.pages import PAGES, Block, blocks, code_spans
from testing.paths import ROOT
from tests.conftest import SEED_VARIABLES
from tools import reference, settings_table

TEXT = "\n".join(PAGES.values())
SOURCES = {path: path.read_text() for path in sorted((ROOT / "serve_app").rglob("*.py"))}
CODE = "\n".join(SOURCES.values())
DOCUMENT = reference.description()
TROUBLESHOOTING = PAGES["docs/troubleshooting.md"]

UNPREFIXED = SEED_VARIABLES | {"PARAKEET_URL"}
"""Environment variables of ours that have no setting's name."""

FOREIGN = re.compile(
    r"(HF|RAY|KUBERAY|OTEL|OPENAI|PIP|CUDA|NVIDIA|HTTPS?|SERVE|MALLOC)_\w+|TMPDIR|PYTHONPATH|HOME|PORT|FSDD_RECORDINGS|[A-Z]+_ARGS"
)
"""Variables of others, of make and of Compose."""


def names_of(table: str, column: int) -> list[str]:
    """What is in backticks in a column of the table below a heading of the page for troubleshooting."""
    rows = TROUBLESHOOTING.partition(f"## {table}")[2].partition("\n## ")[0].splitlines()
    cells = [re.split(r"(?<!\\)\|", row)[column + 1].strip() for row in rows if row.startswith("| ")]
    return [cell.strip("`") if cell.startswith("`") else cell for cell in cells[1:]]


def test_the_reference_is_current() -> None:
    """`python -m tools.reference >docs/reference.md` writes it."""
    assert reference.page() == PAGES["docs/reference.md"]


# Settings, variables.

COMPOSE = (ROOT / "deploy" / "compose.yaml").read_text()

OTHER_WORDS = {"FIRST_NODE", "PATH_OF_THE_CHECKOUT", "S16_LE", "NUM_WORKERS", "LONG_AUDIO_THRESHOLD"}
"""Words that the reader replaces, an option of another program, and variables that have no effect here."""

SETTINGS = {path for path, _ in settings_table.leaves()}
SECTIONS = {path.rpartition(".")[0] for path in SETTINGS} | set(Settings.model_fields) | {"models[].simulation"}


def is_setting(name: str) -> bool:
    name = re.sub(r"\[\d+\]", "[]", name)
    return name in SETTINGS | SECTIONS or any(setting.startswith(f"{name}.") for setting in SETTINGS)


def test_every_setting_is_named() -> None:
    assert [name for name in SETTINGS if f"`{name}`" not in TEXT] == []


@pytest.mark.parametrize("page", PAGES)
def test_settings_on_pages_exist(page: str) -> None:
    first = "|".join(sorted(name for name in Settings.model_fields))
    for span in code_spans(PAGES[page]):
        if match := re.fullmatch(rf"((?:{first})(?:\[\d*\])?(?:\.[a-z_]+)+)(?:: .*|\.\*)?", span):
            is_file = match[1].rpartition(".")[2] in ("py", "md", "yaml", "sqlite", "js", "css")
            assert is_file or is_setting(match[1]), span


@pytest.mark.parametrize("page", PAGES)
def test_variables_on_pages_exist(page: str) -> None:
    for name in re.findall(r"(?<![A-Za-z0-9_.])[A-Z][A-Z0-9]*(?:_+[A-Z0-9]+)+(?![A-Za-z_])", PAGES[page]):
        if name.startswith("PARAKEET_") and name != "PARAKEET_URL":
            assert is_setting(name.removeprefix("PARAKEET_").lower().replace("__", ".")), name
        elif not FOREIGN.fullmatch(name):
            assert re.search(rf"\b{name}\b", CODE) or re.search(rf"\b{name}\b", COMPOSE) or name in OTHER_WORDS, name


def test_every_variable_is_named() -> None:
    assert [name for name in UNPREFIXED if f"`{name}" not in TEXT] == []


# Routes, fields, events, metrics.

ROUTES = [path for _, path, _ in reference.routes(DOCUMENT)] + [websocket.PATH, realtime.PATH]
OTHER_ROUTES = {"/", "/docs", "/openapi.json", "/static", "/static/", "/-/healthz", "/v1", "/v1/v1/audio/transcriptions"}


def test_every_route_is_named_besides_in_the_reference() -> None:
    text = "\n".join(text for page, text in PAGES.items() if page != "docs/reference.md")
    for path in ROUTES:
        pattern = re.sub(r"\\{\w+\\}", r"(?:[A-Z]+|\\w+)", re.escape(path))
        assert re.search(pattern, text), path


@pytest.mark.parametrize("page", PAGES)
def test_routes_on_pages_exist(page: str) -> None:
    known = [re.compile(re.sub(r"\\{\w+\\}", r"[^/]+", re.escape(path))) for path in ROUTES]
    for path in re.findall(r"(?:127\.0\.0\.1:8000|localhost:8000|`(?:GET |POST |DELETE )?)(/[\w/.-]*[\w/])", PAGES[page]):
        path = path.rstrip("/") or "/"
        is_folder = not path.startswith(("/v1", "/health", "/ready", "/metrics", "/docs"))
        assert is_folder or path in OTHER_ROUTES or any(route.fullmatch(path) for route in known), path


def test_every_field_of_a_request_is_named_besides_in_the_reference() -> None:
    text = "\n".join(text for page, text in PAGES.items() if page != "docs/reference.md")
    for method, path, operation in reference.routes(DOCUMENT):
        for place, name, _ in reference.fields(DOCUMENT, operation):
            if place == "path":
                continue
            word = re.split(r"[\[.]", name)[0] if "strategy" in name else name
            assert re.search(rf"(?i)`[^`\n]*{re.escape(word)}\b|`{re.escape(word)}", text), (method, path, name)


def test_every_event_is_named() -> None:
    kinds = set(re.findall(r'"((?:session|transcription_session|input_audio_buffer|transcript)\.[a-z_.]+)"', CODE))
    assert len(kinds) > 10
    for kind in kinds:
        assert kind in TEXT or f"`.{kind.rpartition('.')[2]}`" in TEXT, kind


@pytest.mark.parametrize("page", PAGES)
def test_metrics_on_pages_exist(page: str) -> None:
    named = set(re.findall(r"ray_parakeet_[a-z_]+[a-z]", PAGES[page]))
    assert named <= {metric.exported_name for metric in METRICS}


# Error codes, the log.


def error_codes() -> Iterator[tuple[str, str]]:
    """Status and code of every error; `-` for those that no HTTP response has."""
    for module in ("rest", "jobs", "realtime_events"):
        importlib.import_module(f"serve_app.api.{module}")
    kinds: list[type[errors.SpeechError]] = [errors.SpeechError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        yield "-" if kind.__module__ == "serve_app.api.realtime_events" else str(kind.status), kind.code
    yield from (("400", code) for code in re.findall(r'code = .*"([a-z_]+)"$', SOURCES[ROOT / "serve_app/api/errors.py"], re.M))
    yield from (("-", code) for code in re.findall(r'JobError\("([a-z_]+)"', CODE))


def test_every_error_code_has_a_remedy() -> None:
    rows = dict(zip(names_of("Error codes", 1), names_of("Error codes", 0), strict=True))
    assert rows == {code: status for status, code in error_codes()}


def log_lines() -> Iterator[str]:
    """Every line of level WARNING or above, as the page writes it."""
    for source in SOURCES.values():
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Call(ast.Attribute(ast.Name("log"), "warning" | "error" | "exception"), [ast.Constant(str(text)), *_]):
                    yield re.sub(r"%[.\d]*\w", "...", text)


def test_every_line_of_the_log_that_asks_for_action_has_a_remedy() -> None:
    rows = names_of("Lines of the log", 0)
    assert sorted(rows) == sorted(set(log_lines()))


# Files, commands.


@pytest.mark.parametrize("page", PAGES)
def test_files_on_pages_exist(page: str) -> None:
    for span in code_spans(PAGES[page]):
        folders = r"(?:tests|testing|tools|configs|deploy|serve_app|benchmarks|docs)"
        if match := re.fullmatch(rf"({folders}/[\w./-]+)(?:::\w+)?", span):
            assert (ROOT / match[1]).exists(), span
        for module in re.findall(r"python -m ((?:serve_app|tools|benchmarks|testing)[\w.]+)", span):
            importlib.util.find_spec(module) or pytest.fail(span)


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make (?:[A-Z]+=\S+ )?([a-z][a-z-]*)", TEXT)) <= targets


def test_options_of_the_command_line() -> None:
    options = {
        name
        for _, command in reference.commands()
        for option in command.params
        if isinstance(option, click.Option)
        for name in option.opts
    }
    page = PAGES["docs/command_line.md"]
    assert [name for name in options if f"`{name}`" not in page] == []
    assert set(re.findall(r"`(--[a-z-]+)`", page)) <= options


# Examples.


def parsed(text: str) -> list[Any]:
    """The objects of an example, in which `...` outside of strings stands for more."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|\.\.\.|[^".]+|.', text)
    spaced = "".join("" if token == "..." else token for token in tokens)
    spaced = re.sub(r",(\s*,)+", ",", spaced)
    spaced = re.sub(r",(\s*[}\]])", r"\1", spaced)
    spaced = re.sub(r"([{\[])\s*,", r"\1", spaced).replace('": }', '": null}').replace('":}', '": null}')
    decoder, at, found = json.JSONDecoder(), 0, []
    while at < len(spaced.rstrip()):
        at += len(spaced[at:]) - len(spaced[at:].lstrip())
        value, at = decoder.raw_decode(spaced, at)
        found.append(value)
    return found


def keys_of(value: Any) -> set[str]:
    match value:
        case dict():
            return set(value) | {key for inner in value.values() for key in keys_of(inner)}
        case list():
            return {key for inner in value for key in keys_of(inner)}
    return set()


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_examples_in_yaml_are_valid_settings(block: Block) -> None:
    content = yaml.safe_load(block.text)
    (application,) = content.get("applications", [content])
    if args := application.get("args", {name: value for name, value in application.items() if name == "models"}):
        Settings(**args)
    else:
        assert set(content) & {"scrape_configs", "receivers"}, "Which program reads this?"


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_examples_in_json_have_fields_that_exist(block: Block) -> None:
    names = {key for value in parsed(block.text) for key in keys_of(value)}
    assert names
    logged = {"asctime", "levelname", "filename", "lineno", "process", "worker_id", "node_id", "actor_id", "actor_name"}
    logged |= {"component_name", "timestamp_ns"}
    assert {name for name in names if not re.search(rf"\b{re.escape(name)}\b", CODE)} <= logged
