"""A server with jobs for the tests of the command line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.command_line import client, job_client
from testing.job_service import JobServer, fake_with_jobs, serving


@pytest.fixture
def settings() -> dict[str, Any]:
    """Settings of the server under test, and `around`."""
    return {}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> Iterator[JobServer]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(client, "LOST_WAIT_S", 0)
    monkeypatch.setattr(job_client, "LOST_WAIT_S", 0)
    around = {"around": settings.pop("around")} if "around" in settings else {}
    with serving(fake_with_jobs(tmp_path / "jobs", **settings), **around) as server:
        yield server
        server.resume()
