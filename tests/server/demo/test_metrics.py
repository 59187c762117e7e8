"""A real Prometheus reads the running server: every panel of the dashboard and every alert has a query that returns data."""

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterator

import pytest
import yaml

from serve_app.observe import catalogue
from serve_app.observe.catalogue import METRICS
from serve_app.window import SAMPLE_RATE, Samples
from testing import media
from testing.digit_strings import DigitString, with_pauses
from testing.paths import ROOT
from testing.prometheus import PROGRAM, Prometheus, prometheus
from testing.server import Server
from testing.streams import connect
from tools import grafana_dashboard

pytestmark = [
    pytest.mark.serve,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(PROGRAM) is None, reason="Prometheus is not installed"),
]

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
ALERTS = {rule["alert"]: rule["expr"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}
WITHIN_S = 60.0
FRAME = SAMPLE_RATE // 10


def measured(expression: str) -> str:
    """The measure of an alert: its expression without the comparison, which returns nothing while all is well."""
    measure, comparison, limit = expression.rpartition(">") if ">" in expression else expression.rpartition("<")
    assert comparison
    float(limit)
    return measure


def query_of(panel: str) -> str:
    """A query of the dashboard with the values that Grafana puts in."""
    return panel.replace("$__rate_interval", "1m").replace("$model", ".*")


async def speak(server: Server, speech: Samples) -> None:
    """A live stream at twice the pace of speech."""
    async with connect(server) as socket:
        await socket.send(json.dumps({"encoding": "pcm_s16le", "interim_results": True}))
        for start in range(0, len(speech), FRAME):
            await socket.send(speech[start : start + FRAME].tobytes())
            await asyncio.sleep(FRAME / SAMPLE_RATE / 2)
        await socket.send("END")
        assert json.loads([message async for message in socket][-1])["type"] == "final_transcription"


def drive(server: Server, speech: Samples) -> None:
    """A file, with speakers, a broken file and a live stream."""
    assert server.transcribe(media.wav(speech), diarize="true").status_code == 200
    assert server.transcribe(b"no media").status_code == 400
    asyncio.run(speak(server, speech))


def wait(until: Callable[[], bool]) -> bool:
    end = time.monotonic() + WITHIN_S
    while not (is_so := until()) and time.monotonic() < end:
        time.sleep(0.2)
    return is_so


@pytest.fixture(scope="module")
def reader(server: Server, strings: list[DigitString], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has read the server before, between and after two rounds of requests."""
    speech = with_pauses(strings[2:5])
    with prometheus(server, tmp_path_factory.mktemp("prometheus"), RULES) as reader:
        lag = f"sum({catalogue.LIVE_FINAL_LAG_SECONDS.exported_name}_count)"
        drive(server, speech)
        assert wait(lambda: bool(reader.values(lag))), server.client.get("/metrics").text
        before = reader.values(lag)
        drive(server, speech)
        assert wait(lambda: reader.values(lag) > before)
        yield reader


def test_every_metric_is_exported_under_its_name(reader: Prometheus) -> None:
    expected = {metric.exported_name + ("_count" if metric.kind == "histogram" else "") for metric in METRICS}
    missing: set[str] = set()

    def all_are_there() -> bool:
        nonlocal missing
        missing = expected - set(reader.api("label/__name__/values"))
        return not missing

    assert wait(all_are_there), missing


@pytest.mark.parametrize("panel", grafana_dashboard.queries())
def test_every_panel_has_data(reader: Prometheus, panel: str) -> None:
    assert wait(lambda: bool(reader.values(query_of(panel))))


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_measures_something(reader: Prometheus, alert: str) -> None:
    assert wait(lambda: bool(reader.values(measured(ALERTS[alert]))))


def test_no_alert_is_wrong(reader: Prometheus) -> None:
    """All rules are evaluated without an error, and a server that works fires none of the critical ones."""

    def rules() -> list[dict[str, object]]:
        return [rule for group in reader.api("rules")["groups"] for rule in group["rules"]]

    assert wait(lambda: {rule["name"] for rule in rules() if rule["health"] == "ok"} == set(ALERTS)), rules()
    assert {rule["name"] for rule in rules() if rule["state"] == "firing"} == set()


def test_audio_is_counted_once(reader: Prometheus) -> None:
    """What other tests of this server gave up half-way was received and not transcribed."""
    received, transcribed = (
        f"sum by (entry_point) ({metric.exported_name})"
        for metric in (catalogue.AUDIO_SECONDS_RECEIVED, catalogue.AUDIO_SECONDS_TRANSCRIBED)
    )
    shares = reader.values(f"{transcribed} / {received}")
    assert len(shares) >= 2
    assert all(0 < share < 1 + 1e-6 for share in shares)
