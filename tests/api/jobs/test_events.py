"""Following a job: server-sent events, and clients that leave."""

import asyncio

import httpx2
import pytest

from serve_app.api import create_api
from serve_app.api.job_events import Position
from serve_app.jobs.service import JobService
from testing.fake_service import LONG, FakeService
from testing.open_requests import OpenRequest, until
from tests.api.jobs.requests import PATH, completed, post, sent_events


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
