"""Every alert fires where it should and is quiet where it should be. promtool decides, which comes with Prometheus."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.observe import catalogue
from serve_app.observe.catalogue import Metric
from testing.paths import ROOT

PROGRAM = "promtool"
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
ALERTS = [rule["alert"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]]
AT = "25m"
STEPS = 120
"""Of 15 s each: half an hour."""

pytestmark = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason="Prometheus is not installed")


@dataclass(frozen=True, slots=True)
class Case:
    """What Prometheus reads from a server, and how many alerts of a name fire then."""

    alert: str
    fires: int
    why: str
    series: tuple[dict[str, str], ...]

    def rules(self) -> dict[str, Any]:
        """The test for promtool. It compares all labels, so that the alerts are counted by a query."""
        query = f'count(ALERTS{{alertname="{self.alert}",alertstate="firing"}}) or vector(0)'
        return {
            "rule_files": [str(RULES)],
            "evaluation_interval": "15s",
            "tests": [
                {
                    "interval": "15s",
                    "input_series": list(self.series),
                    "promql_expr_test": [
                        {"expr": query, "eval_time": AT, "exp_samples": [{"labels": "{}", "value": self.fires}]}
                    ],
                }
            ],
        }


def series(metric: Metric | str, step: float = 0.0, start: float = 0.0, suffix: str = "", **labels: str) -> dict[str, str]:
    """Values that grow by `step` every 15 s."""
    name = metric if isinstance(metric, str) else metric.exported_name + suffix
    pairs = ",".join(f"{label}={json.dumps(value)}" for label, value in labels.items())
    return {"series": f"{name}{{{pairs}}}", "values": f"{start}+{step}x{STEPS}"}


def observed(metric: Metric, value: float, **labels: Any) -> tuple[dict[str, str], ...]:
    """A histogram that observes this value again and again."""
    bounds = [*(str(bound) for bound in metric.buckets), "+Inf"]
    return tuple(series(metric, 15.0 * (value <= float(bound)), suffix="_bucket", le=bound, **labels) for bound in bounds)


ROUTE, SOCKET, SESSION = "/v1/audio/transcriptions", "/v1/audio/transcriptions/ws", "/v1/realtime"
UP = series("up", start=1, job="parakeet", instance="head")
IN_PROGRESS = series(catalogue.REQUESTS_IN_PROGRESS, NodeAddress="192.0.2.1")


def requests(step: float, code: str = "200", route: str = ROUTE) -> dict[str, str]:
    return series(catalogue.REQUESTS, step, route=route, code=code)


def failures(step: float, error: str, route: str = ROUTE) -> dict[str, str]:
    return series(catalogue.FAILURES, step, route=route, error=error)


def spooled(*node_bytes: float) -> tuple[dict[str, str], ...]:
    return tuple(series(catalogue.UPLOAD_SPOOL_BYTES, start=n, NodeAddress=f"192.0.2.{i}") for i, n in enumerate(node_bytes))


CASES = (
    Case("ParakeetDown", 0, "all is well", (UP, IN_PROGRESS)),
    Case("ParakeetDown", 1, "it cannot be scraped", (series("up", job="parakeet", instance="head"), IN_PROGRESS)),
    Case("ParakeetDown", 1, "Ray's exporters live and the application is gone", (UP, series("up", start=1, job="parakeet"))),
    Case("ParakeetServerErrors", 0, "no failures", (requests(15),)),
    Case("ParakeetServerErrors", 0, "nothing happens", ()),
    Case("ParakeetServerErrors", 0, "one in a hundred", (requests(15), failures(0.15, "engine_error"))),
    Case("ParakeetServerErrors", 0, "clients at fault", (requests(15, "400"), failures(15, "invalid_audio"))),
    Case("ParakeetServerErrors", 0, "not ready", (requests(15), failures(15, "model_unavailable", "/ready"))),
    Case(
        "ParakeetServerErrors",
        1,
        "only health checks succeed",
        (requests(15, route="/health"), requests(0.25, "500"), failures(0.25, "engine_error")),
    ),
    Case("ParakeetServerErrors", 1, "event streams", (requests(15), failures(1, "engine_out_of_memory"))),
    Case("ParakeetServerErrors", 1, "streams", (requests(15, "1013", SOCKET), failures(15, "engine_broken", SOCKET))),
    Case("ParakeetServerErrors", 1, "sessions that go on", (failures(1, "model_unavailable", SESSION),)),
    Case("ParakeetRefusesRequests", 0, "nothing happens", ()),
    Case("ParakeetRefusesRequests", 0, "lost models", (requests(15, "1013", SOCKET), failures(15, "engine_broken", SOCKET))),
    Case("ParakeetRefusesRequests", 1, "streams", (failures(15, "overloaded", SOCKET),)),
    Case("ParakeetRefusesRequests", 1, "keys", (failures(15, "rate_limit_exceeded"),)),
    Case("ParakeetModelFailed", 0, "ready", (series(catalogue.MODEL_STATE, model="m", state="failed"),)),
    Case("ParakeetModelFailed", 1, "failed", (series(catalogue.MODEL_STATE, start=1, model="m", state="failed"),)),
    Case("ParakeetLiveTextIsLate", 0, "1.5 s", observed(catalogue.LIVE_FINAL_LAG_SECONDS, 1.5, model="m")),
    Case("ParakeetLiveTextIsLate", 1, "12 s", observed(catalogue.LIVE_FINAL_LAG_SECONDS, 12, model="m")),
    Case("ParakeetLiveWindowsWait", 0, "0.1 s", observed(catalogue.QUEUE_SECONDS, 0.1, model="m", lane="live")),
    Case("ParakeetLiveWindowsWait", 0, "files wait", observed(catalogue.QUEUE_SECONDS, 5, model="m", lane="bulk")),
    Case("ParakeetLiveWindowsWait", 1, "5 s", observed(catalogue.QUEUE_SECONDS, 5, model="m", lane="live")),
    Case("ParakeetFilesAreSlow", 0, "RTF 0.1", observed(catalogue.REQUEST_RTF, 0.1, model="m", entry_point="rest")),
    Case(
        "ParakeetFilesAreSlow", 0, "while they are sent", observed(catalogue.REQUEST_RTF, 3, model="m", entry_point="websocket")
    ),
    Case("ParakeetFilesAreSlow", 1, "RTF 3", observed(catalogue.REQUEST_RTF, 3, model="m", entry_point="rest")),
    Case("ParakeetReplicasAreLost", 0, "none", (series(catalogue.WINDOWS_RETRIED, model="m"),)),
    Case("ParakeetReplicasAreLost", 1, "one a minute", (series(catalogue.WINDOWS_RETRIED, 0.25, model="m"),)),
    Case("ParakeetDecodersFail", 0, "none", (series(catalogue.DECODER_FAILURES),)),
    Case("ParakeetDecodersFail", 1, "one a minute", (series(catalogue.DECODER_FAILURES, 0.25),)),
    Case("ParakeetUploadsFillTheDisk", 0, "30 GB on each of two nodes", spooled(30e9, 30e9)),
    Case("ParakeetUploadsFillTheDisk", 1, "60 GB on one of them", spooled(60e9, 1e9)),
)


def test_every_alert_has_both_cases() -> None:
    for fires in (0, 1):
        assert {case.alert for case in CASES if case.fires == fires} == set(ALERTS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.why}")
def test_an_alert(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump(case.rules()))
    done = subprocess.run([PROGRAM, "test", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
