"""A recorder of metrics that tests can read."""

from collections import defaultdict

from serve_app.observe.catalogue import METRICS, Metric


class MemoryRecorder:
    """Keeps every value, by metric and labels. Fails where a metric is not in the catalogue or its labels do not fit."""

    def __init__(self) -> None:
        self._values: defaultdict[tuple[str, tuple[str, ...]], list[float]] = defaultdict(list)

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """See Recorder."""
        assert metric in METRICS
        assert len(labels) == len(metric.labels), metric.name
        self._values[metric.name, labels].append(value)

    def values(self, metric: Metric, *labels: str) -> list[float]:
        """What was recorded, in its order."""
        return self._values.get((metric.name, labels), [])

    def total(self, metric: Metric, *labels: str) -> float:
        """Of a counter."""
        return sum(self.values(metric, *labels))

    def labels(self, metric: Metric) -> set[tuple[str, ...]]:
        """All labels with which it was recorded."""
        return {labels for name, labels in self._values if name == metric.name}
