"""Records metrics with Ray, whose exporter on every node has them in Prometheus' format.

Every process sends what it has counted to the exporter of its node every RAY_metrics_report_interval_ms (10 s by default). Serve
adds the deployment, the replica and the application to the labels. The sum of a histogram is an estimate: Ray's exporter gets
the counts of the buckets alone, and takes the middle of a bucket for each value in it.
"""

from collections.abc import Callable
from typing import Any, cast

from ray.serve import metrics

from serve_app.observe.catalogue import METRICS, PREFIX, Metric


class RayRecorder:
    """See Recorder. For the constructor of a Serve deployment, since the labels name its replica."""

    def __init__(self) -> None:
        self._takers = {metric.name: _taker(metric) for metric in METRICS}

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """See Recorder."""
        # Ray refuses NumPy's numbers.
        self._takers[metric.name](float(value), dict(zip(metric.labels, labels, strict=True)))


def _taker(metric: Metric) -> Callable[[float, dict[str, str]], None]:
    """Register a metric with Ray. Returns a function that takes a value and the labels."""
    name, labels = PREFIX + metric.name, cast(Any, metric.labels)  # Ray's annotation allows one label only
    match metric.kind:
        case "counter":
            counter = metrics.Counter(name, metric.meaning, labels)
            # `inc` refuses 0, by which a series comes to exist.
            return lambda value, tags: counter.inc(value, tags) if value > 0 else counter._record(0.0, tags)
        case "gauge":
            return metrics.Gauge(name, metric.meaning, labels).set
        case "histogram":
            return metrics.Histogram(name, metric.meaning, list(metric.buckets), labels).observe
