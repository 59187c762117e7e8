"""Jobs on the web page in Chromium: files that the server goes on with when the page is closed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Locator, expect

from serve_app.api import create_api
from serve_app.cluster.status import ReplicaStatus
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.jobs.worker import MIN_RUNNING
from serve_app.settings import AuthSettings, JobSettings
from serve_app.transcript import Token
from serve_app.window import Job, Lane, Samples, Window
from testing import media
from testing.fake_service import EngineService, FakeService
from testing.fake_service import serving as serving_app
from testing.job_service import JobServer, serving
from testing.page_visit import Visit
from testing.server import Server
from tests.server.demo.page.conftest import CHROMIUM
from tests.server.demo.page.test_page import check, check_width

LONG_REPEATS = 8
"""As often as this, `speech` has several windows more than a job has in progress at once."""

FIRST_WINDOWS = 3
"""Windows of a PausingService that are recognised before it waits."""

pytestmark = [
    pytest.mark.serve,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)"),
]


class PausingService(EngineService):
    """Clears `hold` after some windows."""

    async def recognise(self, window: Window, lane: Lane, job: Job) -> list[Token]:
        if len(self.windows) == FIRST_WINDOWS:
            self.hold.clear()
        return await super().recognise(window, lane, job)


@pytest.fixture
def long(folder: Path, speech: Samples) -> Path:
    path = folder / "several windows.wav"
    path.write_bytes(media.wav(np.tile(speech, LONG_REPEATS)))
    return path


def with_jobs(kind: Callable[..., FakeService], folder: Path, *args: Any, **settings: Any) -> FakeService:
    """A service whose jobs are in that folder."""
    jobs = JobSettings(directory=folder, **settings.pop("jobs", {}))
    fake = kind(*args, jobs=jobs, **settings)
    fake.replicas = {"first": (ReplicaStatus("1", "ready"),)}
    return fake


@pytest.fixture
def pausing(engine: ParakeetEngine, tmp_path: Path) -> Iterator[JobServer]:
    with serving(with_jobs(PausingService, tmp_path, engine)) as served:
        yield served


def in_background(here: Visit, *paths: Path) -> None:
    here.page.locator("#background").select_option("all")
    here.choose(*paths)


def jobs(here: Visit, state: str = "") -> Locator:
    return here.page.locator(f"#jobs li{state and '.'}{state}")


def named(here: Visit, name: str) -> Locator:
    return jobs(here).filter(has_text=name)


def states(server: Server) -> dict[str, str]:
    """The states of the server's jobs, by the names of their files."""
    return {job["filename"]: job["state"] for job in server.client.get("/v1/jobs").json()["data"]}


def texts(here: Visit) -> list[str]:
    # The inner text of rows that are out of sight is empty, as the page does not lay them out (content-visibility).
    return here.page.locator("#segments li[data-index] p").all_text_contents()


def test_a_job_outlives_its_page(visit: Callable[..., Visit], server: Server, recording: Path, text: str) -> None:
    first = visit()
    in_background(first, recording)
    expect(named(first, "speech.wav")).to_have_count(1)
    expect(first.page.locator("#queue-section")).to_be_hidden()
    first.page.close()
    here = visit()
    expect(named(here, "speech.wav")).to_contain_text("completed, ")
    here.page.get_by_role("button", name="speech.wav", exact=True).click()
    assert here.said() == text
    for extension, response_format in (("srt", "srt"), ("json", "verbose_json")):
        fields = {"response_format": response_format, "timestamp_granularities[]": ["word", "segment"]}
        assert here.exported(extension) == server.transcribe(recording.read_bytes(), **fields).content
    here.page.get_by_role("button", name="Remove: speech.wav").click()
    expect(named(here, "speech.wav")).to_have_count(0)
    assert "speech.wav" not in states(server)


