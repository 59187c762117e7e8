"""The page of docs/guides/live_captions.md in Chromium, as a user saves and opens it: on an origin that is not the server's."""

import functools
import re
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from playwright.sync_api import expect

from serve_app.api.websocket import PATH
from testing.http_server import serving
from testing.page_visit import Visit
from testing.pages import blocks
from testing.server import Server, free_port
from tests.server.demo.page.conftest import CHROMIUM
from tests.server.demo.test_docs import ADDRESS

pytestmark = [
    pytest.mark.serve,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)"),
]

DELAY_MS = 10_000
"""Until the page tries again."""

HOUR_S = 3600

MIN_WORDS = 3
"""Of a sentence that is sought in the captions."""


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Not to stderr."""


@pytest.fixture
def open_captions(visit: Callable[..., Visit], tmp_path: Path) -> Iterator[Callable[[str], Visit]]:
    """Opens the page for a server at an address, and notes what its `#state` shows in `states`."""
    (block,) = blocks("html")

    (tmp_path / "favicon.ico").touch()  # Chromium asks for it, and would complain.

    def open_page(address: str) -> Visit:
        assert block.text.count(f'"ws://{ADDRESS}{PATH}"') == 1
        (tmp_path / "captions.html").write_text(block.text.replace(ADDRESS, address))
        here = visit(f"{origin}/captions.html")
        here.page.evaluate(
            """() => {
                const state = document.getElementById("state");
                window.states = [];
                new MutationObserver(() => states.push(state.textContent)).observe(state, { childList: true });
            }"""
        )
        return here

    with serving(functools.partial(Handler, directory=str(tmp_path))) as origin:
        yield open_page


def test_what_is_said_is_shown(open_captions: Callable[[str], Visit], server: Server, microphone: tuple[Path, str]) -> None:
    here = open_captions(server.url.partition("://")[2])
    # What is said before the connection is open is lost: which sentence is the first whole one depends on the machine.
    sentences = [each for each in re.findall(r"\w[^.]+\.", microphone[1]) if len(each.split()) >= MIN_WORDS]
    here.page.get_by_role("button", name="Start").click()
    expect(here.page.locator("#partial")).not_to_be_empty()
    here.page.wait_for_function(
        "(sentences) => sentences.some((each) => document.getElementById('final').textContent.includes(each))",
        arg=sentences,
    )
    here.page.get_by_role("button", name="Stop").click()
    expect(here.page.locator("#state")).to_have_text("Done.")
    expect(here.page.locator("#partial")).to_be_empty()
    assert here.page.evaluate("states") == ["Listening.", "Done."]


def test_a_server_that_cannot_be_reached_is_tried_again(open_captions: Callable[[str], Visit]) -> None:
    here = open_captions(f"127.0.0.1:{free_port()}")
    here.page.clock.install(time=0)
    here.page.clock.pause_at(HOUR_S)
    here.page.get_by_role("button", name="Start").click()
    state = here.page.locator("#state")
    expect(state).to_have_text("No connection to the server. Trying again.")
    here.page.clock.fast_forward(DELAY_MS)
    here.page.wait_for_function("() => states.length === 2")
    here.page.get_by_role("button", name="Stop").click()
    expect(state).to_have_text("Stopped.")
    here.forgive("ERR_CONNECTION_REFUSED")
