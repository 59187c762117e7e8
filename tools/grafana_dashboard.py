"""Write the Grafana dashboard, deploy/grafana/parakeet.json.

python -m tools.grafana_dashboard
"""

import json
from dataclasses import dataclass
from typing import Any

from serve_app.observe import catalogue
from serve_app.observe.catalogue import Metric
from testing.paths import ROOT

FILE = ROOT / "deploy" / "grafana" / "parakeet.json"

MODEL = '{model=~"$model"}'
"""The models that are chosen at the top of the dashboard."""

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, COLUMNS = 8, 8, 3
"""Size of a panel in cells of Grafana's grid, which has 24 columns; panels in a row."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph. `queries`: PromQL, and the legend of each."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    description: str = ""


def _rate(metric: Metric, by: str, where: str = MODEL) -> str:
    return f"sum by ({by}) (rate({metric.exported_name}{where}[$__rate_interval]))"


def _quantiles(metric: Metric, by: str, where: str = MODEL, shares: tuple[float, ...] = (0.5, 0.95)) -> Any:
    buckets = f"sum by (le, {by}) (rate({metric.exported_name}_bucket{where}[$__rate_interval]))"
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return tuple((f"histogram_quantile({share}, {buckets})", f"{legend} p{share * 100:.0f}") for share in shares)


def _loads() -> tuple[tuple[str, str], ...]:
    """Without a rate, since loads are rare."""
    buckets = f"sum by (le, model) ({catalogue.MODEL_LOAD_SECONDS.exported_name}_bucket{MODEL})"
    return ((f"histogram_quantile(0.5, {buckets})", "{{model}} p50"),)


def _sum(metric: Metric) -> str:
    return f"sum ({metric.exported_name})"


def _in_replica_time(metric: Metric) -> str:
    return f"sum by (model) ({metric.exported_name}{MODEL}) / sum by (model) ({catalogue.DECODE_RATE.exported_name}{MODEL})"


def _per_batch(metric: str) -> str:
    batches = catalogue.BATCH_ITEMS.exported_name
    return f"{metric} / sum by (model) (rate({batches}_count{MODEL}[$__rate_interval]))"


ROWS: dict[str, tuple[Panel, ...]] = {
    "Load": (
        Panel(
            "Audio per second",
            "none",
            (
                (_rate(catalogue.AUDIO_SECONDS_RECEIVED, "model"), "{{model}} received"),
                (_rate(catalogue.AUDIO_SECONDS_TRANSCRIBED, "model"), "{{model}} transcribed"),
            ),
            "Seconds of audio per second: the RTFx of the server as a whole.",
        ),
        Panel(
            "Work of the models by lane",
            "none",
            ((_rate(catalogue.AUDIO_SECONDS_DECODED, "model, lane"), "{{model}} {{lane}}"),),
            "Seconds of audio decoded per second, with overlaps, left context and retries.",
        ),
        Panel("Requests", "reqps", ((_rate(catalogue.REQUESTS, "route, code", ""), "{{route}} {{code}}"),)),
        Panel(
            "In progress",
            "short",
            (
                (_sum(catalogue.REQUESTS_IN_PROGRESS), "requests"),
                (_sum(catalogue.LIVE_STREAMS), "streams"),
                (f"sum by (model) ({catalogue.QUEUED_WINDOWS.exported_name}{MODEL})", "{{model}} queued windows"),
            ),
        ),
        Panel(
            "State of the models",
            "short",
            ((f"max by (model, state) ({catalogue.MODEL_STATE.exported_name}{MODEL}) > 0", "{{model}} {{state}}"),),
        ),
        Panel("Received bytes of uploads in progress", "bytes", ((_sum(catalogue.UPLOAD_SPOOL_BYTES), "bytes"),)),
    ),
    "Latency": (
        Panel("Requests", "s", _quantiles(catalogue.REQUEST_LATENCY_SECONDS, "route", '{route=~"/v1/audio/.*"}')),
        Panel(
            "Real-time factor of files",
            "none",
            _quantiles(catalogue.REQUEST_RTF, "model, entry_point"),
            "Below 1, a file takes less time than it lasts.",
        ),
        Panel("First text", "s", _quantiles(catalogue.FIRST_TEXT_LATENCY_SECONDS, "model, entry_point")),
        Panel("Final text of live streams: lag", "s", _quantiles(catalogue.LIVE_FINAL_LAG_SECONDS, "model, entry_point")),
        Panel("Windows in the queue of a replica", "s", _quantiles(catalogue.QUEUE_SECONDS, "model, lane", shares=(0.95,))),
        Panel("Loading a model", "s", _loads(), "Of all replicas since Ray was started."),
    ),
    "Replicas": (
        Panel(
            "Share of the time that is busy",
            "percentunit",
            ((_rate(catalogue.BUSY_SECONDS, "model, stage, replica"), "{{model}} {{stage}} {{replica}}"),),
        ),
        Panel("Duration of a batch", "s", _quantiles(catalogue.STEP_SECONDS, "model, stage")),
        Panel(
            "Windows per batch, mean",
            "none",
            (
                (
                    _per_batch(f"sum by (model) (rate({catalogue.QUEUE_SECONDS.exported_name}_count{MODEL}[$__rate_interval]))"),
                    "{{model}}",
                ),
            ),
        ),
        Panel("Audio per batch", "s", _quantiles(catalogue.BATCH_AUDIO_SECONDS, "model")),
        Panel("Padding per batch", "percentunit", _quantiles(catalogue.BATCH_PADDING_RATIO, "model")),
        Panel(
            "Replicas",
            "short",
            (
                ("sum by (deployment) (ray_serve_deployment_replica_healthy)", "{{deployment}} healthy"),
                ("max by (deployment) (ray_serve_autoscaling_target_replicas)", "{{deployment}} wanted"),
            ),
            "Metrics of Ray Serve.",
        ),
        Panel(
            "Audio that is left, in time of the replicas",
            "s",
            ((_in_replica_time(catalogue.REMAINING_AUDIO_SECONDS), "{{model}}"),),
            "How long the replicas need for the files that are there. Replicas are added above `target_wait_s`.",
        ),
        Panel(
            "Live streams, share of the replicas",
            "percentunit",
            ((_in_replica_time(catalogue.LIVE_LOAD), "{{model}}"),),
            "Replicas are added above 1.",
        ),
    ),
    "Speakers": (
        Panel(
            "Audio per second",
            "none",
            ((_rate(catalogue.DIARIZER_AUDIO_SECONDS, "diarizer", ""), "{{diarizer}}"),),
            "Seconds of audio in which diarizers looked for speakers, per second.",
        ),
        Panel("Duration of a step", "s", _quantiles(catalogue.DIARIZER_STEP_SECONDS, "diarizer", "")),
        Panel(
            "Steps sent again, per minute",
            "short",
            ((f"60 * {_rate(catalogue.DIARIZER_STEPS_RETRIED, 'diarizer', '')}", "{{diarizer}}"),),
        ),
    ),
    "Jobs": (
        Panel("In progress", "short", ((_sum(catalogue.JOBS_RUNNING), "jobs"),)),
        Panel("Ended, per minute", "short", ((f"60 * {_rate(catalogue.JOBS_ENDED, 'state', '')}", "{{state}}"),)),
        Panel("Webhooks, per minute", "short", ((f"60 * {_rate(catalogue.WEBHOOK_TRIES, 'outcome', '')}", "{{outcome}}"),)),
    ),
    "Failures": (
        Panel(
            "Failures",
            "reqps",
            ((_rate(catalogue.FAILURES, "route, error", ""), "{{route}} {{error}}"),),
            "Of answers, event streams and sessions; the code that clients get.",
        ),
        Panel(
            "Windows sent again, per minute",
            "short",
            ((f"60 * {_rate(catalogue.WINDOWS_RETRIED, 'model')}", "{{model}}"),),
            "Their replica was lost.",
        ),
        Panel("Gaps decoded again, per minute", "short", ((f"60 * {_rate(catalogue.GAPS_REDECODED, 'model')}", "{{model}}"),)),
        Panel(
            "Decoder processes",
            "short",
            (
                (_sum(catalogue.DECODER_PROCESSES), "running"),
                (f"60 * sum (rate({catalogue.DECODER_FAILURES.exported_name}[$__rate_interval]))", "failures per minute"),
            ),
        ),
    ),
}


def queries() -> list[str]:
    """Every query of the dashboard, with Grafana's variables in it."""
    return [query for panels in ROWS.values() for panel in panels for query, _ in panel.queries]


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's JSON model."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y += 1
        for number, panel in enumerate(row):
            x = number % COLUMNS * WIDTH
            panels.append(_graph(panel, {"x": x, "y": y + number // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT}))
        y += -(-len(row) // COLUMNS) * HEIGHT
    return {
        "uid": "parakeet-ray-serve",
        "title": "Parakeet on Ray Serve",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_variable("datasource", "datasource", "prometheus"), _model_variable()]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }


def _graph(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {"refId": chr(ord("A") + number), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for number, (query, legend) in enumerate(panel.queries)
        ],
    }


def _variable(name: str, kind: str, query: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "query": query, **fields}


def _model_variable() -> dict[str, Any]:
    query = f"label_values({catalogue.MODEL_STATE.exported_name}, model)"
    every = {"text": "All", "value": "$__all"}
    return _variable(
        "model", "query", query, datasource=SOURCE, refresh=2, includeAll=True, multi=True, allValue=".*", current=every
    )


def text() -> str:
    """The content of the file."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
