"""How the server records its metrics, whatever collects them. Pure."""

from typing import Protocol

from serve_app.observe.catalogue import Metric


class Recorder(Protocol):
    """Takes values of metrics. A call takes a few microseconds, and never fails for the value or the labels that it gets."""

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """Add `value` to a counter, set a gauge to it, or observe it in a histogram.

        `labels`: the values of the metric's labels, in their order. 0 makes a counter visible before it counts anything.
        """
        ...


class NoRecorder:
    """Records nothing: where no Ray runs."""

    def record(self, metric: Metric, value: float, *labels: str) -> None:
        """See Recorder."""


NO_RECORDER: Recorder = NoRecorder()
