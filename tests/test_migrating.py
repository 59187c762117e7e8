"""Each row of the table in docs/migrating.md is true for this server."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from fastapi.testclient import TestClient

from serve_app import errors
from serve_app.api import create_api
from serve_app.run import with_port
from serve_app.settings import Settings
from testing.fake_service import FakeService, post
from testing.paths import ROOT

VARIABLES = {
    "A": {
        *("BATCH_SIZE", "NUM_WORKERS", "TRANSCRIBE_CHUNK_LEN", "TRANSCRIBE_OVERLAP"),
        *("LONG_AUDIO_THRESHOLD", "PORT", "LOG_LEVEL"),
    },
    "B": {"CHUNK_MINITE", "IDLE_TIMEOUT_MINUTES", "ENABLE_LAZY_LOAD", "API_KEY", "PUID", "PGID"},
}
"""The variables in the README of each server."""

OUTSIDE_THE_SETTINGS = {"PORT", "PUID", "PGID"}
"""Variables with an effect that are not settings."""


class Row(NamedTuple):
    server: str
    kind: str
    there: str
    here: str

    @property
    def names(self) -> list[str]:
        return re.findall(r"`([^`]+)`", self.there)


def rows() -> list[Row]:
    lines = (ROOT / "docs" / "migrating.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")][2:]
    return [Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in table]


def rows_of(kind: str) -> list[Any]:
    return [pytest.param(row, id=f"{row.server} {row.there}") for row in rows() if row.kind.startswith(kind)]


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(create_api(FakeService().service), raise_server_exceptions=False) as client:
        yield client


def test_the_table_lists_every_variable() -> None:
    for server, names in VARIABLES.items():
        listed = {row.names[0].partition("=")[0] for row in rows() if row.kind == "variable" and row.server == server}
        assert listed == names


@pytest.mark.parametrize("row", rows_of("variable"))
def test_variables(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, value = row.names[0].partition("=")
    # These values differ from those in the table, so that every variable changes a setting.
    file: dict[str, Any] = {
        "models": [
            {"name": "one", "source": "bundled", "min_replicas": 1 - (value == "false"), "idle_unload_s": 7},
            {"name": "two", "source": "bundled", "min_replicas": 1, "max_replicas": 2},
        ]
    }
    before = Settings(**file)
    monkeypatch.setenv(name, value)
    after = Settings(**file)
    promised = re.findall(r"`([a-z_\[\]0-9.]+): ([^`]+)`", row.here)
    for path, expected in promised:
        assert _at(before, path) != yaml.safe_load(expected)
        assert _at(after, path) == yaml.safe_load(expected)
    if not promised:
        assert after == before
        assert name in OUTSIDE_THE_SETTINGS or row.here.startswith("No effect")


def _at(settings: Settings, path: str) -> Any:
    value: Any = settings
    for part in re.findall(r"[a-z_]+|\d+", path):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    return [key.get_secret_value() for key in value] if path == "auth.keys" else value


def test_the_port(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("http_options: {host: 127.0.0.1, port: 1}\napplications: []\n")
    with with_port(config, "8777") as changed:
        content = yaml.safe_load(Path(changed).read_text())
    assert content == {"http_options": {"host": "127.0.0.1", "port": 8777}, "applications": []}
    assert not Path(changed).exists()
    for wrong in ("", "0", "http", "70000"):
        with pytest.raises(SystemExit, match="not a port"), with_port(config, wrong):
            pass


@pytest.mark.parametrize("row", rows_of("route"))
def test_routes(row: Row, client: TestClient) -> None:
    method, path = row.names[0].split()
    assert client.request(method, path).status_code not in (404, 405)


@pytest.mark.parametrize("row", rows_of("socket"))
def test_sockets(row: Row, client: TestClient) -> None:
    with client.websocket_connect(row.names[0]) as socket:
        socket.send_text("END")
        assert socket.receive_json()["error"] == "No audio data received by server."


@pytest.mark.parametrize("row", rows_of("field"))
def test_fields(row: Row, client: TestClient) -> None:
    (form,) = (
        schema
        for name, schema in client.get("/openapi.json").json()["components"]["schemas"].items()
        if name.startswith("Body_transcribe")
    )
    assert row.names[0] in form["properties"]


@pytest.mark.parametrize("row", rows_of("answer"))
def test_answers(row: Row, client: TestClient) -> None:
    asked = re.findall(r"`(\w+)`", row.kind)
    body = post(client, **({"response_format": asked[0]} if asked else {})).json()
    for name in row.names:
        found: list[Any] = [body]
        for part in name.split("."):
            found = [value[part.removesuffix("[]")] for value in found]
            found = [item for value in found for item in value] if part.endswith("[]") else found
        assert found
        assert None not in found


@pytest.mark.parametrize("row", rows_of("error"))
def test_errors(row: Row) -> None:
    status, code = re.match(r"(\d+) `(\w+)`", row.here).groups()  # type: ignore[union-attr]
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SpeechError)]
    kinds = {(kind.status, kind.code) for kind in classes}
    assert (int(status), code) in kinds | {(400, "missing_required_parameter")}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BATCH_SIZE", "many"),
        ("TRANSCRIBE_OVERLAP", "five"),
        ("CHUNK_MINITE", "-1"),
        ("IDLE_TIMEOUT_MINUTES", "inf"),
        ("ENABLE_LAZY_LOAD", "perhaps"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_invalid_values_are_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="(?i)" + name):
        Settings()
