"""The web page in Chromium against the running server: what people do with it, and what it says when something goes wrong."""

import base64
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soxr
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from serve_app.api import create_api
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.settings import AuthSettings
from serve_app.window import SAMPLE_RATE, Samples
from testing import media
from testing.accuracy import HELD_OUT_INDEXES, held_out_strings
from testing.digit_strings import DigitString, load_bank, with_pauses
from testing.fake_service import EngineService, serving
from testing.paths import ROOT
from testing.server import Server

CHROMIUM = shutil.which("chromium")
AXE = ROOT / ".venv" / "npm" / "node_modules" / "axe-core" / "axe.min.js"
FORMATS = {"txt": "text", "srt": "srt", "vtt": "vtt", "csv": "csv", "tsv": "tsv", "json": "verbose_json"}
LONG_SEGMENTS = 4_000
DONE_MS = 60_000

pytestmark = [
    pytest.mark.serve,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def recording(folder: Path, speech: Samples) -> Path:
    path = folder / "speech.wav"
    path.write_bytes(media.wav(speech))
    return path


@pytest.fixture(scope="module")
def text(spoken: list[DigitString]) -> str:
    return " ".join(string.text for string in spoken)


@pytest.fixture(scope="module")
def microphone(folder: Path, recording: Path, text: str) -> tuple[Path, str]:
    """What Chromium's microphone records, and its text: real recordings where there are any."""
    if not os.environ.get("FSDD_RECORDINGS"):
        return recording, text
    strings = held_out_strings(load_bank(Path(os.environ["FSDD_RECORDINGS"]), HELD_OUT_INDEXES), 8, seed=5)
    samples = with_pauses(strings)
    path = folder / "microphone.wav"
    path.write_bytes(media.wav(samples))
    return path, " ".join(string.text for string in strings)


@pytest.fixture(scope="module")
def browser(microphone: tuple[Path, str]) -> Iterator[Browser]:
    arguments = [
        *("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", "--autoplay-policy=no-user-gesture-required"),
        *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
        f"--use-file-for-fake-audio-capture={microphone[0]}%noloop",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


class Visit:
    """A page that was opened, and what its console said."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)
        self.page.set_default_timeout(DONE_MS)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def forgive(self, expected: str) -> None:
        """The browser tells of every request that was refused; this one was to be."""
        assert any(expected in complaint for complaint in self.complaints)
        self.complaints = [complaint for complaint in self.complaints if expected not in complaint]

    def choose(self, *paths: Path) -> None:
        self.page.locator("#files").set_input_files([str(path) for path in paths])

    def wait_until_done(self, files: int = 1) -> None:
        expect(self.page.locator("#queue li.done")).to_have_count(files, timeout=DONE_MS)

    def said(self) -> str:
        expect(self.page.locator("#segments .word").first).to_be_visible()
        return " ".join(self.page.locator("#segments p").all_inner_texts())

    def exported(self, extension: str) -> bytes:
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=f"Download as {extension}", exact=True).click()
        assert download.value.suggested_filename.endswith(f".{extension}")
        return Path(download.value.path()).read_bytes()


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Callable[..., Visit]]:
    """Opens the page; at the end there must have been no complaint but those that the test took out."""
    contexts, visits = list[BrowserContext](), list[Visit]()

    def open_page(url: str = server.url, **options: Any) -> Visit:
        context = browser.new_context(permissions=["microphone", "clipboard-read", "clipboard-write"], **options)
        contexts.append(context)
        visits.append(Visit(context, url))
        return visits[-1]

    yield open_page
    for context in contexts:
        context.close()
    assert [complaint for each in visits for complaint in each.complaints] == []


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
    here.choose(long)
    expect(here.page.locator("#queue .state")).to_contain_text("real time", timeout=DONE_MS)
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


def test_a_lost_server(visit: Callable[..., Visit], recording: Path, text: str) -> None:
    here = visit()
    here.page.context.set_offline(True)
    here.choose(recording)
    expect(here.page.locator("#queue li.failed")).to_contain_text("cannot be reached")
    here.page.context.set_offline(False)
    expect(here.page.locator("#facts")).to_have_text("speech.wav: failed")
    here.page.get_by_role("button", name="Try again: speech.wav").click()
    here.wait_until_done()
    assert here.said() == text
    here.forgive("ERR_INTERNET_DISCONNECTED")


def test_a_wanted_key(visit: Callable[..., Visit], engine: ParakeetEngine, recording: Path, text: str) -> None:
    with serving(create_api(EngineService(engine, auth=AuthSettings(keys=("secret",))).service)) as url:
        here = visit(url)
        here.page.get_by_role("textbox", name="Key").fill("secret")
        here.page.get_by_role("button", name="Use it").click()
        expect(here.page.locator("#server-state")).to_have_text("Ready")
        here.page.locator("#key-button").click()
        here.page.keyboard.press("Escape")
        expect(here.page.locator("#key-dialog")).to_be_hidden()
        here.choose(recording)
        here.wait_until_done()
        assert here.said() == text
        assert here.page.evaluate("localStorage.getItem('key')") is None
    here.forgive("401 (Unauthorized)")


def test_by_keyboard_alone(visit: Callable[..., Visit], recording: Path) -> None:
    here = visit()

    def tab_to(selector: str) -> None:
        for _ in range(40):
            here.page.keyboard.press("Tab")
            if here.page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
        pytest.fail(f"{selector} is not reached")

    here.page.on("filechooser", lambda chooser: chooser.set_files(str(recording)))
    tab_to("#choose")
    here.page.keyboard.press("Enter")
    here.wait_until_done()
    here.said()
    tab_to("#segments .time")
    here.page.keyboard.press("Enter")
    here.page.wait_for_function("() => document.getElementById('player').currentTime > 0")
    here.page.evaluate("document.activeElement.blur()")
    here.page.keyboard.press(" ")
    here.page.wait_for_function("() => document.getElementById('player').paused")
    before = here.page.evaluate("document.getElementById('player').currentTime")
    here.page.keyboard.press("ArrowRight")
    here.page.wait_for_function("(before) => document.getElementById('player').currentTime > before + 4", arg=before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_it_fits_and_is_accessible(visit: Callable[..., Visit], recording: Path, scheme: str, width: int) -> None:
    here = visit(color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True)
    channels = here.page.evaluate("getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(channels) < 60) == (scheme == "dark")
    check(here)
    here.page.get_by_text("Options").click()
    here.choose(recording)
    here.wait_until_done()
    here.said()
    here.page.locator("#debug-toggle").check()
    assert here.page.evaluate("document.documentElement.scrollWidth") <= width
    check(here)
    here.page.locator("#key-button").click()
    check(here)


def check(here: Visit) -> None:
    """axe-core finds no violation."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed; `make test` installs it where there is npm")
    here.page.add_script_tag(path=AXE)
    result = here.page.evaluate("axe.run()")
    found = [(violation["id"], [node["html"] for node in violation["nodes"]]) for violation in result["violations"]]
    assert found == []


def test_hours_of_text_stay_smooth(visit: Callable[..., Visit]) -> None:
    here = visit()
    here.page.evaluate(
        """async (count) => {
            const segments = Array.from({ length: count }, (_, id) => {
                const words = "one two three four five six.".split(" ").map((word, i) => (
                    { word, start: 2.7 * id + 0.4 * i, end: 2.7 * id + 0.4 * i + 0.3, probability: 0.9 }));
                return { id, start: 2.7 * id, end: 2.7 * id + 2.4, text: "one two three four five six.", words };
            });
            const { keep } = await import(new URL("static/history.js", document.baseURI));
            await keep({ name: "long", at: 0, transcript: { text: "", language: "en", duration: 2.7 * count, segments } });
        }""",
        LONG_SEGMENTS,
    )
    here.page.reload()
    here.page.locator("#history .name").click()
    expect(here.page.locator("#segments li")).to_have_count(LONG_SEGMENTS, timeout=DONE_MS)
    here.page.evaluate(
        """() => {
            window.longTasks = [];
            new PerformanceObserver((list) => longTasks.push(...list.getEntries().map((entry) => entry.duration)))
                .observe({ type: "longtask" });
        }"""
    )
    here.page.mouse.move(200, 400)
    rounds = []
    for direction in (1, -1, 1):
        here.page.evaluate("longTasks.length = 0")
        for _ in range(40):
            here.page.mouse.wheel(0, direction * 3_000)
            here.page.wait_for_timeout(30)
        rounds.append(here.page.evaluate("[scrollY, ...longTasks]"))
    assert rounds[0][0] > 20_000
    # The machine's other work makes a task long now and then, but not in every round.
    assert any(len(each) == 1 for each in rounds), rounds


def test_debug_mode(visit: Callable[..., Visit], recording: Path) -> None:
    here = visit()
    here.page.locator("#debug-toggle").check()
    here.choose(recording)
    here.wait_until_done()
    expect(here.page.locator("#curl")).to_contain_text("curl -N -F 'file=@speech.wav'")
    expect(here.page.locator("#log")).to_contain_text("transcript.text.done")
    expect(here.page.locator("#log")).to_contain_text("timings of speech.wav")
