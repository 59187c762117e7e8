"""Who speaks, on the web page in Chromium: channels as lanes, and speakers with names."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, Route, expect

from serve_app.engine.parakeet import ParakeetEngine
from serve_app.settings import DiarizerSettings, LimitSettings
from testing import media, voices
from testing.calls import Call, compose_call
from testing.digit_strings import Bank
from testing.fake_service import EngineService, FakeService
from testing.job_service import JobServer, serving
from testing.page_visit import Visit
from tests.server.demo.page.conftest import CHROMIUM
from tests.server.demo.page.test_jobs import with_jobs
from tests.server.demo.page.test_page import check, check_width

pytestmark = [
    pytest.mark.serve,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)"),
]

FORMATS = {"txt": "text", "srt": "srt", "vtt": "vtt", "csv": "csv", "json": "verbose_json"}

MARGIN = 4_800
"""Around a word, samples: a column of the waveform has the highest of its samples."""

KEEP = """async (transcript) => {
    const { keep } = await import(new URL("static/history.js", document.baseURI));
    await keep({ name: "meeting", at: 0, transcript });
}"""

LANES = """(lanes) => {
    const canvas = document.getElementById("waveform"), height = canvas.height / lanes;
    const context = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
    context.drawImage(canvas, 0, 0);
    return Array.from({ length: lanes }, (_, lane) => {
        const top = Math.round((lane + 0.35) * height);
        const { data, width } = context.getImageData(0, top, canvas.width, Math.round(0.1 * height));
        const columns = Array(width).fill(false);
        for (let i = 3; i < data.length; i += 4) if (data[i] > 200) columns[((i - 3) / 4) % width] = true;
        return columns;
    });
}"""
"""By lane and column: whether there is a wave, seen a little above the middle."""


@pytest.fixture
def server(engine: ParakeetEngine, tmp_path: Path) -> Iterator[JobServer]:
    """In the place of the demo server."""
    with serving(with_jobs(EngineService, tmp_path, engine)) as server:
        yield server


@pytest.fixture(scope="module")
def call(bank: Bank) -> Call:
    return compose_call(bank, 8, 1, gap_s=(0.3, 1.0))


@pytest.fixture
def file(call: Call, tmp_path: Path) -> Path:
    path = tmp_path / "call.wav"
    path.write_bytes(media.wav(call.samples))
    return path


def segment(number: int, speaker: str, text: str, length_s: float = 2.0) -> dict[str, Any]:
    start = 3.0 * number
    words = [
        {"word": word, "start": start + 0.1 * i, "end": start + 0.1 * i + 0.1, "probability": 0.9}
        for i, word in enumerate(text.split())
    ]
    return {"id": number, "start": start, "end": start + length_s, "text": text, "words": words, "speaker": speaker}


def meeting() -> dict[str, Any]:
    """An answer of three speakers: A says 6 s, B 3 s, Clara 1 s."""
    segments = [segment(0, "A", "One two."), segment(1, "B", "Three.", 3.0), segment(2, "A", "Four five."),
                segment(3, "Clara", "Six.", 1.0), segment(4, "A", "Seven.")]  # fmt: skip
    text = " ".join(each["text"] for each in segments)
    return {"text": text, "language": "english", "duration": 15.0, "segments": segments}


def rows(here: Visit) -> Locator:
    return here.page.locator("#segments li:visible")


def who(here: Visit) -> list[str]:
    return here.page.locator("#segments li:visible .who").all_text_contents()


def press(here: Visit, name: str) -> None:
    here.page.get_by_role("button", name=name, exact=True).click()


def plain(texts: list[str]) -> str:
    return " ".join(texts).casefold().replace(".", "")


@pytest.mark.parametrize("way", ["rest", "websocket", "job"])
def test_channels_are_lanes_and_segments_name_theirs(
    visit: Callable[..., Visit], server: JobServer, file: Path, call: Call, way: str
) -> None:
    here = visit()
    here.page.locator("#background").select_option("all" if way == "job" else "none")
    here.page.get_by_text("Options").click()
    here.page.locator("#who").select_option("channels")
    if way != "job":
        here.page.locator("#transport").select_option(way)
    here.choose(file)
    expect(here.page.locator("#tools")).to_be_visible()
    here.said()
    for channel in (0, 1):
        press(here, f"Show only Channel {channel}")
        assert set(who(here)) == {f"Channel {channel}"}
        assert plain(rows(here).locator("p").all_text_contents()) == plain(call.texts(channel))
        press(here, f"Show only Channel {channel}")
    assert set(who(here)) == {"Channel 0", "Channel 1"}
    here.page.wait_for_function(f"() => ({LANES})(2).flat().some(Boolean)")
    lanes = here.page.evaluate(LANES, 2)
    for channel, (columns, words) in enumerate(zip(lanes, call.words, strict=True)):
        at = np.flatnonzero(columns) * len(call.samples) / len(columns)
        assert any(word.start_sample < sample < word.end_sample for word in words for sample in at), channel
        # Some columns are the mark of the position and of its edge.
        outside = [s for s in at if not any(w.start_sample - MARGIN < s < w.end_sample + MARGIN for w in words)]
        assert len(outside) < 0.1 * len(at), channel
    for extension, response_format in FORMATS.items():
        fields = {"response_format": response_format, "multichannel": "true", "timestamp_granularities[]": "word"}
        expected = here.page.request.post(
            f"{server.url}/v1/audio/transcriptions",
            multipart={"file": {"name": "x.wav", "mimeType": "audio/wav", "buffer": file.read_bytes()}, **fields},
        )
        exported = here.exported(extension)
        if extension == "json" and way == "websocket":
            continue  # Confidences may differ a little.
        assert exported == expected.body(), extension


def test_a_stereo_file_has_one_lane_unless_it_is_asked_for(visit: Callable[..., Visit], file: Path) -> None:
    here = visit()
    here.choose(file)
    here.wait_until_done()
    here.said()
    expect(here.page.locator("#voices")).to_be_hidden()
    assert who(here) == []
    assert here.page.evaluate("document.getElementById('waveform').clientHeight") == 72


def test_speakers_are_asked_for_where_the_server_has_a_diarizer(visit: Callable[..., Visit], file: Path) -> None:
    """The server of this test has none: its answers are replaced by those of one that has."""
    here = visit()
    here.page.get_by_text("Options").click()
    option = here.page.locator("#who option[value=speakers]")
    expect(here.page.locator("#about")).not_to_be_empty()
    expect(option).to_be_disabled()

    def with_diarizers(route: Route) -> None:
        body = route.fetch().json()
        for model in body["data"]:
            model["diarizers"] = ["voices"]
        route.fulfill(json=body)

    def with_speakers(route: Route) -> None:
        whole = meeting()
        deltas = [
            {"type": "transcript.text.delta", "delta": f" {each['text']}", "speaker": each["speaker"]}
            for each in whole["segments"]
        ]
        done = {"type": "transcript.text.done", "text": whole["text"], "content": whole}
        body = "".join(f"data: {json.dumps(message)}\n\n" for message in [*deltas, done])
        route.fulfill(body=body, content_type="text/event-stream")

    here.page.route("**/v1/models", with_diarizers)
    here.page.route("**/v1/audio/transcriptions", with_speakers)
    here.page.reload()
    here.page.get_by_text("Options").click()
    expect(option).to_be_enabled()
    here.page.locator("#who").select_option("speakers")
    here.page.locator("#transport").select_option("websocket")
    with here.page.expect_request("**/v1/audio/transcriptions") as sent:
        here.choose(file)
    assert 'name="diarize"\r\n\r\ntrue' in (sent.value.post_data_buffer or b"").decode(errors="replace")
    here.wait_until_done()
    assert who(here) == ["A", "B", "A", "Clara", "A"]
    expect(here.page.locator("#curl")).to_contain_text("-F 'diarize=true'")


def test_a_name_is_given_once_and_kept_everywhere(visit: Callable[..., Visit]) -> None:
    here = visit()
    here.page.evaluate(KEEP, meeting())
    here.page.reload()
    press(here, "meeting")
    times = here.page.locator("#voices .state").all_inner_texts()
    assert times == ["0:06, 60 %", "0:03, 30 %", "0:01, 10 %"]

    def rename(before: str, after: str, key: str = "Enter") -> None:
        press(here, f"Rename {before}")
        here.page.get_by_role("textbox", name=f"Name of {before}").fill(after)
        here.page.keyboard.press(key)

    rename("A", "Anna <b>")
    rename("B", "nobody", "Escape")
    assert who(here) == ["Anna <b>", "B", "Anna <b>", "Clara", "Anna <b>"]
    assert here.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Rename B"
    press(here, "Copy")
    expect(here.page.get_by_role("button", name="Copied")).to_be_visible()
    turns = "Anna <b>: One two.\nB: Three.\nAnna <b>: Four five.\nClara: Six.\nAnna <b>: Seven."
    assert here.page.evaluate("navigator.clipboard.readText()") == turns
    with here.page.expect_request("**/export") as sent:
        here.exported("srt")
    assert [each["speaker"] for each in json.loads(sent.value.post_data or "")["segments"]] == who(here)

    here.page.reload()
    press(here, "meeting")
    assert who(here) == ["Anna <b>", "B", "Anna <b>", "Clara", "Anna <b>"]
    press(here, "Show only Anna <b>")
    press(here, "Show only Clara")
    assert who(here) == ["Anna <b>", "Anna <b>", "Clara", "Anna <b>"]
    here.page.locator("#search").fill("three")
    expect(here.page.locator("#found")).to_have_text("0 found")
    rename("Anna <b>", "")
    assert set(who(here)) == {"A", "Clara"}
    press(here, "Show only Clara")
    press(here, "Show only A")
    assert who(here) == ["A", "B", "A", "Clara", "A"]


@pytest.mark.parametrize("width", [390, 1440])
def test_voices_fit_and_are_accessible(visit: Callable[..., Visit], width: int) -> None:
    here = visit(viewport={"width": width, "height": 800}, bypass_csp=True)
    many = meeting()
    many["segments"] = [segment(n, f"S{n % 9}" * (1 + 12 * (n % 3)), "One two three.") for n in range(18)]
    here.page.evaluate(KEEP, many)
    here.page.reload()
    press(here, "meeting")
    expect(rows(here)).to_have_count(18)
    here.page.evaluate("document.querySelectorAll('#segments li').forEach((row) => row.classList.add('now'))")
    press(here, "Rename S0")
    check(here)
    here.page.keyboard.press("Escape")
    press(here, "Show only S0")
    check(here)
    check_width(here, width)


SPOKEN = [(0, 4.0), (1, 3.0), (0, 5.0), (2, 3.0)]
"""Turns of a conversation, by voices of the simulated diarizer, and how long they are, seconds."""


class TestDiarized:
    """With the simulated diarizer, whose voices are tones, and the simulated engine's words."""

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[JobServer]:
        fake = with_jobs(
            FakeService, tmp_path, limits=LimitSettings(), diarizers=(DiarizerSettings(name="v", source="simulated"),)
        )
        with serving(fake) as server:
            yield server

    @pytest.mark.parametrize("way", ["rest", "job"])
    def test_speakers_and_their_names_in_every_download(
        self, visit: Callable[..., Visit], server: JobServer, tmp_path: Path, way: str
    ) -> None:
        file = tmp_path / "talk.wav"
        file.write_bytes(media.wav(voices.conversation(SPOKEN)))
        here = visit()
        here.page.locator("#background").select_option("all" if way == "job" else "none")
        here.page.get_by_text("Options").click()
        here.page.locator("#who").select_option("speakers")
        here.choose(file)
        expect(here.page.locator("#tools")).to_be_visible()
        here.said()
        assert [name for name, _ in groupby(who(here))] == ["A", "B", "A", "C"]
        press(here, "Rename B")
        here.page.get_by_role("textbox", name="Name of B").fill("Berta")
        here.page.keyboard.press("Enter")
        assert [name for name, _ in groupby(who(here))] == ["A", "Berta", "A", "C"]
        assert "\nBerta: " in here.exported("srt").decode()
        assert "<v Berta>" in here.exported("vtt").decode()
        assert [row["Speaker"] for row in csv.DictReader(io.StringIO(here.exported("csv").decode()))] == who(here)
        body = json.loads(here.exported("json"))
        assert [each["speaker"] for each in body["segments"]] == who(here)
        assert {word["speaker"] for word in body["words"]} == {"A", "Berta", "C"}
