"""The keys file: read again when it changes, and never half."""

import logging
import os
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from serve_app.api import create_api
from serve_app.api.auth import Keys
from serve_app.errors import InvalidKey
from serve_app.settings import AuthSettings
from testing.fake_service import FakeService, assert_error, post


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# of the team\n\nalice: first\n  bob: second\n")
    return path


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def keys(path: Path, now: list[float]) -> Keys:
    return Keys(AuthSettings(keys=(SecretStr("fixed: of-the-settings"),), keys_file=path), lambda: now[0])


def test_it_adds_to_the_keys_of_the_settings(keys: Keys) -> None:
    assert [keys.find(f"Bearer {secret}") for secret in ("first", "second", "of-the-settings")] == ["alice", "bob", "fixed"]
    with pytest.raises(InvalidKey):
        keys.find("Bearer # of the team")


def test_a_change_counts_within_a_second(keys: Keys, path: Path, now: list[float]) -> None:
    path.write_text("alice: new\nalice: first\n")
    now[0] = 0.9
    assert keys.find("Bearer second") == "bob"
    now[0] = 1.0
    assert keys.find("Bearer new") == keys.find("Bearer first") == "alice"
    with pytest.raises(InvalidKey):
        keys.find("Bearer second")


@pytest.mark.parametrize("content", [b"alice: sha256:5ec2e7\n", b"alice: \xff\n", None], ids=["no hash", "no text", "no file"])
def test_a_broken_file_keeps_the_last_good_keys(
    keys: Keys, path: Path, now: list[float], content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    for now[0] in (1.0, 2.0, 3.0):
        assert keys.find("Bearer first") == "alice"
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "5ec2e7" not in caplog.text
    path.write_text("carol: third\n")
    os.utime(path, (4, 4))
    now[0] = 4.0
    assert keys.find("Bearer third") == "carol"


def test_an_empty_file_locks_everybody_out(path: Path) -> None:
    path.write_text("# nobody\n")
    with TestClient(create_api(FakeService(auth=AuthSettings(keys_file=path)).service)) as client:
        assert_error(post(client), 401, "invalid_api_key")


def test_a_server_does_not_start_without_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Keys(AuthSettings(keys_file=tmp_path / "none"))
