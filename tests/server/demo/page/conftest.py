"""Chromium on the page of the running server."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from serve_app.window import Samples
from testing import media
from testing.accuracy import HELD_OUT_INDEXES, held_out_strings
from testing.digit_strings import DigitString, load_bank, with_pauses
from testing.page_visit import Visit
from testing.server import Server

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="package")
def recording(folder: Path, speech: Samples) -> Path:
    path = folder / "speech.wav"
    path.write_bytes(media.wav(speech))
    return path


@pytest.fixture(scope="package")
def text(spoken: list[DigitString]) -> str:
    return " ".join(string.text for string in spoken)


@pytest.fixture(scope="package")
def microphone(folder: Path, recording: Path, text: str) -> tuple[Path, str]:
    """What Chromium's microphone records, and its text: real recordings where there are any."""
    if not os.environ.get("FSDD_RECORDINGS"):
        return recording, text
    strings = held_out_strings(load_bank(Path(os.environ["FSDD_RECORDINGS"]), HELD_OUT_INDEXES), 4, seed=5)
    samples = with_pauses(strings)
    path = folder / "microphone.wav"
    path.write_bytes(media.wav(samples))
    return path, " ".join(string.text for string in strings)


@pytest.fixture(scope="package")
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
