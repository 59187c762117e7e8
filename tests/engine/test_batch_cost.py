"""What a batch costs: the measurements, and the line through them."""

from collections.abc import Sequence

import numpy as np
import pytest

from serve_app.engine.batch_cost import MAX_LOSS, MEASURE_S, SHORT_S, BatchCost, Measurement, measure
from serve_app.errors import EngineOutOfMemory
from serve_app.window import SAMPLE_RATE, Samples

SPEECH = np.arange(1, 3 * SAMPLE_RATE, dtype=np.int16)


class Device:
    """Has its own clock, and a limit of memory."""

    def __init__(self, step_s: float, per_audio_s: float, fits_s: float = np.inf) -> None:
        self._step_s, self._per_audio_s, self._fits_s = step_s, per_audio_s, fits_s
        self.time_s = 0.0
        self.batches: list[tuple[int, float]] = []
        """Windows, and length of the longest one, seconds."""

    def run(self, windows: Sequence[Samples]) -> None:
        length_s = max(map(len, windows)) / SAMPLE_RATE
        if length_s * len(windows) > self._fits_s:
            raise EngineOutOfMemory("too much")
        assert all(np.all(window) for window in windows)
        self.time_s += self._step_s + self._per_audio_s * length_s * len(windows)
        self.batches.append((len(windows), length_s))

    def measure(self, max_windows: int = 64) -> list[Measurement]:
        return measure(self.run, SPEECH, window_s=32.0, max_windows=max_windows, now_s=lambda: self.time_s)


@pytest.mark.parametrize(("step_s", "per_audio_s"), [(0.03, 0.00015), (0.005, 0.002), (0.05, 0.125), (0.0, 0.01)])
def test_the_cost_is_found_whatever_the_device(step_s: float, per_audio_s: float) -> None:
    cost = BatchCost.fit(Device(step_s, per_audio_s).measure())
    assert (cost.step_s, cost.per_audio_s) == pytest.approx((step_s, per_audio_s), abs=1e-9)


def test_all_sizes_are_measured_where_there_is_time() -> None:
    device = Device(1e-4, 1e-5)
    assert [m.padded_s for m in device.measure(max_windows=5)] == [SHORT_S, 32.0, 64.0, 128.0, 160.0]
    assert max(device.batches) == (5, 32.0)


def test_a_slow_device_is_measured_with_two_sizes_once_each() -> None:
    device = Device(0.1, 1.0)
    assert len(device.measure()) == 2
    assert device.batches == [(1, SHORT_S), (1, 32.0)]


def test_the_time_is_limited() -> None:
    device = Device(0.01, 0.001)
    device.measure()
    assert device.time_s <= MEASURE_S


def test_it_ends_where_memory_does() -> None:
    assert [m.padded_s for m in Device(1e-4, 1e-5, fits_s=100).measure()] == [SHORT_S, 32.0, 64.0]
    with pytest.raises(EngineOutOfMemory):
        Device(1e-4, 1e-5, fits_s=10).measure()


@pytest.mark.parametrize(
    ("durations_s", "expected"),
    [
        pytest.param([0.3, 0.3, 0.3], BatchCost(0.3, 0.0), id="only a step"),
        pytest.param([0.4, 0.3, 0.2], BatchCost(0.3, 0.0), id="falling"),
        pytest.param([0.01, 0.4, 1.6], BatchCost(0.0, 0.0089), id="more than in proportion"),
    ],
)
def test_noise_gives_no_negative_cost(durations_s: list[float], expected: BatchCost) -> None:
    cost = BatchCost.fit([Measurement(p, d) for p, d in zip((2.0, 32.0, 64.0), durations_s, strict=True)])
    assert (cost.step_s, cost.per_audio_s) == pytest.approx((expected.step_s, expected.per_audio_s), rel=0.6)
    assert min(cost.step_s, cost.per_audio_s) >= 0


def test_an_efficient_batch_wastes_little() -> None:
    cost = BatchCost(0.03, 0.001)
    audio_s = cost.efficient_audio_s()
    assert (cost.step_s + cost.per_audio_s * audio_s) / audio_s == pytest.approx((1 + MAX_LOSS) * cost.per_audio_s)
    assert BatchCost(0.03, 0.0).efficient_audio_s() == np.inf
    assert BatchCost(0.0, 0.1).efficient_audio_s() == 0


@pytest.mark.parametrize(
    ("costs", "efficient_s"),
    [
        pytest.param([9.0, 2.0, 1.5, 1.01, 1.0], 128.0, id="a larger one hardly gains"),
        pytest.param([9.0, 2.0, 1.0, 1.2, 1.4], 64.0, id="larger ones lose"),
        pytest.param([1.0, 1.0, 1.0, 1.0, 1.0], 32.0, id="size does not matter"),
        pytest.param([1.0, 2.0, 1.8, 1.7, 1.7], 128.0, id="the short one was measured in a better moment"),
        pytest.param([9.0, 4.0, 2.0, 1.5, 1.0], 256.0, id="still gaining"),
    ],
)
def test_the_efficient_size_is_one_that_was_measured(costs: list[float], efficient_s: float) -> None:
    sizes = (SHORT_S, 32.0, 64.0, 128.0, 256.0)
    measured = tuple(Measurement(size, size * cost) for size, cost in zip(sizes, costs, strict=True))
    assert BatchCost(1.0, 1.0, measured).efficient_audio_s() == efficient_s


def test_a_device_that_still_gained_with_the_largest_batch_gets_larger_ones() -> None:
    measured = (Measurement(2.0, 302.0), Measurement(32.0, 332.0))
    assert BatchCost(300.0, 1.0, measured).efficient_audio_s() == pytest.approx(10_000)


def test_audio_that_takes_a_time() -> None:
    assert BatchCost(0.05, 0.001).audio_of(0.25) == pytest.approx(250)
    assert BatchCost(0.05, 0.0).audio_of(0.25) == np.inf
