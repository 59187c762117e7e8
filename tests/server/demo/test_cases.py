"""Files and requests with which users of such servers had trouble, on the running server."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import websockets
import websockets.sync.client

from serve_app.api.websocket import PATH
from serve_app.window import SAMPLE_RATE
from testing import media
from testing.digit_strings import DigitString
from testing.odd_media import (
    NARROW,
    WIDE,
    Floats,
    amr_frames,
    amr_with_a_pause,
    encode_at,
    ending_early,
    gsm,
    one_bit_noise,
    quicktime_without_ftyp,
    random_amr_frames,
    silence,
)
from testing.server import Server

pytestmark = [pytest.mark.serve]

DAMAGED_PACKETS = 1_010
"""More than the errors in a row after which a demuxer is given up."""

AAC_FRAME = 1_024
PAUSE_S = 12.0
GAP_S = 1.05 * DAMAGED_PACKETS * AAC_FRAME / SAMPLE_RATE


@pytest.fixture(scope="module")
def string(strings: list[DigitString]) -> DigitString:
    return strings[6]


def damaged_in_the_middle(speech: Floats) -> bytes:
    """An MP4 file of the speech twice, with packets between that no decoder accepts."""
    gap = one_bit_noise(GAP_S)
    first = len(speech) // AAC_FRAME + 10

    def damage(packets: list[Any]) -> list[Any]:
        damaged = range(first, first + DAMAGED_PACKETS)
        return [media.broken(packet) if number in damaged else packet for number, packet in enumerate(packets)]

    return media.remux(media.encode(np.concatenate([speech, gap, speech]), SAMPLE_RATE, "mp4", "aac"), damage)


FILES: dict[str, tuple[Callable[[Floats], bytes], str]] = {
    "mpeg-ts": (lambda speech: encode_at(48_000, speech, "mpegts", "aac"), "{}"),
    "m2ts": (lambda speech: encode_at(48_000, speech, "mpegts", "ac3", mpegts_m2ts_mode="1"), "{}"),
    "w64": (lambda speech: media.encode(speech, SAMPLE_RATE, "w64", "pcm_s16le"), "{}"),
    "voc": (lambda speech: media.encode(speech, SAMPLE_RATE, "voc", "pcm_s16le"), "{}"),
    "ac3": (lambda speech: encode_at(48_000, speech, "ac3", "ac3"), "{}"),
    "gsm": (gsm, "{}"),
    "mov without ftyp": (quicktime_without_ftyp, "{}"),
    "amr with a pause": (lambda speech: amr_with_a_pause(NARROW, amr_frames(speech), PAUSE_S), "{} {}"),
    "opposite phase": (lambda speech: media.wav(np.stack([speech, -speech], axis=1)), "{}"),
    "noise, then digital zeros": (lambda _: media.wav(np.concatenate([one_bit_noise(0.5), silence(2)])), ""),
    "speech, then digital zeros": (lambda speech: media.wav(np.concatenate([speech, silence(2)])), "{}"),
    "digital zeros, then speech": (lambda speech: media.wav(np.concatenate([silence(2), speech])), "{}"),
    "audio that begins after the video": (
        lambda speech: media.encode(speech, SAMPLE_RATE, "mp4", "aac", picture="video", audio_start_s=3),
        "{}",
    ),
    "damage in the middle": (damaged_in_the_middle, "{} {}"),
    "the second track is the default": (
        lambda speech: media.with_tracks("matroska", [silence(len(speech) / SAMPLE_RATE), speech], default=1),
        "{}",
    ),
    "flv that ends early": (lambda speech: ending_early("flv", speech), "{}"),
    "webm that ends early": (lambda speech: ending_early("webm", speech), "{}"),
    "mkv that ends early": (lambda speech: ending_early("mkv", speech), "{}"),
}
"""How to make each file, and its text, where {} is the text of the speech."""

DURATIONS_S: dict[str, Callable[[float], float]] = {
    "damage in the middle": lambda speech_s: 2 * speech_s + GAP_S,
    "amr with a pause": lambda speech_s: 2 * speech_s + PAUSE_S,
    "audio that begins after the video": lambda speech_s: 3 + speech_s,
}
"""Durations that need care, seconds."""


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_its_text_over_rest_and_the_websocket(server: Server, string: DigitString, name: str) -> None:
    make, template = FILES[name]
    data, text = make(string.samples), template.format(string.text, string.text)
    answers = {
        "REST": server.transcribe(data).json(),
        "declared": over_websocket(server, {"media": True}, data),
        "recognised": over_websocket(server, None, data),
    }
    is_short = name.endswith("that ends early")
    for answer in answers.values():
        warnings = answer.get("warnings", [])
        assert answer["text"] == text
        assert bool(warnings) == (is_short or name == "damage in the middle")
        assert any("ends before" in warning for warning in warnings) == is_short
    if duration_s := DURATIONS_S.get(name):
        assert answers["REST"]["duration"] == pytest.approx(duration_s(len(string.samples) / SAMPLE_RATE), abs=0.5)


def test_pauses_of_wide_band_amr(server: Server) -> None:
    data = amr_with_a_pause(WIDE, random_amr_frames(WIDE, 2.0), PAUSE_S)
    answer = server.transcribe(data, stream="true", **{"include[]": "progress"}).text
    events = [json.loads(line.removeprefix("data: ")) for line in answer.splitlines() if line.startswith("data: ")]
    lengths_s = [event["total_s"] for event in events if event["type"] == "transcript.progress"]
    assert lengths_s == pytest.approx([4 + PAUSE_S] * len(lengths_s), rel=0.05)
    last = over_websocket(server, None, data)
    assert "warnings" not in last
    assert last["final_duration_processed_seconds"] == pytest.approx(4 + PAUSE_S, rel=0.05)


@pytest.mark.parametrize("data", [np.random.default_rng(0).bytes(50_000), b"This is a letter.\n" * 3_000], ids=["bytes", "text"])
def test_bytes_that_are_neither_media_nor_samples(server: Server, data: bytes) -> None:
    assert server.transcribe(data).json()["error"]["code"] == "invalid_audio"
    for config in (None, {"sample_rate": 16_000, "channels": 1, "format": "binary"}, {"media": True}):
        error = over_websocket(server, config, data)
        assert (error.get("code"), error.get("param")) == ("invalid_audio", "file")


def test_tracks(server: Server, string: DigitString) -> None:
    data = media.with_tracks("matroska", [silence(3), string.samples], default=1)
    for track, text in {0: "", 1: string.text}.items():
        assert server.transcribe(data, track=str(track)).json()["text"] == text
        assert over_websocket(server, {"track": track}, data)["text"] == text
    assert server.transcribe(data, track="2").json()["error"]["param"] == "track"
    assert over_websocket(server, {"track": 2}, data)["param"] == "track"


@pytest.mark.parametrize("sign", [1, -1])
def test_live_speech_in_two_channels(server: Server, string: DigitString, sign: int) -> None:
    stereo = np.stack([string.samples, sign * string.samples], axis=1).ravel()
    config = {"encoding": "pcm_s16le", "channels": 2}
    assert over_websocket(server, config, media.pcm(stereo, "pcm_s16le"))["text"] == string.text


def test_live_speech_then_a_muted_microphone(server: Server, string: DigitString) -> None:
    samples = np.concatenate([string.samples, one_bit_noise(0.3), silence(5)])
    assert over_websocket(server, {"encoding": "pcm_s16le"}, media.pcm(samples, "pcm_s16le"))["text"] == string.text


@pytest.mark.parametrize("config", [{"language": "eng"}, {"language": "und"}, {"model": "gpt-4o-transcribe"}], ids=str)
def test_languages_and_models_of_live_speech(server: Server, string: DigitString, config: dict[str, str]) -> None:
    data = media.pcm(string.samples, "pcm_s16le")
    assert over_websocket(server, {"encoding": "pcm_s16le", **config}, data)["text"] == string.text


class TestRequests:
    @pytest.mark.parametrize("field", ["timestamp_granularities", "timestamp_granularities[]", "timestamp_granularities[0]"])
    def test_words(self, server: Server, string: DigitString, field: str) -> None:
        answer = server.transcribe(media.as_wav(string), response_format="verbose_json", **{field: "word"})
        assert [word["word"] for word in answer.json()["words"]] == [word.text for word in string.words]

    @pytest.mark.parametrize("fields", [{"language": "eng"}, {"language": "und"}, {"model": "gpt-4o-transcribe"}, {"track": "0"}])
    def test_fields(self, server: Server, string: DigitString, fields: dict[str, str]) -> None:
        assert server.transcribe(media.as_wav(string), **fields).json()["text"] == string.text

    @pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/transcriptions/"])
    @pytest.mark.parametrize("charset", ["", "; charset=ISO-8859-1"])
    @pytest.mark.parametrize("filename", ["", '; filename="x.wav"'])
    def test_forms(self, server: Server, string: DigitString, path: str, charset: str, filename: str) -> None:
        head = f'--x\r\nContent-Disposition: form-data; name="file"{filename}\r\n\r\n'.encode()
        headers = {"content-type": f"multipart/form-data{charset}; boundary=x"}
        answer = server.client.post(path, content=head + media.as_wav(string) + b"\r\n--x--\r\n", headers=headers)
        assert (answer.status_code, answer.json().get("text")) == (200, string.text)

    def test_a_form_that_ends_early(self, server: Server, string: DigitString) -> None:
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        field = b'\r\n--x\r\nContent-Disposition: form-data; name="response_format"\r\n\r\ntext'
        headers = {"content-type": "multipart/form-data; boundary=x"}
        answer = server.client.post("/v1/audio/transcriptions", content=head + media.as_wav(string) + field, headers=headers)
        assert answer.status_code == 400

    @pytest.mark.parametrize("path", ["/", "/health", "/ready", "/v1/models", "/docs"])
    def test_head(self, server: Server, path: str) -> None:
        head, get = server.client.head(path), server.client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]

    def test_a_preflight_for_a_private_network(self, server: Server) -> None:
        headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
        headers["access-control-request-private-network"] = "true"
        answer = server.client.options("/v1/audio/transcriptions", headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-private-network"]) == (200, "true")

    def test_an_export_without_a_length(self, server: Server) -> None:
        body = json.dumps({"response_format": "text", "duration": 1, "segments": [{"start": 0, "end": 1, "text": "One."}]})
        answer = server.client.post(
            "/v1/audio/transcriptions/export",
            content=(part.encode() for part in (body[:20], body[20:])),
            headers={"content-type": "application/json"},
        )
        assert (answer.status_code, answer.text.strip()) == (200, "One.")

    @pytest.mark.parametrize("path", ["/v1//audio/transcriptions", "/audio/transcriptions", "/v1/v1/audio/transcriptions"])
    def test_wrong_addresses(self, server: Server, path: str) -> None:
        answer = server.client.post(path, files={"file": b"x"})
        assert answer.status_code == 404
        assert "/v1/audio/transcriptions" in answer.json()["error"]["message"]


def over_websocket(server: Server, config: dict[str, Any] | None, data: bytes) -> dict[str, Any]:
    """The final message of a stream, or its error. Asserts the close code of it."""
    message: dict[str, Any] = {}
    with websockets.sync.client.connect(server.url.replace("http", "ws") + PATH, max_size=None) as socket:
        with contextlib.suppress(websockets.ConnectionClosed):
            if config is not None:
                socket.send(json.dumps(config))
            for start in range(0, len(data), 32_000):
                socket.send(data[start : start + 32_000])
            socket.send("END")
        with contextlib.suppress(websockets.ConnectionClosedError):
            for received in socket:
                message = json.loads(received)
        assert socket.close_code == (1003 if message["type"] == "error" else 1000)
    return message
