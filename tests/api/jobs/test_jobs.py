"""The routes of jobs, on the real store, worker, pipeline and decoder, with a simulated engine."""

import asyncio
import errno
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serve_app.api import create_api
from serve_app.api import jobs as jobs_module
from serve_app.api.job_schemas import JobBody, JobList
from serve_app.jobs import worker as worker_module
from serve_app.jobs.service import JobService
from serve_app.jobs.stores import DATABASE_NAME
from serve_app.jobs.worker import MIN_RUNNING
from serve_app.settings import AuthSettings
from serve_app.window import Lane
from testing.fake_service import LONG, NOISE, FakeService, assert_error
from testing.job_service import uploads_in
from testing.open_requests import until
from tests.api.jobs.requests import ALICE, BOB, PATH, completed, post


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
            ({"metadata": '{"a": 1e999}'}, "metadata"),
            ({"metadata": '{"a": "\\ud800"}'}, "metadata"),
            ({"metadata": '{"a":' + 40 * "[" + 40 * "]" + "}"}, "metadata"),
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

    @pytest.mark.usefixtures("soon")
    async def test_a_failure_is_the_error_of_the_job(self, client: httpx2.AsyncClient, fake: FakeService, tmp_path: Path) -> None:
        fake.failure = ValueError("internal")
        body = (await post(client, wait=30)).json()
        assert (body["state"], body["error"]["code"]) == ("failed", "engine_error")
        assert "internal" not in body["error"]["message"]
        await until(lambda: not uploads_in(tmp_path / "jobs"))

    @pytest.mark.parametrize("path", ["", "/result", "/events"])
    async def test_unknown(self, client: httpx2.AsyncClient, path: str) -> None:
        assert_error(await client.get(f"{PATH}/%00{path}"), 404, "job_not_found")
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

    async def test_more_files_than_one_are_refused(self, client: httpx2.AsyncClient) -> None:
        files = [("file", ("a.wav", NOISE)), ("other", ("b.wav", NOISE))]
        assert (await client.post(PATH, files=files)).status_code == 400

    async def test_waiting_takes_no_place_from_requests(self, client: httpx2.AsyncClient, fake: FakeService) -> None:
        fake.hold.clear()
        admission = fake.service.admission
        waiting = asyncio.ensure_future(post(client, wait=60))
        await until(lambda: bool(fake.windows))
        free = admission._requests_at_work._value
        fake.hold.set()
        assert (await waiting).json()["state"] == "completed"
        assert admission._requests_at_work._value == free == fake.service.settings.limits.max_requests

    async def test_a_request_that_may_not_wait_makes_no_job(
        self, client: httpx2.AsyncClient, fake: FakeService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jobs_module, "MAX_WATCHING_PER_ADDRESS", 0)
        refusing = JobService.of(fake.service)
        app = create_api(fake.service, job_service=refusing)
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as other:
            assert_error(await post(other, wait=5), 429, "overloaded")
        await refusing.store.close()
        assert (await client.get(PATH)).json()["data"] == []


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
        assert (await client.get(PATH, params={"before": 10**30})).status_code == 400


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
    with closing(sqlite3.connect(tmp_path / "jobs" / DATABASE_NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = await post(client)
        assert_error(answer, 503, "store_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        other.execute("ROLLBACK")
    assert (await completed(client))["state"] == "completed"


async def test_without_a_folder_there_are_no_jobs(fake: FakeService) -> None:
    app = create_api(fake.service)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get(PATH)).status_code == 404
