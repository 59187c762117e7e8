"""How many replicas a model gets: as many as bring the wait of the audio that is there under `target_wait_s`.

Ray pickles this module into Serve's controller, where nothing else of serve_app can be imported: standard library only.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol

REMAINING = "remaining_audio_seconds"
"""Audio of files that is not transcribed yet, of the whole cluster, seconds. Every replica publishes the same."""

LIVE = "live_audio_seconds_per_second"
"""Audio that live streams need decoded, of the whole cluster, seconds per second. Every replica publishes the same."""

RATE = "decode_rate"
"""Audio that the replica decodes in full batches, seconds per second."""

RECENT_POINTS = 5
"""Values, published a second apart, whose mean counts before replicas are removed."""


class Point(Protocol):
    """One value that a replica has published."""

    value: float


class Config(Protocol):
    """The part of Serve's AutoscalingConfig that is read here."""

    def get_target_ongoing_requests(self) -> float: ...


class Context(Protocol):
    """The part of Serve's AutoscalingContext that is read here."""

    current_num_replicas: int
    """Running, so loaded."""
    target_num_replicas: int
    config: Any
    """A Config."""

    @property
    def total_num_requests(self) -> float:
        """Calls in flight, mean of the look-back period."""
        ...

    @property
    def raw_metrics(self) -> Mapping[str, Mapping[Any, Sequence[Point]]] | None:
        """What each running replica has published in the look-back period, oldest first."""
        ...


def published(remaining_s: float, live_load: float, rate: float) -> dict[str, float]:
    """What a replica publishes. Serve gives up on a replica whose first values are no numbers."""
    return {REMAINING: float(remaining_s), LIVE: float(live_load), RATE: float(rate)}


class AudioPolicy:
    """Serve calls it ten times a second for every model; it applies bounds and delays itself, and wakes a model without replicas.

    Without state: a class only because Serve passes `policy_kwargs` to classes alone.
    """

    def __init__(self, target_wait_s: float) -> None:
        """`target_wait_s`: the audio of files that is there should be transcribed within it, seconds."""
        self._target_wait_s = target_wait_s

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """The number of replicas wanted, and no state.

        More replicas are wanted by the newest values, fewer by the mean of the last few: a moment between two files is no lack of
        demand. Streams may keep their replicas busy all the time: steps become a little longer, not late.
        """
        if context.current_num_replicas == 0:
            return max(context.target_num_replicas, math.ceil(min(1.0, context.total_num_requests))), {}
        metrics = context.raw_metrics or {}
        remaining, live, rates = (
            [list(series) for series in metrics.get(name, {}).values() if series] for name in (REMAINING, LIVE, RATE)
        )
        if not (remaining and live and rates):
            return math.ceil(context.total_num_requests / context.config.get_target_ongoing_requests()), {}
        # Every replica publishes the demand of the whole cluster, some a moment later than others: a maximum, not a sum.
        rate = fmean(map(_newest, rates))
        needed_now = self._needed(max(map(_newest, remaining)), max(map(_newest, live)), rate)
        needed_lately = self._needed(max(map(_mean, remaining)), max(map(_mean, live)), rate)
        # A call in flight without demand: a job that has not been cut into windows yet, or one that has just ended.
        least = 1 if context.total_num_requests > 0 else 0
        return max(least, needed_now, min(context.target_num_replicas, needed_lately)), {}

    def _needed(self, remaining_s: float, live_load: float, rate: float) -> int:
        return math.ceil(remaining_s / (rate * self._target_wait_s) + live_load / rate)


def _newest(series: Sequence[Point]) -> float:
    return series[-1].value


def _mean(series: Sequence[Point]) -> float:
    return fmean(point.value for point in series[-RECENT_POINTS:])
