"""The server as its users have it: `serve run`, HTTP, real speech."""

import concurrent.futures
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import srt
import webvtt

from serve_app.deployments import LOAD_RETRY_S
from serve_app.settings import bundled_model_path
from testing import media
from testing.accuracy import to_int16
from testing.digit_strings import SAMPLE_RATE, DigitString
from testing.fake_hub import FakeHub
from testing.paths import ROOT
from testing.server import Server, serve_run

pytestmark = [pytest.mark.serve]


def as_wav(string: DigitString) -> bytes:
    return media.wav(to_int16(string.samples))


class TestDemo:
    """configs/demo.yaml: the bundled model, loaded at the start."""

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
        with serve_run(ROOT / "configs" / "demo.yaml", tmp_path_factory.mktemp("demo")) as server:
            server.wait_for_state("digits", "ready")
            yield server

    def test_words_with_times_and_confidences(self, server: Server, strings: list[DigitString]) -> None:
        string = strings[6]
        body = server.transcribe(as_wav(string), response_format="verbose_json", **{"timestamp_granularities[]": "word"}).json()
        assert body["text"] == string.text
        assert [w["word"] for w in body["words"]] == [w.text for w in string.words]
        for heard, spoken in zip(body["words"], string.words, strict=True):
            assert heard["start"] == pytest.approx(spoken.start_sample / SAMPLE_RATE, abs=0.25)
            assert heard["end"] == pytest.approx(spoken.end_sample / SAMPLE_RATE, abs=0.25)
            assert 0 < heard["confidence"] <= 1

    def test_eight_clients_at_once_get_right_answers_from_shared_batches(
        self, server: Server, strings: list[DigitString]
    ) -> None:
        jobs = [strings[n % 6 + 2] for n in range(32)]
        with concurrent.futures.ThreadPoolExecutor(8) as clients:
            texts = list(clients.map(lambda string: server.transcribe(as_wav(string)).json()["text"], jobs))
        assert texts == [string.text for string in jobs]
        (replica,) = server.wait_for_state("digits", "ready")["replicas"]
        assert replica["largest_batch"] > 1
        assert replica["batches"] < replica["windows"]

    def test_a_request_id_comes_back_and_is_in_the_log(self, server: Server) -> None:
        answer = server.client.get("/v1/models", headers={"x-request-id": "the-id-of-this-request"})
        assert answer.headers["x-request-id"] == "the-id-of-this-request"
        until = time.monotonic() + 30
        while "the-id-of-this-request" not in server.log:
            assert time.monotonic() < until, "Ray passes log lines on with a delay, but not with this one"
            time.sleep(0.1)
        assert server.client.get("/v1/models").headers["x-request-id"]

    def test_bad_input_is_refused_and_the_next_request_served(self, server: Server, strings: list[DigitString]) -> None:
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

    def test_a_recording_of_several_windows(self, server: Server, strings: list[DigitString]) -> None:
        """Two minutes: cut, fanned out, merged."""
        pause = np.zeros(SAMPLE_RATE, np.float32)
        parts = [part for _ in range(2) for string in strings for part in (string.samples, pause)]
        body = server.transcribe(media.wav(to_int16(np.concatenate(parts)))).json()
        assert body["text"] == " ".join(string.text for _ in range(2) for string in strings)

    def test_ten_minutes_as_subtitles(self, server: Server, strings: list[DigitString]) -> None:
        """Read by other libraries than the writer: every word is there, in cues that can be read."""
        pause = np.zeros(SAMPLE_RATE, np.float32)
        parts = [part for _ in range(8) for string in strings for part in (string.samples, pause)]
        samples = to_int16(np.concatenate(parts))
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

    def test_nemo_is_quiet_in_the_log(self, server: Server) -> None:
        assert "loaded digits.nemo" in server.log
        assert "[NeMo" not in server.log
        assert "OneLogger" not in server.log


