"""What is found out at the start of a server."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from serve_app.jobs import stores
from serve_app.settings import JobSettings


def test_a_folder_serves_one_node(tmp_path: Path) -> None:
    settings = JobSettings(directory=tmp_path / "new" / "jobs")
    stores.check(settings, 1)
    assert (tmp_path / "new" / "jobs" / "uploads").stat().st_mode & 0o077 == 0
    with pytest.raises(ValueError, match="the cluster has 2 nodes"):
        stores.check(settings, 2)


def test_without_a_folder_there_is_nothing_to_check() -> None:
    stores.check(JobSettings(), 5)
    with pytest.raises(ValueError, match=r"needs jobs\.directory"):
        stores.check(JobSettings(database_url=SecretStr("postgresql://x")), 1)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be stored"):
        stores.check(JobSettings(directory=tmp_path / "file" / "jobs"), 1)


def test_a_database_of_a_newer_version(tmp_path: Path) -> None:
    settings = JobSettings(directory=tmp_path)
    stores.check(settings, 1)
    with closing(sqlite3.connect(tmp_path / stores.DATABASE_NAME)) as connection, connection:
        connection.execute("INSERT INTO schema_version VALUES (99)")
    with pytest.raises(ValueError, match="has version 99"):
        stores.check(settings, 1)


def test_a_cluster_has_a_database(tmp_path: Path, postgres_url: str) -> None:
    stores.check(JobSettings(directory=tmp_path, database_url=SecretStr(postgres_url)), 3)
    with pytest.raises(ValueError, match="cannot be stored"):
        stores.check(JobSettings(directory=tmp_path, database_url=SecretStr("postgresql://127.0.0.1:1/none")), 3)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("directory", "jobs"), ("webhook_secrets", ["secret"]), ("webhook_hosts", ["no host"]), ("max_running_audio_s", 0)],
)
def test_settings_that_cannot_be(setting: str, value: object) -> None:
    with pytest.raises(ValidationError):
        JobSettings.model_validate({setting: value})


def test_a_folder_may_be_in_the_home_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert JobSettings(directory=Path("~/jobs")).directory == tmp_path / "jobs"
