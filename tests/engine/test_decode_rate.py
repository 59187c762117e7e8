"""The measured rate of a replica, in virtual time."""

import pytest

from serve_app.engine.batch_cost import BatchCost
from serve_app.engine.decode_rate import MAX_RATE, MEMORY_S, DecodeRate


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def decode(rate: DecodeRate, clock: Clock, audio_s: float, busy_s: float) -> None:
    rate.begin(audio_s)
    clock.now_s += busy_s
    rate.end()
    clock.now_s += 100.0  # idle


def test_until_a_batch_was_decoded_it_is_that_of_a_full_batch_as_measured_at_load() -> None:
    assert DecodeRate(BatchCost(0.5, 0.005), full_audio_s=100).value == pytest.approx(100 / (0.5 + 0.5))


def test_it_follows_full_batches() -> None:
    clock = Clock()
    rate = DecodeRate(BatchCost(0.0, 0.01), 100, clock)
    decode(rate, clock, 100, 2.0)
    first = rate.value
    assert 50 < first < 100
    for _ in range(round(10 * MEMORY_S)):
        decode(rate, clock, 100, 2.0)
    assert rate.value == pytest.approx(50, rel=0.01)


def test_small_batches_say_nothing() -> None:
    clock = Clock()
    rate = DecodeRate(BatchCost(0.0, 0.01), 100, clock)
    for _ in range(100):
        decode(rate, clock, 2, 0.3)
    assert rate.value == 100


def test_items_that_are_repeated_after_their_batch_failed_do_not_count() -> None:
    clock = Clock()
    rate = DecodeRate(BatchCost(0.0, 0.01), 100, clock)
    decode(rate, clock, 100, 2.0)
    of_the_batch = rate.value
    for _ in range(10):
        clock.now_s += 0.1
        rate.end()
    assert rate.value == of_the_batch


def test_an_engine_that_takes_no_time() -> None:
    clock = Clock()
    rate = DecodeRate(BatchCost(0.0, 0.0), 100, clock)
    assert rate.value == MAX_RATE
    decode(rate, clock, 100, 0.0)
    assert rate.value == MAX_RATE
