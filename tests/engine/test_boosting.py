"""Phrase boosting on the bundled model: which tokens it changes, and which it must not change."""

from collections.abc import Sequence
from typing import Any

import pytest
from nemo.collections.asr.parts.context_biasing.biasing_multi_model import GPUBiasingMultiModel

from serve_app.engine.boosting import MAX_TREES
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.output.segments import Segmenter
from serve_app.transcript import Token
from serve_app.window import Keywords, Samples
from testing.digit_strings import DigitString, to_int16
from tests.conftest import MISRECOGNISED

BATCH = 32


@pytest.fixture(scope="module")
def spoken(noisy_strings: list[DigitString]) -> list[DigitString]:
    return noisy_strings[:BATCH]


@pytest.fixture(scope="module")
def windows(spoken: list[DigitString]) -> list[Samples]:
    return [to_int16(string.samples) for string in spoken]


@pytest.fixture(scope="module")
def plain(engine: ParakeetEngine, windows: list[Samples]) -> list[list[Token]]:
    return engine.transcribe(windows)


def text(tokens: Sequence[Token]) -> str:
    segmenter = Segmenter()
    return " ".join(segment.text for segment in segmenter.add(tokens) + segmenter.finish())


def only_for(index: int, keywords: Keywords) -> list[Keywords]:
    return [keywords if n == index else () for n in range(BATCH)]


def test_a_phrase_that_is_otherwise_missed_is_recognised_and_the_rest_of_the_batch_unchanged(
    engine: ParakeetEngine, spoken: list[DigitString], windows: list[Samples], plain: list[list[Token]]
) -> None:
    phrase = spoken[MISRECOGNISED].text.rstrip(".")
    assert text(plain[MISRECOGNISED]) != spoken[MISRECOGNISED].text
    boosted = engine.transcribe(windows, only_for(MISRECOGNISED, (phrase.lower(),)))
    assert text(boosted[MISRECOGNISED]) == spoken[MISRECOGNISED].text
    for n in range(BATCH):
        assert n == MISRECOGNISED or boosted[n] == plain[n]


def test_every_window_has_its_own_phrases(
    engine: ParakeetEngine, spoken: list[DigitString], windows: list[Samples], plain: list[list[Token]]
) -> None:
    own = [(string.text.rstrip("."),) for string in spoken]
    together = engine.transcribe(windows, own)
    assert together[MISRECOGNISED] != plain[MISRECOGNISED]
    for n in range(0, BATCH, 5):
        (alone,) = engine.transcribe([windows[n]], [own[n]])
        assert [token.token_id for token in alone] == [token.token_id for token in together[n]]


def test_confidence_is_that_of_the_model_without_boosting(engine: ParakeetEngine, windows: list[Samples]) -> None:
    """So a word that is there only because of boosting has a low confidence."""
    (boosted,) = engine.transcribe([windows[MISRECOGNISED]], [("Three six four zero five",)])
    assert 0 < min(token.confidence for token in boosted) < 0.5


def test_phrases_that_are_not_spoken_do_not_appear_in_clear_speech(engine: ParakeetEngine, strings: list[DigitString]) -> None:
    clear = [to_int16(string.samples) for string in strings]
    unspoken = ("nine nine nine", "zero zero eight", "one five five five", "seven")
    assert list(map(text, engine.transcribe(clear, [unspoken] * len(clear)))) == [string.text for string in strings]


@pytest.mark.parametrize("keywords", [("日本",), ("#!",), ("Ł", "日")])
def test_phrases_outside_the_vocabulary_change_nothing(
    engine: ParakeetEngine, windows: list[Samples], plain: list[list[Token]], keywords: Keywords
) -> None:
    assert engine.transcribe(windows, [keywords] * BATCH) == plain


def test_more_lists_in_succession_than_trees_are_kept(
    engine: ParakeetEngine, spoken: list[DigitString], windows: list[Samples]
) -> None:
    phrase = (spoken[MISRECOGNISED].text.rstrip("."),)
    window = [windows[MISRECOGNISED]]
    (first,) = engine.transcribe(window, [phrase])
    for n in range(MAX_TREES + 5):
        engine.transcribe([windows[0][:16_000]], [(f"one {'two ' * (n % 9)}three{' four' * (n // 9)}",)])
    assert engine.transcribe(window, [phrase]) == [first]
    decoder: Any = engine._decoder
    booster = decoder._booster
    assert booster is not None
    assert len(booster._requests) == MAX_TREES


def test_more_lists_in_a_batch_than_trees_are_kept(engine: ParakeetEngine, windows: list[Samples]) -> None:
    count = MAX_TREES + 6
    lists: list[Keywords] = [(f"two {'one ' * (n % 9)}five{' six' * (n // 9)}",) for n in range(count)]
    short = [windows[n % BATCH][:24_000] for n in range(count)]
    together = engine.transcribe(short, lists)
    decoder: Any = engine._decoder
    for n in (0, 7, count - 1):
        decoder._booster = None
        assert engine.transcribe(short, [lists[n] if i == n else () for i in range(count)])[n] == together[n]


def test_the_decoder_is_replaced_after_a_failure(
    engine: ParakeetEngine, windows: list[Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    window, phrases = [windows[MISRECOGNISED]], [("Three six four zero five",)]
    before = engine.transcribe(window, phrases)
    with monkeypatch.context() as broken:
        broken.setattr(GPUBiasingMultiModel, "add_model", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.transcribe(window, [("nine nine eight nine",)])
    decoder: Any = engine._decoder
    assert decoder._booster is None
    assert engine.transcribe(window, phrases) == before
