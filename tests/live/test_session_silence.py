"""Live sessions: which audio without detected speech is decoded, and which is not, as a decoder could only invent words there."""

import numpy as np
import pytest

from serve_app.events import Done, UtteranceFinal
from serve_app.live.endpointing import VadEvent
from serve_app.live.session import MIN_UNDETECTED, SILENCE_PEAK, SILENT_STEP, LiveSession
from serve_app.live.windows import LiveWindows
from serve_app.window import SAMPLE_RATE, Samples
from testing.live_words import decoded, said, silence

WINDOWS = LiveWindows(step=6_400, left=8 * SAMPLE_RATE, right=2 * SAMPLE_RATE, max_window=30 * SAMPLE_RATE)


def noise(samples: int, peak: int = 100) -> Samples:
    return np.random.default_rng(0).integers(-peak, peak + 1, samples).astype(np.int16)


def test_a_short_utterance_without_speech_is_not_decoded() -> None:
    session = LiveSession(WINDOWS)
    session.push(noise(MIN_UNDETECTED - 1), possible_speech_until=0)
    session.commit()
    assert session.next_window() is None
    assert session.take_events() == [UtteranceFinal((MIN_UNDETECTED - 1) / SAMPLE_RATE)]


@pytest.mark.parametrize("is_committed", [True, False])
def test_digital_silence_does_not_make_noise_longer(is_committed: bool) -> None:
    session = LiveSession(WINDOWS)
    audio = np.concatenate([silence(SAMPLE_RATE), noise(MIN_UNDETECTED - 1), silence(SILENT_STEP)])
    session.push(audio, possible_speech_until=0)
    if is_committed:
        session.commit()
    assert session.next_window() is None
    assert session.backlog == 0


def test_a_short_step_within_speech_is_decoded() -> None:
    session = LiveSession(WINDOWS, pauses_end=False)
    session.push(noise(SILENT_STEP), [VadEvent(True, 0, 512)], 512)
    assert session.next_window() is not None
    session.add([])
    session.push(noise(WINDOWS.step), possible_speech_until=512)
    assert session.next_window() is not None


@pytest.mark.parametrize("possible_speech_until", [None, 512])
def test_a_short_utterance_that_may_hold_speech_is_decoded(possible_speech_until: int | None) -> None:
    session = LiveSession(WINDOWS)
    session.push(noise(1_024), possible_speech_until=possible_speech_until)
    session.commit()
    assert session.next_window() is not None


def test_speech_that_the_vad_misses_is_decoded() -> None:
    session = LiveSession(WINDOWS)
    session.push(noise(MIN_UNDETECTED), possible_speech_until=0)
    session.commit()
    assert session.next_window() is not None


def test_the_speech_of_an_earlier_utterance_does_not_count() -> None:
    words = said([5] * 5)
    session = LiveSession(WINDOWS)
    end = words[-1].end_sample
    session.push(noise(end + 4_000), possible_speech_until=end)
    session.commit()
    window = session.next_window()
    assert window is not None
    session.add(decoded(window, words))
    session.push(noise(3_200), possible_speech_until=end)
    session.finish()
    assert session.next_window() is None
    assert isinstance(session.take_events()[-1], Done)


@pytest.mark.parametrize(("peak", "is_decoded"), [(0, False), (SILENCE_PEAK, False), (SILENCE_PEAK + 1, True)])
def test_digital_silence_is_not_decoded(peak: int, is_decoded: bool) -> None:
    session = LiveSession(WINDOWS)
    session.push(noise(60 * SAMPLE_RATE, peak), possible_speech_until=0)
    assert (session.next_window() is not None) == is_decoded
    assert (session.backlog < SILENT_STEP) == (not is_decoded)


def test_digital_silence_after_words_that_are_not_final_is_decoded() -> None:
    words = said([5])
    session = LiveSession(WINDOWS)
    session.push(noise(words[0].end_sample + 6_400), possible_speech_until=words[0].end_sample)
    session.commit()
    session.push(silence(SAMPLE_RATE), possible_speech_until=words[0].end_sample)
    window = session.next_window()
    assert window is not None
    session.add(decoded(window, words))
    assert session.next_window() is None
