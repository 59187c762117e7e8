"""Every metric is recorded, documented and shown, and nothing else is."""

import json
import re

import pytest
import yaml

from serve_app.observe import catalogue
from serve_app.observe.catalogue import METRICS, Metric
from serve_app.observe.node_exporter import SERVE_METRICS
from testing.paths import ROOT
from tools import grafana_dashboard, metrics_table

OPERATING = (ROOT / "docs" / "operating.md").read_text()
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
EXPRESSIONS = [*grafana_dashboard.queries(), *(rule["expr"] for rule in RULES)]
UNITS = ("seconds", "bytes", "ratio", "rtf", "items")
COUNTED = {"requests", "streams", "processes", "failures", "windows", "gaps", "progress", "retried", "redecoded"}
SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}


def exported(metrics: tuple[Metric, ...]) -> set[str]:
    return {metric.exported_name + suffix for metric in metrics for suffix in SUFFIXES[metric.kind]}


def test_the_docs_contain_the_current_table_of_metrics() -> None:
    """`python -m tools.metrics_table` prints the current table."""
    assert metrics_table.table() in OPERATING


def test_the_docs_name_no_other_metric() -> None:
    named = set(re.findall(r"ray_parakeet_[a-z_]+[a-z]", OPERATING))
    assert named == {metric.exported_name for metric in METRICS}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_have_units(metric: Metric) -> None:
    words = set(metric.name.split("_"))
    assert words & (set(UNITS) | COUNTED) or metric is catalogue.MODEL_STATE


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_buckets_ascend_from_above_zero(metric: Metric) -> None:
    """Ray refuses others."""
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert all(bucket > 0 for bucket in metric.buckets)


def test_every_metric_is_recorded_somewhere() -> None:
    code = "".join(path.read_text() for path in (ROOT / "serve_app").rglob("*.py") if path.name != "catalogue.py")
    constants = {name for name, value in vars(catalogue).items() if isinstance(value, Metric)}
    assert {name for name in constants if f"catalogue.{name}" not in code} == set()


def test_the_dashboard_and_the_alerts_use_metrics_that_exist() -> None:
    used = set(re.findall(r"ray_parakeet_\w+", " ".join(EXPRESSIONS)))
    assert used - exported(METRICS) == set()


def test_metrics_of_serve_that_are_used_are_passed_on() -> None:
    assert set(re.findall(r"ray_serve_\w+", " ".join(EXPRESSIONS))) == set(SERVE_METRICS)


def test_the_dashboard_shows_every_metric() -> None:
    queries = " ".join(grafana_dashboard.queries())
    assert {metric.name for metric in METRICS if metric.exported_name not in queries} == set()


def test_the_dashboard_shows_the_models_that_are_chosen() -> None:
    of_models = "|".join(metric.exported_name for metric in METRICS if "model" in metric.labels)
    for query in grafana_dashboard.queries():
        for after in re.findall(rf"(?:{of_models})(?:_bucket|_count)?(?!\w)(.{{0,9}})", query):
            assert after.startswith("{model=~"), query


def test_the_dashboard_is_the_one_of_the_tool() -> None:
    """`python -m tools.grafana_dashboard` writes it."""
    assert grafana_dashboard.FILE.read_text() == grafana_dashboard.text()


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in json.loads(grafana_dashboard.text())["panels"]:
        place = panel["gridPos"]
        new = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not new & cells, panel["title"]
        assert max(x for x, _ in new) < 24
        cells |= new


def test_every_alert_has_a_runbook() -> None:
    assert re.findall(r"^### (Parakeet\w+)$", OPERATING, re.MULTILINE) == [rule["alert"] for rule in RULES]
