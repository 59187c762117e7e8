"""What a batch costs on this device: measured when a model is loaded, it sizes batches. It never moves a window: a transcript
is the same whatever was measured."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from serve_app.errors import EngineOutOfMemory
from serve_app.window import SAMPLE_RATE, Samples

MAX_LOSS = 0.03
"""A batch is large enough when a larger one would save less than this share of the time for a second of audio."""

MEASURE_S = 1.5
"""Time for all measurements, seconds. At least two are made, however long they take."""

MIN_RUNS, MIN_RUNS_S = 2, 0.15
"""Each size runs at least as often, and as long, seconds; the fastest run counts. The first one also prepares the device for the
shape."""

SHORT_S = 2.0
"""Length of the shortest window that is measured, seconds, about that of a spoken command."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Duration of one batch."""

    padded_s: float
    """Its audio with padding, seconds: windows times the longest one."""
    duration_s: float


@dataclass(frozen=True, slots=True)
class BatchCost:
    """Duration of a batch: `step_s`, and `per_audio_s` for every second of its padded audio."""

    step_s: float
    per_audio_s: float
    measured: tuple[Measurement, ...] = ()
    """What it was found from, by size. Beside the line, kernels do better with some sizes than with others."""

    @classmethod
    def fit(cls, measurements: Sequence[Measurement]) -> "BatchCost":
        """The line with the least squared relative errors, without negative costs. Needs measurements of two sizes."""
        padded_s, durations_s = np.array([(m.padded_s, m.duration_s) for m in measurements]).T
        weights = 1 / durations_s
        (step_s, per_audio_s), *_ = np.linalg.lstsq(np.stack([weights, padded_s * weights], 1), np.ones_like(weights))
        if step_s < 0:
            return cls(0.0, float(np.mean(durations_s / padded_s)), tuple(measurements))
        if per_audio_s < 0:
            return cls(float(np.mean(durations_s)), 0.0, tuple(measurements))
        return cls(float(step_s), float(per_audio_s), tuple(measurements))

    def efficient_audio_s(self) -> float:
        """Padded audio of a batch, seconds, above which larger ones are hardly cheaper; see MAX_LOSS. May be infinite.

        The smallest of the measured sizes that is; by the line where the largest was still better than all others. At least one
        full window: the short one is for the line. Were it enough, short windows would have no batches at all, and other work on
        the machine can make it seem so.
        """
        by_line_s = self.step_s / (MAX_LOSS * self.per_audio_s) if self.per_audio_s else np.inf
        full = self.measured[1:]
        if not full:
            return by_line_s
        best = min(m.duration_s / m.padded_s for m in full)
        enough = next(m for m in full if m.duration_s / m.padded_s <= (1 + MAX_LOSS) * best)
        return max(enough.padded_s, by_line_s) if enough is full[-1] else enough.padded_s

    def audio_of(self, duration_s: float) -> float:
        """Padded audio that adds this long to a batch, seconds. May be infinite."""
        return duration_s / self.per_audio_s if self.per_audio_s else np.inf


def measure(
    run: Callable[[Sequence[Samples]], object],
    speech: Samples,
    *,
    window_s: float,
    max_windows: int,
    now_s: Callable[[], float] = time.perf_counter,
) -> list[Measurement]:
    """Durations of `run` for batches of `speech`, int16 [samples], repeated to the length of the windows: one of SHORT_S seconds,
    then 1, 2, 4, ... of `window_s` seconds, at most `max_windows`.

    It ends before a size that would exceed MEASURE_S, or where memory does not suffice. Raises EngineOutOfMemory where the first
    two do not fit, and whatever else `run` raises.
    """
    sizes = [(SHORT_S, 1), (window_s, 1)]
    while sizes[-1][1] < max_windows:
        sizes.append((window_s, min(2 * sizes[-1][1], max_windows)))
    measurements: list[Measurement] = []
    until_s = now_s() + MEASURE_S
    for length_s, windows in sizes:
        batch = [np.resize(speech, round(length_s * SAMPLE_RATE))] * windows
        durations_s: list[float] = []
        is_needed = len(measurements) < 2
        if not is_needed:
            largest = measurements[-1]
            expected_s = MIN_RUNS * largest.duration_s * windows * length_s / largest.padded_s
            if now_s() + expected_s > until_s:
                break
        try:
            while len(durations_s) < MIN_RUNS or sum(durations_s) < MIN_RUNS_S:
                began_s = now_s()
                run(batch)
                durations_s.append(now_s() - began_s)
                if is_needed and now_s() > until_s:
                    break
        except EngineOutOfMemory:
            if is_needed:
                raise
            break
        measurements.append(Measurement(length_s * windows, min(durations_s)))
    return measurements
