"""OpenAI's own client against simulated diarizers: its types, a diarizer that dies, one that is missing."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any

import numpy as np
import openai
import psutil
import pytest
from openai.types.audio import TranscriptionDiarized, TranscriptionTextDoneEvent, TranscriptionTextSegmentEvent

from testing import media
from testing.server import START_S, Server
from testing.voices import conversation, data_url
from tests.server.faults.conftest import wait_until

pytestmark = [pytest.mark.serve, pytest.mark.slow]

TURNS = [(n % 3, 5.0 + n % 4) for n in range(14)]
TALK = ("talk.wav", media.wav((conversation(TURNS) / 32768).astype(np.float32)))
"""126 s."""

CHUNKS = 26
"""Steps of the diarizer for it."""

SPEAKERS = ["Ann" if voice == 1 else "AB"[voice // 2] for voice, _ in TURNS]
KNOWN: Any = {"known_speaker_names": ["Ann"], "known_speaker_references": [data_url(1)]}


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def transcribe(client: openai.OpenAI, **fields: Any) -> Any:
    return client.audio.transcriptions.create(
        file=TALK, model="gpt-4o-transcribe-diarize", response_format="diarized_json", chunking_strategy="auto", **fields
    )


def names(segments: Any) -> list[str]:
    return [name for name, _ in groupby(segment.speaker for segment in segments)]


def diarizer(server: Server, name: str) -> dict[str, Any]:
    """What /ready tells of one."""
    found: list[dict[str, Any]] = server.client.get("/ready").json()["diarizers"]
    return next(each for each in found if each["id"] == name)


def wait_for_steps(server: Server, steps: int, answer: "Future[Any]") -> None:
    until = time.monotonic() + START_S
    while diarizer(server, "speakers")["steps"] < steps:
        assert not answer.done(), "the recording was done before"
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> TranscriptionDiarized:
    """What the first request gets, which loads the diarizer."""
    assert diarizer(server, "speakers")["state"] == "unloaded"
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        found = transcribe(client, **KNOWN)
    assert diarizer(server, "speakers")["state"] == "ready"
    assert isinstance(found, TranscriptionDiarized)
    return found


def test_every_turn_has_its_speaker(undisturbed: TranscriptionDiarized) -> None:
    assert names(undisturbed.segments) == SPEAKERS
    assert undisturbed.text == " ".join(segment.text for segment in undisturbed.segments)


def test_streamed(client: openai.OpenAI, undisturbed: TranscriptionDiarized) -> None:
    *events, done = transcribe(client, stream=True, **KNOWN)
    segments = [event for event in events if isinstance(event, TranscriptionTextSegmentEvent)]
    assert [segment.to_dict() for segment in segments] == [segment.to_dict() for segment in undisturbed.segments]
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert done.text == undisturbed.text


def test_one_that_dies_in_mid_file_changes_no_speaker(
    server: Server, client: openai.OpenAI, undisturbed: TranscriptionDiarized
) -> None:
    with ThreadPoolExecutor(1) as thread:
        # /ready is behind: it has to have all steps of the requests before this one.
        wait_until(lambda: diarizer(server, "speakers")["steps"] % CHUNKS == 0)
        began = diarizer(server, "speakers")["steps"]
        answer = thread.submit(transcribe, client, **KNOWN)
        wait_for_steps(server, began + 4, answer)
        (process,) = server.processes("diarizer speakers")
        process.kill()
        psutil.wait_procs([process])
        found = answer.result()
    assert found == undisturbed
    assert "was lost with its replica" in server.log


def test_one_that_is_missing_is_503_with_the_reason(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        transcribe(client, extra_body={"diarizer": "missing"})
    assert caught.value.status_code == 503
    assert "The diarizer `missing` is unavailable" in caught.value.message
    state = diarizer(server, "missing")
    assert state["state"] == "failed"
    assert "missing.nemo" in state["detail"]
    assert server.client.get("/ready").status_code == 200


def test_or_a_warning_where_it_is_optional(server: Server, client: openai.OpenAI) -> None:
    found = transcribe(client, extra_body={"diarizer": "missing", "diarize": "optional"})
    assert names(found.segments) == ["unknown"]
    (warning,) = found.warnings
    assert warning.startswith("The speakers are unknown: The diarizer `missing` is unavailable")
