"""What the jobs of an ingress still need."""

import numpy as np
import pytest

from serve_app.cluster.demand import LIVE_MEMORY_S, Demand, DemandMeter
from serve_app.events import Done, Progress
from serve_app.live.windows import LiveWindows
from serve_app.window import SAMPLE_RATE, Window

WINDOWS = LiveWindows(step=SAMPLE_RATE // 2, left=8 * SAMPLE_RATE, right=2 * SAMPLE_RATE, max_window=30 * SAMPLE_RATE)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def window(start_s: float, end_s: float) -> Window:
    return Window(0, round(start_s * SAMPLE_RATE), np.zeros(round((end_s - start_s) * SAMPLE_RATE), np.int16))


class TestFiles:
    def test_what_the_file_announces_less_what_is_transcribed(self) -> None:
        meter = DemandMeter(max_audio_s=1000)
        with meter.file("m") as file:
            assert meter.of("m") == Demand()
            file.planned(30, announced_s=300)
            assert meter.of("m").remaining_s == 300
            file.take(Progress(1, 2, 30))
            file.planned(60, announced_s=300)
            assert meter.of("m").remaining_s == 270
            with meter.file("m") as other, meter.file("another model") as elsewhere:
                other.planned(5, None)
                elsewhere.planned(7, None)
                assert meter.of("m").remaining_s == 275
            assert meter.of("m").remaining_s == 270, "a file that ends, however it does, needs nothing"
        assert meter.of("m") == Demand()

    def test_what_is_planned_where_the_file_announces_nothing_or_too_little(self) -> None:
        with DemandMeter(1000).file("m") as file:
            file.planned(30, None)
            file.planned(60, announced_s=10)
            file.take(Progress(1, 2, 20))
            assert file.remaining_s == 40

    def test_no_file_is_longer_than_the_limit(self) -> None:
        with DemandMeter(1000).file("m") as file:
            file.planned(30, announced_s=1e9)
            assert file.remaining_s == 1000

    def test_a_file_that_ends_early_is_done(self) -> None:
        with DemandMeter(1000).file("m") as file:
            file.planned(30, announced_s=900)
            file.take(Progress(1, 1, 30))
            file.take(Done((), 30))
            assert file.remaining_s == 0


class TestStreams:
    @staticmethod
    def load_of(decoded_step_s: float, *, seconds: float = 60) -> float:
        """Load of a stream whose steps are `decoded_step_s`, after so long."""
        clock = Clock()
        meter = DemandMeter(1000, clock)
        stream = meter.stream("m", WINDOWS)
        while clock.now_s < seconds:
            clock.now_s += decoded_step_s
            stream.decodes(window(clock.now_s - decoded_step_s - 10, clock.now_s), is_active=True)
        return meter.of("m").live_load

    def test_the_audio_of_its_windows_per_second(self) -> None:
        assert self.load_of(0.5) == pytest.approx(10.5 / 0.5, rel=0.1)

    def test_where_replicas_are_too_slow_it_needs_no_less(self) -> None:
        in_time, late = self.load_of(0.5), self.load_of(2.0)
        decoded_meanwhile = 12 / 2.0
        assert late == pytest.approx(in_time, rel=0.4)
        assert late > 2 * decoded_meanwhile

    def test_a_late_step_at_the_start_of_an_utterance_counts_as_the_windows_that_should_have_grown(self) -> None:
        clock = Clock()
        meter = DemandMeter(1000, clock)
        meter.stream("m", WINDOWS).decodes(window(0, 3), is_active=True)
        grown_s = sum((0.5, 1.0, 1.5, 2.0, 2.5, 3.0))
        assert meter.of("m").live_load == pytest.approx(grown_s / LIVE_MEMORY_S)

    def test_steps_in_silence_are_long_on_purpose(self) -> None:
        clock = Clock()
        meter = DemandMeter(1000, clock)
        stream = meter.stream("m", WINDOWS)
        stream.decodes(window(0, 8), is_active=False)
        assert meter.of("m").live_load == pytest.approx(8 / LIVE_MEMORY_S)

    def test_a_stream_that_pauses_or_ends_needs_nothing(self) -> None:
        clock = Clock()
        meter = DemandMeter(1000, clock)
        meter.stream("m", WINDOWS).decodes(window(0, 8), is_active=True)
        clock.now_s = 20 * LIVE_MEMORY_S
        assert meter.of("m") == Demand()


def test_totals() -> None:
    assert Demand.total([Demand(1, 2), Demand(3, 4)]) == Demand(4, 6)
    assert Demand.total([]) == Demand()
