"""The routes of jobs, on the real store, worker, pipeline and decoder, with a simulated engine."""

import asyncio
import errno
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from serve_app.api import create_api
from serve_app.api.job_events import Position
from serve_app.api.job_schemas import JobBody, JobList
from serve_app.jobs import worker as worker_module
from serve_app.jobs.service import JobService
from serve_app.jobs.stores import DATABASE_NAME
from serve_app.jobs.worker import MIN_RUNNING
from serve_app.settings import AuthSettings, JobSettings, LimitSettings
from serve_app.window import Lane
from testing import media
from testing.fake_service import NOISE, FakeService, assert_error
from testing.job_service import uploads_in, working
from testing.open_requests import OpenRequest, until

PATH = "/v1/jobs"
LONG = media.wav(np.random.default_rng(1).normal(0, 0.1, 8_000 * 126).astype(np.float32), 8_000)
"""126 s, five windows."""

ALICE, BOB = {"Authorization": "Bearer alice-secret"}, {"Authorization": "Bearer bob-secret"}


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


async def post(client: httpx2.AsyncClient, data: bytes = NOISE, *, wait: float = 0, headers: Any = None, **fields: Any) -> Any:
    return await client.post(
        PATH, params={"wait": wait}, files={"file": ("call.wav", data)}, data=fields, headers=headers, timeout=60
    )


async def completed(client: httpx2.AsyncClient, data: bytes = NOISE, **options: Any) -> dict[str, Any]:
    answer = await post(client, data, wait=30, **options)
    assert answer.json()["state"] == "completed", answer.text
    return dict(answer.json())


