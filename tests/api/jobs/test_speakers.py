"""Jobs with speakers: as requests have them, wherever their text is shown."""

import json
from typing import Any

import httpx2
import pytest

from serve_app.jobs.request import JobRequest
from serve_app.settings import DiarizerSettings
from testing import media
from testing.fake_service import assert_error
from testing.voices import conversation, data_url
from tests.api.jobs.requests import PATH, completed, post

TURNS = [(2, 6.0), (0, 5.0), (2, 4.0), (1, 6.0), (0, 9.0), (2, 7.0)]
TALK = media.wav(conversation(TURNS).astype("float32") / 32768)
KNOWN: Any = {"known_speaker_names[]": ["Ann"], "known_speaker_references[]": [data_url(0)]}


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"diarizers": (DiarizerSettings(name="speakers", source="simulated"),)}


@pytest.mark.parametrize("response_format", ["diarized_json", "verbose_json", "srt", "csv"])
async def test_a_result_is_that_of_a_request(client: httpx2.AsyncClient, response_format: str) -> None:
    fields = {"response_format": response_format, "diarize": "true", **KNOWN}
    job = await completed(client, TALK, **fields)
    expected = await client.post("/v1/audio/transcriptions", files={"file": ("a.wav", TALK)}, data=fields)
    assert "Ann" in expected.text
    assert (await client.get(f"{PATH}/{job['id']}/result")).text == expected.text


async def test_the_events_have_the_speakers(client: httpx2.AsyncClient) -> None:
    job = await completed(client, TALK, response_format="diarized_json")
    events = (await client.get(f"{PATH}/{job['id']}/events")).text
    sent = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line.startswith("data: ")]
    expected = (await client.get(f"{PATH}/{job['id']}/result")).json()["segments"]
    assert [event["speaker"] for event in sent if "text" in event] == [segment["speaker"] for segment in expected]


async def test_a_job_without_speakers_has_no_diarized_json(client: httpx2.AsyncClient) -> None:
    job = await completed(client, TALK)
    answer = await client.get(f"{PATH}/{job['id']}/result", params={"response_format": "diarized_json"})
    assert "without `diarize`" in assert_error(answer, 400, "invalid_request", "response_format")


async def test_the_same_key_with_another_reference_is_refused(client: httpx2.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k"}
    fields = {"response_format": "diarized_json", **KNOWN}
    first = await post(client, TALK, headers=headers, **fields)
    assert (await post(client, TALK, headers=headers, **fields)).json()["id"] == first.json()["id"]
    again = await post(client, TALK, headers=headers, **fields | {"known_speaker_references[]": [data_url(1)]})
    assert_error(again, 409, "idempotency_conflict")


def test_requests_of_earlier_versions_ask_for_no_speakers() -> None:
    request = JobRequest(model="m", rendering={})
    known = {name: value for name, value in request.to_json().items() if "speaker" not in name and "diarizer" not in name}
    assert JobRequest.from_json(known) == request