def test_a_long_file_is_a_job_by_itself_and_can_be_cancelled(
    visit: Callable[..., Visit], server: Server, speech: Samples, folder: Path
) -> None:
    hours = folder / "hours.wav"
    hours.write_bytes(media.wav(np.tile(speech, 60 * 60 * 16_000 // len(speech))))
    here = visit()
    expect(here.page.locator("#background")).to_be_visible()
    here.choose(hours)
    cancel = here.page.get_by_role("button", name="Cancel: hours.wav")
    expect(named(here, "hours.wav")).to_contain_text("running")
    cancel.focus()
    here.page.keyboard.press("Enter")
    expect(named(here, "hours.wav")).to_contain_text("cancelled")
    expect(here.page.locator("#jobs-news")).to_have_text("hours.wav: cancelled")
    assert states(server)["hours.wav"] == "cancelled"
    here.page.keyboard.press("Enter")
    expect(named(here, "hours.wav")).to_have_count(0)


def test_text_appears_while_a_job_runs_and_nothing_is_lost_or_twice_after_a_restart(
    visit: Callable[..., Visit], pausing: JobServer, long: Path
) -> None:
    here = visit(f"{pausing.url}/")
    in_background(here, long)
    expect(here.page.locator("#segments li[data-index]").first).to_be_visible()
    expect(here.page.locator("#facts")).to_have_text(f"{long.name}: in progress")
    pausing.stop()
    expect(jobs(here, "running")).to_contain_text("connection lost")
    before = texts(here)
    with here.page.expect_request("**/v1/jobs/*/events") as followed:
        pausing.start()
    assert followed.value.headers["last-event-id"].endswith(f".{len(before)}")
    expect(jobs(here, "running")).not_to_contain_text("connection lost")
    after = texts(here)
    assert after[: len(before)] == before
    pausing.resume()
    expect(here.page.locator("#tools")).to_be_visible()
    assert texts(here)[: len(after)] == after
    expect(here.page.locator("#player")).to_be_visible()
    here.forgive("net::ERR_")


def test_the_upload_of_a_job_shows_its_progress(visit: Callable[..., Visit], pausing: JobServer, long: Path) -> None:
    here = visit(f"{pausing.url}/")
    session = here.page.context.new_cdp_session(here.page)
    session.send("Network.enable")
    conditions = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": long.stat().st_size / 4}
    session.send("Network.emulateNetworkConditions", conditions)
    in_background(here, long)
    expect(here.page.locator("#queue .state")).to_contain_text(" %")
    expect(jobs(here)).to_have_count(1)


def test_queued_jobs_have_their_place(visit: Callable[..., Visit], tmp_path: Path, recording: Path) -> None:
    fake = with_jobs(FakeService, tmp_path, jobs={"max_running_audio_s": 1})
    fake.hold.clear()
    with serving(fake) as served:
        here = visit(f"{served.url}/")
        in_background(here, *[recording] * (MIN_RUNNING + 2))
        expect(jobs(here, "running")).to_have_count(MIN_RUNNING)
        expect(jobs(here, "queued").last).to_contain_text("place 1")
        expect(jobs(here, "queued").first).to_contain_text("place 2")
        served.resume()
        expect(jobs(here, "completed")).to_have_count(MIN_RUNNING + 2)


def test_below_a_prefix(visit: Callable[..., Visit], engine: ParakeetEngine, tmp_path: Path, recording: Path, text: str) -> None:
    with serving(with_jobs(EngineService, tmp_path, engine), "/speech") as served:
        here = visit(f"{served.url}/")
        in_background(here, recording)
        assert here.said() == text


@pytest.mark.usefixtures("soon")
def test_a_failed_job_says_why(visit: Callable[..., Visit], tmp_path: Path, recording: Path) -> None:
    fake = with_jobs(FakeService, tmp_path)
    fake.failure = ValueError("internal")
    with serving(fake) as served:
        here = visit(f"{served.url}/")
        in_background(here, recording)
        expect(jobs(here, "failed")).to_contain_text("failed: Internal error")
        expect(here.page.locator("#facts")).to_have_text("speech.wav: failed")
        expect(here.page.locator("#warnings")).to_contain_text("Internal error")


def test_every_key_has_its_jobs_and_its_limit(
    visit: Callable[..., Visit], engine: ParakeetEngine, tmp_path: Path, recording: Path, long: Path, text: str
) -> None:
    auth = AuthSettings(keys=("alice: alice-secret", "bob: bob-secret"))
    fake = with_jobs(PausingService, tmp_path, engine, auth=auth, jobs={"max_jobs_per_key": 1})
    with serving(fake) as served:
        here = visit(f"{served.url}/")

        def use(key: str) -> None:
            here.page.get_by_role("textbox", name="Key").fill(key)
            here.page.get_by_role("button", name="Use it").click()

        use("alice-secret")
        in_background(here, long)
        expect(jobs(here, "running")).to_have_count(1)
        here.choose(recording)
        expect(here.page.locator("#queue li.failed")).to_contain_text("queued and running")
        here.page.locator("#key-button").click()
        use("bob-secret")
        expect(here.page.locator("#jobs-section")).to_be_hidden()
        served.resume()
        here.page.get_by_role("button", name="Try again: speech.wav").click()
        expect(jobs(here, "completed")).to_have_count(1)
        expect(jobs(here)).to_contain_text("speech.wav")
        assert here.said() == text
    here.forgive("401 (Unauthorized)")
    here.forgive("429 (Too Many Requests)")


def test_a_server_without_jobs_offers_none(visit: Callable[..., Visit], engine: ParakeetEngine, recording: Path) -> None:
    fake = EngineService(engine)
    fake.replicas = {"first": (ReplicaStatus("1", "ready"),)}
    with serving_app(create_api(fake.service)) as url:
        here = visit(url)
        here.choose(recording)
        here.wait_until_done()
        expect(here.page.locator("#background-choice")).to_be_hidden()
        expect(here.page.locator("#jobs-section")).to_be_hidden()
    here.forgive("404 (Not Found)")


@pytest.mark.parametrize("width", [390, 1440])
def test_jobs_fit_and_are_accessible(
    visit: Callable[..., Visit], pausing: JobServer, recording: Path, long: Path, width: int
) -> None:
    here = visit(f"{pausing.url}/", viewport={"width": width, "height": 800}, bypass_csp=True)
    in_background(here, recording)
    expect(jobs(here, "completed")).to_have_count(1)
    here.choose(long)
    expect(jobs(here, "running")).to_have_count(1)
    check(here)
    here.page.get_by_role("button", name="speech.wav", exact=True).first.click()
    here.said()
    expect(here.page.locator("#result-title")).to_be_in_viewport()
    check_width(here, width)
    check(here)
