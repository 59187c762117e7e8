"""The work for cues is bounded whatever the words, their times and the rules, and it can be ended."""

import pytest

from serve_app.output import cues
from serve_app.output.cues import MAX_CUE_UNITS, CueRules, shape
from serve_app.transcript import Segment, Word
from tests.output.test_cues import speech

WIDEST = CueRules(max_lines=10, max_line_chars=500, max_cue_s=60.0)
"""The largest cues that a request may ask for."""


def at_one_instant(words: int) -> list[Segment]:
    return [Segment(0, "", 1.0, 1.0, tuple(Word("a", 1.0, 1.0, confidence=1.0) for _ in range(words)), ())]


def test_words_at_one_instant_take_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates, reading_ms = 0, cues._reading_ms

    def counted(chars: int, rules: CueRules) -> int:
        nonlocal candidates
        candidates += 1
        return reading_ms(chars, rules)

    monkeypatch.setattr(cues, "_reading_ms", counted)
    shaped = shape(at_one_instant(1000), WIDEST)
    assert candidates <= (1000 + len(shaped)) * MAX_CUE_UNITS
    assert sum(len(line.split()) for cue in shaped for line in cue.lines) == 1000


@pytest.mark.parametrize("rules", [CueRules(), CueRules(max_lines=3, max_line_chars=80, max_cue_s=12.0), WIDEST], ids=str)
def test_the_bound_does_not_change_the_cues_of_speech(monkeypatch: pytest.MonkeyPatch, rules: CueRules) -> None:
    segments = speech(300)
    bounded = shape(segments, rules)
    monkeypatch.setattr(cues, "MAX_CUE_UNITS", 10**9)
    assert shape(segments, rules) == bounded


def test_it_ends_when_a_checkpoint_raises() -> None:
    calls = 0

    def checkpoint() -> None:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shape(at_one_instant(1000), WIDEST, checkpoint=checkpoint)
    assert calls == 10
