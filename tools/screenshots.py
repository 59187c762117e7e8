"""Screenshots of the web page in each of its states, by Chromium, with a server of its own that runs the bundled model.

python -m tools.screenshots FOLDER
"""

import argparse
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, FloatRect, Page, ViewportSize, expect, sync_playwright

from serve_app.window import SAMPLE_RATE
from testing import media
from testing.calls import compose_call
from testing.digit_strings import compose, load_bank, to_int16
from testing.paths import ROOT
from testing.server import Server, serve_run

WIDE: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
LIVE_PICTURE: FloatRect = {"x": 0, "y": 0, "width": 1280, "height": 380}
LIVE_S = 20
DONE_MS = 60_000


def speech(seconds: float, seed: int) -> bytes:
    """A WAV file of spoken digits with pauses, of at least that length."""
    rng, bank = random.Random(seed), load_bank(ROOT / "tests" / "data" / "digits")
    voices, parts, samples = sorted(bank), list[np.ndarray](), 0
    while samples < seconds * SAMPLE_RATE:
        string = compose(bank[rng.choice(voices)], [rng.randrange(10) for _ in range(rng.randint(3, 9))], rng)
        parts += [string.samples, np.zeros(SAMPLE_RATE // 2, np.float32)]
        samples += len(parts[-1]) + len(parts[-2])
    return media.wav(to_int16(np.concatenate(parts)))


@contextmanager
def page(browser: Browser, server: Server, *, is_dark: bool = False, is_phone: bool = False) -> Iterator[Page]:
    context = browser.new_context(
        color_scheme="dark" if is_dark else "light",
        viewport=PHONE if is_phone else WIDE,
        device_scale_factor=2 if is_phone else 1,
        permissions=["microphone"],
    )
    opened = context.new_page()
    opened.goto(server.url)
    expect(opened.locator("#server-state")).to_have_text("Ready")
    yield opened
    context.close()


def transcribe(opened: Page, *paths: Path) -> None:
    opened.locator("#files").set_input_files([str(path) for path in paths])
    expect(opened.locator("#queue li.done")).not_to_have_count(0, timeout=DONE_MS)
    expect(opened.locator("#segments .word").first).to_be_visible()
    opened.wait_for_timeout(500)


def call() -> bytes:
    """A WAV file of two talkers, each with a channel."""
    return media.wav(compose_call(load_bank(ROOT / "tests" / "data" / "digits"), 14, 1).samples)


def take(browser: Browser, server: Server, folder: Path, files: Path) -> None:
    short, broken, long = files / "digits.wav", files / "notes.mp3", files / "25 minutes.wav"
    short.write_bytes(speech(75, 1))
    long.write_bytes(speech(1_500, 2))
    broken.write_bytes(b"no audio" * 100)
    channels = files / "call.wav"
    channels.write_bytes(call())
    with page(browser, server) as opened:
        opened.get_by_text("Options").click()
        opened.screenshot(path=folder / "welcome.png")
        opened.locator("#key-button").click()
        opened.screenshot(path=folder / "key.png")
    for is_dark, is_phone in ((False, False), (True, False), (False, True), (True, True)):
        with page(browser, server, is_dark=is_dark, is_phone=is_phone) as opened:
            transcribe(opened, short)
            opened.locator(".word").nth(20).click()
            opened.wait_for_timeout(300)
            opened.evaluate("document.getElementById('player').pause()")
            name = f"transcript-{'dark' if is_dark else 'light'}{'-phone' if is_phone else ''}.png"
            opened.screenshot(path=folder / name, full_page=is_phone)
    for is_dark, is_phone in ((False, False), (True, True)):
        with page(browser, server, is_dark=is_dark, is_phone=is_phone) as opened:
            opened.get_by_text("Options").click()
            opened.locator("#who").select_option("channels")
            transcribe(opened, channels)
            opened.screenshot(path=folder / f"channels-{'dark-phone' if is_phone else 'light'}.png", full_page=is_phone)
    with page(browser, server) as opened:
        opened.locator("#debug-toggle").check()
        opened.locator("#files").set_input_files([str(path) for path in (long, short, broken)])
        expect(opened.locator("#queue")).to_contain_text("real time", timeout=DONE_MS)
        expect(opened.locator("#queue li.failed")).to_have_count(1, timeout=DONE_MS)
        opened.screenshot(path=folder / "queue.png", full_page=True)
    for is_dark, is_phone in ((False, False), (True, True)):
        with page(browser, server, is_dark=is_dark, is_phone=is_phone) as opened:
            opened.locator("#background").select_option("all")
            opened.locator("#files").set_input_files([str(short)])
            expect(opened.locator("#jobs li.completed").first).to_be_visible(timeout=DONE_MS)
            opened.locator("#files").set_input_files([str(long)])
            expect(opened.locator("#jobs li.running")).to_contain_text("running, 1", timeout=DONE_MS)
            opened.screenshot(path=folder / f"jobs-{'dark-phone' if is_phone else 'light'}.png")
            opened.get_by_role("button", name=f"Cancel: {long.name}").click()
            expect(opened.locator("#jobs li.running")).to_have_count(0)
    with page(browser, server, is_dark=True) as opened:
        opened.get_by_role("button", name="Use the microphone").click()
        opened.wait_for_timeout(1000 * LIVE_S)
        opened.screenshot(path=folder / "live.png", clip=LIVE_PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        said = Path(scratch) / "said.wav"
        said.write_bytes(speech(30, 3))
        arguments = [
            *("--no-sandbox", "--disable-background-networking", "--use-fake-ui-for-media-stream"),
            *("--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={said}"),
        ]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        with serve_run(ROOT / "configs" / "demo.yaml", Path(scratch)) as server:
            server.wait_for_state("digits", "ready")
            take(browser, server, folder, Path(scratch))
        browser.close()


if __name__ == "__main__":
    main()