class TestDefaultConfig:
    """configs/serve_config.yaml: hub models that cannot be had must not hurt the others."""

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
        folder = tmp_path_factory.mktemp("default")
        # A port where nothing listens: the hub is out of reach, as on a machine without a network.
        env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder / "hub")}
        with serve_run(ROOT / "configs" / "serve_config.yaml", folder, env=env) as server:
            yield server

    def test_it_is_ready_with_nothing_loaded(self, server: Server) -> None:
        body = server.client.get("/ready").json()
        assert body["ready"] is True
        assert {m["id"]: m["state"] for m in body["models"]} == {
            "parakeet-tdt-0.6b-v2": "unloaded",
            "parakeet-tdt-0.6b-v3": "unloaded",
            "digits": "unloaded",
        }

    def test_a_model_that_cannot_be_had_is_503_with_the_reason(self, server: Server, strings: list[DigitString]) -> None:
        for _ in range(2):
            response = server.transcribe(as_wav(strings[0]))
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0
            error = response.json()["error"]
            assert error["code"] == "model_unavailable"
            assert "parakeet-tdt-0.6b-v2" in error["message"]
            assert "127.0.0.1:9" in error["message"]
        assert "127.0.0.1:9" in server.wait_for_state("parakeet-tdt-0.6b-v2", "failed")["detail"]

    def test_the_rest_of_the_server_goes_on(self, server: Server, strings: list[DigitString]) -> None:
        assert server.transcribe(as_wav(strings[3]), model="digits").json()["text"] == strings[3].text


def test_an_idle_model_is_unloaded_and_loads_again(tmp_path: Path, strings: list[DigitString]) -> None:
    """Asking /ready all the while must not keep it."""
    args = {"models": [{"name": "digits", "source": "bundled", "idle_unload_s": 2}]}
    with serve_run(ROOT / "configs" / "demo.yaml", tmp_path, args=args) as server:
        assert server.model("digits")["state"] == "unloaded"
        assert server.transcribe(as_wav(strings[3])).json()["text"] == strings[3].text
        server.wait_for_state("digits", "ready")
        server.wait_for_state("digits", "unloaded")
        assert server.transcribe(as_wav(strings[4])).json()["text"] == strings[4].text


class TestHub:
    """The hub path in full, against a stand-in that serves the bundled model under a Parakeet's name."""

    def test_absent_then_broken_off_then_slow(self, tmp_path: Path, strings: list[DigitString]) -> None:
        name, audio = "parakeet-tdt-0.6b-v2", as_wav(strings[3])
        with FakeHub(bundled_model_path(), "no repository") as hub:
            env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hub")}
            # No answer may take longer than this for want of a model.
            args = {"limits": {"model_wait_s": 4}}
            with serve_run(ROOT / "configs" / "serve_config.yaml", tmp_path, env=env, args=args) as server:
                assert server.transcribe(audio).status_code == 503
                assert "has no model" in server.wait_for_state(name, "failed")["detail"]

                # Breaks that let something through are mended by going on where it stopped (tests/test_model_files.py).
                hub.mode, hub.limit_bytes = "breaking", 0
                time.sleep(LOAD_RETRY_S)
                assert server.transcribe(audio).status_code == 503
                assert "nor to be had" in server.wait_for_state(name, "failed")["detail"]

                hub.mode, hub.bytes_per_s = "slow", len(hub.content) // 30
                time.sleep(LOAD_RETRY_S)
                with concurrent.futures.ThreadPoolExecutor(1) as other_client:
                    other_client.submit(server.transcribe, audio)
                    assert "MB" in server.wait_for_state(name, "downloading")["detail"]
                waiting = server.transcribe(audio)
                assert waiting.status_code == 503
                assert "downloaded" in waiting.json()["error"]["message"]
                assert "downloaded" in server.log

                assert server.wait_for_state(name, "ready")["device"] == "cpu"
                served = server.transcribe(audio)
                assert (served.status_code, served.json()["text"]) == (200, strings[3].text)
