"""The web page in Chromium: files, the microphone, and transcripts."""

import base64
import time
from collections.abc import Callable
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soxr
from playwright.sync_api import expect

from serve_app.window import SAMPLE_RATE, Samples
from testing import media
from testing.page_visit import Visit
from testing.server import Server
from tests.server.demo.page.conftest import CHROMIUM

FORMATS = {"txt": "text", "srt": "srt", "vtt": "vtt", "csv": "csv", "tsv": "tsv", "json": "verbose_json"}

pytestmark = [
    pytest.mark.serve,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)"),
]


@pytest.mark.parametrize("transport", ["rest", "websocket"])
def test_a_file_and_every_download(
    visit: Callable[..., Visit], server: Server, recording: Path, text: str, transport: str
) -> None:
    here = visit()
    here.page.get_by_text("Options").click()
    here.page.locator("#transport").select_option(transport)
    here.choose(recording)
    here.wait_until_done()
    assert here.said() == text
    for extension, response_format in FORMATS.items():
        fields = {"response_format": response_format, "timestamp_granularities[]": ["word", "segment"]}
        assert here.exported(extension) == server.transcribe(recording.read_bytes(), **fields).content, extension


def test_drag_and_drop_and_paste(visit: Callable[..., Visit], recording: Path, text: str) -> None:
    here = visit()
    transfer = here.page.evaluate_handle(
        """(data) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "dropped.wav", { type: "audio/wav" }));
            return transfer;
        }""",
        base64.b64encode(recording.read_bytes()).decode(),
    )
    here.page.dispatch_event("#drop", "dragover", {"dataTransfer": transfer})
    expect(here.page.locator("#drop")).to_have_class("over")
    here.page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    here.wait_until_done()
    assert here.said() == text
    here.page.evaluate(
        "(transfer) => dispatchEvent(new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true }))", transfer
    )
    here.wait_until_done(2)


def test_many_files_at_once_a_broken_one_among_them(visit: Callable[..., Visit], recording: Path, folder: Path) -> None:
    paths = [folder / f"{number}.wav" for number in range(5)]
    for path in paths:
        path.write_bytes(recording.read_bytes())
    broken = folder / "broken.mp3"
    broken.write_bytes(b"This is not audio." * 100)
    here = visit()
    here.choose(*paths[:3], broken, *paths[3:])
    here.wait_until_done(5)
    failed = here.page.locator("#queue li.failed")
    expect(failed).to_contain_text("not an audio or video file")
    expect(failed).to_contain_text("save it in another format")
    here.forgive("400 (Bad Request)")
    here.page.locator("#queue li.done .name").nth(4).click()
    expect(here.page.locator("#facts")).to_contain_text("4.wav")


def test_cancel_ends_the_work_on_the_server(visit: Callable[..., Visit], server: Server, speech: Samples, folder: Path) -> None:
    long = folder / "long.wav"
    long.write_bytes(media.wav(np.tile(speech, 120)))

    def windows() -> int:
        return int(server.model("digits")["replicas"][0]["windows"])

    here, before = visit(), windows()
    here.page.locator("#background").select_option("none")
    here.choose(long)
    expect(here.page.locator("#queue .state")).to_contain_text("real time")
    here.page.get_by_role("button", name="Cancel: long.wav").click()
    expect(here.page.locator("#queue .state")).to_have_text("cancelled")
    until, last = time.monotonic() + 30, -1
    while (now := windows()) != last:
        assert time.monotonic() < until, "the server goes on"
        last = now
        time.sleep(3)
    assert now - before < len(speech) * 120 / SAMPLE_RATE / 30


def test_the_microphone(visit: Callable[..., Visit], microphone: tuple[Path, str]) -> None:
    here, words = visit(), microphone[1].split()
    here.page.get_by_role("button", name="Use the microphone").click()
    expect(here.page.locator("#live-text .partial")).not_to_be_empty()
    here.page.wait_for_function("() => document.getElementById('level').value > 0.05")
    here.page.wait_for_function(
        "(count) => document.getElementById('live-text').textContent.trim().split(/\\s+/).length >= count", arg=len(words) - 1
    )
    here.page.get_by_role("button", name="Stop").click()
    text = here.said()
    assert jiwer.wer(microphone[1].lower(), text.lower()) < 0.1
    assert "-->" in here.exported("srt").decode()
    assert here.page.locator("#player").evaluate("(video) => video.src").startswith("blob:")


def test_a_video_plays_with_its_captions(visit: Callable[..., Visit], folder: Path, speech: Samples) -> None:
    path = folder / "talk.webm"
    samples = soxr.resample(speech / 32768, SAMPLE_RATE, 48_000).astype(np.float32)
    path.write_bytes(media.encode(samples, 48_000, "webm", "libopus", picture="video"))
    here = visit()
    here.choose(path)
    here.wait_until_done()
    here.said()
    here.page.wait_for_function("() => document.getElementById('player').textTracks[0]?.cues?.length > 3")
    assert here.page.locator("#player").evaluate("(video) => video.textTracks[0].mode") == "showing"


def test_a_click_plays_from_there(visit: Callable[..., Visit], recording: Path) -> None:
    here = visit()
    here.choose(recording)
    here.wait_until_done()
    here.said()
    for target in (here.page.locator(".word").nth(6), here.page.locator("#segments .time").nth(2)):
        start = target.evaluate("(e) => Number(e.dataset.start ?? e.closest('li').querySelector('.word').dataset.start)")
        target.click()
        here.page.wait_for_function("() => !document.getElementById('player').seeking")
        at = here.page.locator("#player").evaluate("(video) => { video.pause(); return video.currentTime; }")
        assert start - 0.2 <= at <= start + 3
    expect(here.page.locator("#segments li.now")).to_have_count(1)
    here.page.wait_for_function("() => document.getElementById('player').textTracks[0]?.cues?.length > 0")


def test_search_edit_copy_and_history(visit: Callable[..., Visit], recording: Path) -> None:
    here = visit()
    here.choose(recording)
    here.wait_until_done()
    first = here.said().split(".")[0]
    here.page.locator("#search").fill(first)
    expect(here.page.locator("#found")).not_to_have_text("0 found")
    here.page.get_by_role("button", name="Edit").first.click()
    here.page.locator("textarea").fill("Quite other words.")
    here.page.keyboard.press("Enter")
    assert "Quite other words." in here.exported("srt").decode()
    here.page.get_by_role("button", name="Copy").click()
    expect(here.page.get_by_role("button", name="Copied")).to_be_visible()
    assert here.page.evaluate("navigator.clipboard.readText()").startswith("Quite other words.")
    here.page.locator("#history .name").click()
    expect(here.page.locator("#segments")).to_contain_text("Quite other words.")
    expect(here.page.locator("#player")).to_be_hidden()
    here.page.reload()
    here.page.locator("#history .name").click()
    expect(here.page.locator("#segments")).to_contain_text("Quite other words.")
    here.page.get_by_role("button", name="Delete speech.wav").click()
    expect(here.page.locator("#history-section")).to_be_hidden()