def sent_events(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, id and data of every event."""
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if "data: " in block]
    return [(block["event"], block["id"], json.loads(block["data"])) for block in blocks]


class TestOneJob:
    async def test_is_answered_at_once_and_completed_later(self, client: httpx2.AsyncClient, fake: FakeService) -> None:
        fake.hold.clear()
        answer = await post(client, metadata='{"call": 7}', priority="low", ttl_s="3600")
        assert answer.status_code == 202
        body = answer.json()
        JobBody.model_validate(body)
        assert (body["filename"], body["model"], body["priority"], body["metadata"]) == ("call.wav", "first", "low", {"call": 7})
        assert body["audio_s"] == pytest.approx(3.0)
        url = httpx2.URL("http://test/v1/jobs").join(answer.headers["location"]).path
        assert url == f"{PATH}/{body['id']}"
        await until(lambda: bool(fake.windows))
        running = (await client.get(url)).json()
        assert (running["state"], running["done_s"], running["ended_at"]) == ("running", 0, None)
        assert_error(await client.get(f"{url}/result"), 409, "job_state_conflict")
        fake.hold.set()
        ended = (await client.get(url, params={"wait": 30})).json()
        assert (ended["state"], ended["done_s"], ended["audio_s"]) == ("completed", 3.0, 3.0)
        assert ended["expires_at"] == pytest.approx(ended["ended_at"] + 3600)
        assert fake.lanes == [Lane.BULK]

    async def test_has_the_result_of_a_request_in_every_format(self, client: httpx2.AsyncClient) -> None:
        fields = {"include[]": "logprobs", "timestamp_granularities[]": "word", "max_line_chars": "12"}
        job = await completed(client, LONG, response_format="srt", **fields)
        for response_format in ("json", "text", "srt", "vtt", "verbose_json", "csv", "tsv"):
            wanted = {"response_format": response_format} | fields
            expected = await client.post("/v1/audio/transcriptions", files={"file": ("a.wav", LONG)}, data=wanted)
            got = await client.get(f"{PATH}/{job['id']}/result", params=wanted)
            assert (got.status_code, got.headers["content-type"]) == (200, expected.headers["content-type"])
            assert got.text == expected.text
        asked = await client.get(f"{PATH}/{job['id']}/result", params={"max_line_chars": 42})
        assert asked.text == (await client.get(f"{PATH}/{job['id']}/result", params={"response_format": "srt"})).text

    async def test_without_a_format_has_the_fields_that_other_clients_expect(self, client: httpx2.AsyncClient) -> None:
        job = await completed(client)
        body = (await client.get(f"{PATH}/{job['id']}/result")).json()
        assert {"text", "segments", "srt_content", "csv_content", "transcription_time"} <= set(body)
        assert 0 < body["transcription_time"] <= body["total_request_time_server"]

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"metadata": "[1]"}, "metadata"),
            ({"metadata": '{"a": NaN}'}, "metadata"),
            ({"metadata": '{"a": "' + 4096 * "b" + '"}'}, "metadata"),
            ({"priority": "high"}, "priority"),
            ({"ttl_s": "0"}, "ttl_s"),
            ({"ttl_s": "1e12"}, "ttl_s"),
            ({"ttl_s": "nan"}, "ttl_s"),
            ({"language": "xx"}, "language"),
            ({"webhook_url": "http://example.com"}, "webhook_url"),
        ],
    )
    async def test_wrong_fields(self, client: httpx2.AsyncClient, fields: dict[str, Any], param: str) -> None:
        answer = await post(client, **fields)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        assert (await client.get(PATH)).json()["data"] == []

    async def test_a_file_without_audio_is_refused_at_once(self, client: httpx2.AsyncClient, tmp_path: Path) -> None:
        assert_error(await post(client, b"no audio" * 1000), 400, "invalid_audio", "file")
        assert uploads_in(tmp_path / "jobs") == []

    async def test_an_unknown_model_is_refused_at_once(self, client: httpx2.AsyncClient) -> None:
        assert_error(await post(client, model="third"), 404, "model_not_found", "model")

    async def test_a_failure_is_the_error_of_the_job(self, client: httpx2.AsyncClient, fake: FakeService, tmp_path: Path) -> None:
        fake.failure = ValueError("internal")
        body = (await post(client, wait=30)).json()
        assert (body["state"], body["error"]["code"]) == ("failed", "engine_error")
        assert "internal" not in body["error"]["message"]
        await until(lambda: not uploads_in(tmp_path / "jobs"))

    @pytest.mark.parametrize("path", ["", "/result", "/events"])
    async def test_unknown(self, client: httpx2.AsyncClient, path: str) -> None:
        assert_error(await client.get(f"{PATH}/job_x{path}"), 404, "job_not_found")
        assert_error(await client.delete(f"{PATH}/job_x"), 404, "job_not_found")


class TestCancel:
    async def test_a_running_job_stops(self, client: httpx2.AsyncClient, fake: FakeService, tmp_path: Path) -> None:
        fake.hold.clear()
        job_id = (await post(client, LONG)).json()["id"]
        await until(lambda: len(fake.windows) >= 2)
        answer = await client.delete(f"{PATH}/{job_id}")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        fake.hold.set()
        await asyncio.sleep(0.1)
        begun = len(fake.windows)
        assert (await completed(client, NOISE))["state"] == "completed"
        assert len(fake.windows) == begun + 1
        assert uploads_in(tmp_path / "jobs") == []
        assert_error(await client.get(f"{PATH}/{job_id}/result"), 409, "job_state_conflict")

    async def test_an_ended_job_is_forgotten(self, client: httpx2.AsyncClient) -> None:
        job = await completed(client)
        assert (await client.delete(f"{PATH}/{job['id']}")).status_code == 204
        assert_error(await client.get(f"{PATH}/{job['id']}"), 404, "job_not_found")

    @pytest.mark.parametrize("settings", [{"jobs": {"max_running_audio_s": 1e-9}}])
    async def test_a_queued_job_leaves_the_queue(self, client: httpx2.AsyncClient, fake: FakeService) -> None:
        fake.hold.clear()
        ids = [(await post(client, LONG)).json()["id"] for _ in range(MIN_RUNNING + 2)]
        await until(lambda: len(fake.windows) >= MIN_RUNNING)
        positions = [(await client.get(f"{PATH}/{each}")).json()["queue_position"] for each in ids]
        assert positions == [*MIN_RUNNING * [None], 1, 2]
        await client.delete(f"{PATH}/{ids[-2]}")
        assert (await client.get(f"{PATH}/{ids[-1]}")).json()["queue_position"] == 1


class TestList:
    async def test_pages_newest_first(self, client: httpx2.AsyncClient) -> None:
        ids = [(await completed(client))["id"] for _ in range(3)]
        first = (await client.get(PATH, params={"limit": 2})).json()
        JobList.model_validate(first)
        assert ([job["id"] for job in first["data"]], first["has_more"]) == ([ids[2], ids[1]], True)
        second = (await client.get(PATH, params={"limit": 2, "before": first["next"]})).json()
        assert ([job["id"] for job in second["data"]], second["has_more"], second["next"]) == ([ids[0]], False, None)

    async def test_by_state(self, client: httpx2.AsyncClient) -> None:
        await completed(client)
        assert len((await client.get(PATH, params={"state": "completed"})).json()["data"]) == 1
        assert (await client.get(PATH, params={"state": "running"})).json()["data"] == []
        assert (await client.get(PATH, params={"state": "gone"})).status_code == 400


class TestKeys:
    @pytest.fixture
    def settings(self) -> dict[str, Any]:
        auth = AuthSettings.model_validate({"keys": ["alice: alice-secret", "bob: bob-secret"]})
        return {"auth": auth, "jobs": {"max_jobs_per_key": 2}}

    async def test_a_job_belongs_to_the_name_of_its_key(self, client: httpx2.AsyncClient) -> None:
        job = await completed(client, headers=ALICE)
        for path in ("", "/result", "/events"):
            assert_error(await client.get(f"{PATH}/{job['id']}{path}", headers=BOB), 404, "job_not_found")
        assert_error(await client.delete(f"{PATH}/{job['id']}", headers=BOB), 404, "job_not_found")
        assert (await client.get(PATH, headers=BOB)).json()["data"] == []
        assert (await client.get(PATH)).status_code == 401
        assert (await client.get(f"{PATH}/{job['id']}/result", headers=ALICE)).status_code == 200

    async def test_limits_are_by_key(self, client: httpx2.AsyncClient, fake: FakeService) -> None:
        fake.hold.clear()
        answers = [await post(client, headers=ALICE) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        assert_error(answers[2], 429, "rate_limit_exceeded")
        assert int(answers[2].headers["retry-after"]) > 0
        assert (await post(client, headers=BOB)).status_code == 202


class TestIdempotency:
    async def test_the_same_request_is_the_same_job(self, client: httpx2.AsyncClient, tmp_path: Path) -> None:
        key = {"Idempotency-Key": "k1"}
        first = await post(client, headers=key, wait=30)
        again = await post(client, headers=key)
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        assert len((await client.get(PATH)).json()["data"]) == 1
        assert uploads_in(tmp_path / "jobs") == []

    @pytest.mark.parametrize("change", [{"data": LONG}, {"response_format": "srt"}, {"metadata": "{}"}])
    async def test_another_request_is_a_conflict(self, client: httpx2.AsyncClient, change: dict[str, Any]) -> None:
        key = {"Idempotency-Key": "k1"}
        await post(client, headers=key)
        assert_error(await post(client, headers=key, **change), 409, "idempotency_conflict")


class TestEvents:
    async def test_the_whole_way(self, client: httpx2.AsyncClient, fake: FakeService) -> None:
        job_id = (await post(client, LONG)).json()["id"]
        events = sent_events((await client.get(f"{PATH}/{job_id}/events", timeout=60)).text)
        segments = [data for name, _, data in events if name == "segment"]
        result = (await client.get(f"{PATH}/{job_id}/result", params={"response_format": "verbose_json"})).json()
        assert [(each["id"], each["text"]) for each in segments] == [(each["id"], each["text"]) for each in result["segments"]]
        assert events[-1][0] == "state"
        assert events[-1][2]["state"] == "completed"
        assert events[-1][1].endswith(".end")

    async def test_goes_on_after_the_last_event_id(self, client: httpx2.AsyncClient) -> None:
        job = await completed(client, LONG)
        url = f"{PATH}/{job['id']}/events"
        events = sent_events((await client.get(url)).text)
        segments = [event for event in events if event[0] == "segment"]
        assert len(segments) >= 3
        rest = sent_events((await client.get(url, headers={"Last-Event-ID": segments[1][1]})).text)
        assert rest == events[events.index(segments[2]) :]
        assert (await client.get(url, headers={"Last-Event-ID": events[-1][1]})).status_code == 204
        again = sent_events((await client.get(url, headers={"Last-Event-ID": "7.2"})).text)
        assert again[0][0] == "restart"
        assert [event[2] for event in again if event[0] == "segment"] == [event[2] for event in segments]

    @pytest.mark.parametrize("text", ["", "x", "1", "1.", ".1", "1.x", "99999999999.1", "1.end.2"])
    def test_an_id_of_others_is_the_start(self, text: str) -> None:
        assert Position.of(text) == Position()
        assert Position.of("2.end") == Position(2, 0, is_ended=True)
        assert Position.of("2.13") == Position(2, 13)

    async def test_a_job_that_is_cancelled_ends_its_events(self, client: httpx2.AsyncClient, fake: FakeService) -> None:
        fake.hold.clear()
        job_id = (await post(client, LONG)).json()["id"]
        reading = asyncio.ensure_future(client.get(f"{PATH}/{job_id}/events", timeout=60))
        await until(lambda: bool(fake.windows))
        await client.delete(f"{PATH}/{job_id}")
        assert sent_events((await reading).text)[-1][2]["state"] == "cancelled"


async def test_a_full_disk_leaves_nothing(client: httpx2.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    answer = await post(client)
    assert_error(answer, 503, "storage_full")
    assert int(answer.headers["retry-after"]) > 0
    assert uploads_in(tmp_path / "jobs") == []
    assert (await client.get(PATH)).json()["data"] == []


async def test_a_store_that_is_locked_is_503_until_it_is_free(
    client: httpx2.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "POLL_S", 60.0)
    with sqlite3.connect(tmp_path / "jobs" / DATABASE_NAME, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = await post(client)
        assert_error(answer, 503, "store_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        other.execute("ROLLBACK")
    assert (await completed(client))["state"] == "completed"


@pytest.mark.parametrize(("path", "query"), [("/events", ""), ("", "wait=60")])
async def test_a_client_that_leaves_waits_no_more(fake: FakeService, jobs: JobService, path: str, query: str) -> None:
    app = create_api(fake.service, job_service=jobs)
    fake.hold.clear()
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
        job_id = (await post(client)).json()["id"]
    request = OpenRequest(app, f"{PATH}/{job_id}{path}", {}, method="GET", query=query)
    request.send(b"", more_body=False)
    await until(lambda: bool(jobs.watcher._waiting))
    request.disconnect()
    await asyncio.wait([request.task], timeout=10)
    assert not jobs.watcher._waiting


async def test_without_a_folder_there_are_no_jobs(fake: FakeService) -> None:
    app = create_api(fake.service)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get(PATH)).status_code == 404
