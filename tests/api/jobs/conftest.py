"""A server with jobs, whose worker runs, and a client."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serve_app.api import create_api
from serve_app.jobs.service import JobService
from serve_app.settings import JobSettings, LimitSettings
from testing.fake_service import FakeService
from testing.job_service import working


@pytest.fixture
def settings() -> dict[str, Any]:
    """Settings of the server under test."""
    return {}


@pytest.fixture
def fake(tmp_path: Path, settings: dict[str, Any]) -> FakeService:
    jobs = {"directory": tmp_path / "jobs"} | settings.pop("jobs", {})
    return FakeService(jobs=JobSettings(**jobs), **{"limits": LimitSettings()} | settings)


@pytest.fixture
async def jobs(fake: FakeService) -> AsyncIterator[JobService]:
    async with working(fake) as jobs:
        yield jobs


@pytest.fixture
async def client(fake: FakeService, jobs: JobService) -> AsyncIterator[httpx2.AsyncClient]:
    app = create_api(fake.service, job_service=jobs)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
        yield client
