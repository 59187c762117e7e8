"""The server as its users have it: `serve run`, HTTP, real speech."""

import concurrent.futures
import itertools
import time

import numpy as np
import pytest
import srt
import webvtt

from testing import media
from testing.digit_strings import SAMPLE_RATE, DigitString, with_pauses
from testing.media import as_wav
from testing.server import Server, has_windows

pytestmark = [pytest.mark.serve]

MAX_ROUNDS = 5


def test_words_with_times_and_confidences(server: Server, strings: list[DigitString]) -> None:
    string = strings[6]
    body = server.transcribe(as_wav(string), response_format="verbose_json", **{"timestamp_granularities[]": "word"}).json()
    assert body["text"] == string.text
    assert [w["word"] for w in body["words"]] == [w.text for w in string.words]
    for word, spoken in zip(body["words"], string.words, strict=True):
        assert word["start"] == pytest.approx(spoken.start_sample / SAMPLE_RATE, abs=0.25)
        assert word["end"] == pytest.approx(spoken.end_sample / SAMPLE_RATE, abs=0.25)
        assert 0 < word["confidence"] <= 1


def test_eight_clients_at_once_get_right_answers_from_shared_batches(server: Server, strings: list[DigitString]) -> None:
    """Beside a recording that keeps the engine busy, two windows at a time: alone, it is faster than the uploads."""
    jobs = [strings[n % 6 + 2] for n in range(32)]
    long = media.wav(np.random.default_rng(0).normal(0, 0.1, 1200 * SAMPLE_RATE))
    # A machine with other work may send no three of them at a time.
    for _ in range(MAX_ROUNDS):
        with concurrent.futures.ThreadPoolExecutor(9) as clients:
            recording = clients.submit(server.transcribe, long)
            texts = list(clients.map(lambda string: server.transcribe(as_wav(string)).json()["text"], jobs))
        assert recording.result().status_code == 200
        assert texts == [string.text for string in jobs]
        (replica,) = server.wait_for_state("digits", "ready")["replicas"]
        if replica["largest_batch"] > 2:
            break
    assert replica["largest_batch"] > 2
    assert replica["batches"] < replica["windows"]


def test_windows_go_to_the_replica_in_shared_memory(server: Server, strings: list[DigitString]) -> None:
    assert server.transcribe(as_wav(strings[6])).json()["text"] == strings[6].text
    (replica,) = server.processes("model digits")
    assert has_windows(replica)
    assert "are sent with their audio" not in server.log


def test_a_request_id_comes_back_and_is_in_the_log(server: Server) -> None:
    answer = server.client.get("/v1/models", headers={"x-request-id": "the-id-of-this-request"})
    assert answer.headers["x-request-id"] == "the-id-of-this-request"
    until = time.monotonic() + 30
    while "the-id-of-this-request" not in server.log:
        assert time.monotonic() < until, "Ray passes log lines on with a delay, but not with this one"
        time.sleep(0.1)
    assert server.client.get("/v1/models").headers["x-request-id"]


def test_bad_input_is_refused_and_the_next_request_served(server: Server, strings: list[DigitString]) -> None:
    for data in (b"", b"no media", media.silent_video()):
        response = server.transcribe(data)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "invalid_audio"
    odd = (
        media.wav(np.array([0.1])),
        media.wav(np.full(16_000, np.nan, np.float32), subtype="FLOAT"),
        media.wav(np.zeros((192_000, 8)), 192_000),
        media.wav(np.zeros(5 * SAMPLE_RATE)),
    )
    for data in odd:
        response = server.transcribe(data)
        assert (response.status_code, response.json()["text"]) == (200, "")
    assert server.transcribe(as_wav(strings[3])).json()["text"] == strings[3].text


def test_a_recording_of_several_windows(server: Server, strings: list[DigitString]) -> None:
    """Two minutes: cut, fanned out, merged."""
    body = server.transcribe(media.wav(with_pauses(strings * 2))).json()
    assert body["text"] == " ".join(string.text for _ in range(2) for string in strings)


def test_ten_minutes_as_subtitles(server: Server, strings: list[DigitString]) -> None:
    """Read by other libraries than the writer: every word is there, in cues that can be read."""
    samples = with_pauses(strings * 8)
    assert len(samples) >= 600 * SAMPLE_RATE
    spoken = [string.text for _ in range(8) for string in strings]
    audio = media.wav(samples)
    srt_cues = [
        (cue.start.total_seconds(), cue.end.total_seconds(), cue.content)
        for cue in srt.parse(server.transcribe(audio, response_format="srt").text)
    ]
    captions = webvtt.from_string(server.transcribe(audio, response_format="vtt").text).captions
    vtt_cues = [(caption.start_in_seconds, caption.end_in_seconds, caption.text) for caption in captions]
    for cues in (srt_cues, vtt_cues):
        assert " ".join(" ".join(text.split()) for _, _, text in cues) == " ".join(spoken)
        assert all(len(text.split("\n")) <= 2 for _, _, text in cues)
        assert all(len(line) <= 42 for _, _, text in cues for line in text.split("\n"))
        assert all(0 < end_s - start_s <= 6.001 for start_s, end_s, _ in cues)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(cues))
        assert all(len(text) / (end_s - start_s) <= 20.5 for start_s, end_s, text in cues)
    assert [text for _, _, text in srt_cues] == [text for _, _, text in vtt_cues]


def test_nemo_is_quiet_in_the_log(server: Server) -> None:
    assert "loaded digits.nemo" in server.log
    assert "[NeMo" not in server.log
    assert "OneLogger" not in server.log
