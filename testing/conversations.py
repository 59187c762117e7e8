"""Conversations with known speakers and times: turns of spoken digits by several people, mixed with pauses and overlaps.

They train and evaluate the bundled diarizer. In a turn, a person is active from its first to its last word: the pauses between
words belong to it, as in the reference annotations of diarization.
"""

import random
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from testing.digit_strings import SAMPLE_RATE, Bank, DigitString, Pauses, Samples, SpokenWord, change_speed, compose

FRAME_SAMPLES = 1280
"""Samples per frame of the activity matrix (80 ms)."""

WITHIN_TURN = Pauses(lead_s=(0.0, 0.0), within_sentence_s=(0.03, 0.3), between_sentences_s=(0.03, 0.3), trail_s=(0.0, 0.0))
"""The pauses of a turn: all of them are short, so that a turn is one activity."""


@dataclass(frozen=True, slots=True)
class Voice:
    """A person of a bank, at a speed that shifts pitch and formants: far from 1, another person."""

    name: str
    speed: float = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """A half-open span of samples in which one speaker is active."""

    speaker: int
    """Place in `Conversation.voices`, which is the order of arrival."""
    start_sample: int
    end_sample: int
    words: tuple[SpokenWord, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """Audio, float32 [samples] at 16 kHz, and who is active when."""

    samples: Samples
    voices: tuple[Voice, ...]
    turns: tuple[Turn, ...]

    def activity(self, max_speakers: int) -> NDArray[np.bool_]:
        """Who is active in at least half of each frame: bool [frames, max_speakers]."""
        frames = -(-len(self.samples) // FRAME_SAMPLES)
        active = np.zeros((frames, max_speakers), bool)
        for turn in self.turns:
            active[round(turn.start_sample / FRAME_SAMPLES) : round(turn.end_sample / FRAME_SAMPLES), turn.speaker] = True
        return active


@dataclass(frozen=True, slots=True)
class Style:
    """How people talk; ranges are drawn from uniformly."""

    turn_words: tuple[int, int] = (1, 8)
    gap_s: tuple[float, float] = (0.1, 1.2)
    """Silence between two turns, seconds."""
    overlap_probability: float = 0.25
    """How often a turn begins before the one before it ended."""
    overlap_s: tuple[float, float] = (0.2, 1.2)
    level_db: tuple[float, float] = (-8.0, 0.0)
    """Level of a speaker."""
    introduction_s: tuple[float, float] | None = None
    """If given, everybody speaks for this long at the beginning, one after the other."""


USUAL = Style()


INTRODUCTION_WORDS = 16
"""Words of an introduction, before it is cut."""


def converse(
    bank: Bank, voices: list[Voice], duration_s: float, rng: random.Random, style: Style = USUAL, *, speed_jitter: float = 0.0
) -> Conversation:
    """A conversation of `duration_s` seconds among the voices, most of whom speak in the first half of it.

    A voice changes its speed by up to the fraction `speed_jitter` from turn to turn.
    """
    length = int(duration_s * SAMPLE_RATE)
    mixed = np.zeros(length, np.float32)
    gains = [10 ** (rng.uniform(*style.level_db) / 20) for _ in voices]
    turns: list[Turn] = []
    end, arrived, current = int(rng.uniform(0.0, style.gap_s[1]) * SAMPLE_RATE), 0, -1
    while True:
        introduction_s = style.introduction_s if arrived < len(voices) else None
        is_late = end >= length / (2 * len(voices)) * arrived
        if arrived < len(voices) and (introduction_s or is_late or rng.random() < 0.3):
            current, arrived = arrived, arrived + 1
        elif arrived > 1 and rng.random() < 0.85:
            current = rng.choice([speaker for speaker in range(arrived) if speaker != current])
        words = INTRODUCTION_WORDS if introduction_s else rng.randint(*style.turn_words)
        speed = voices[current].speed * rng.uniform(1 - speed_jitter, 1 + speed_jitter)
        spoken = _utterance(bank[voices[current].name], words, speed, rng)
        if introduction_s:
            spoken = _beginning(spoken, int(rng.uniform(*introduction_s) * SAMPLE_RATE))
        start = end + int(rng.uniform(*style.gap_s) * SAMPLE_RATE)
        others = turns and turns[-1].speaker != current and not introduction_s
        if others and rng.random() < style.overlap_probability:
            start = max(end - int(rng.uniform(*style.overlap_s) * SAMPLE_RATE), turns[-1].start_sample)
        if start + len(spoken.samples) > length:
            break
        mixed[start : start + len(spoken.samples)] += gains[current] * spoken.samples
        placed = tuple(replace(w, start_sample=start + w.start_sample, end_sample=start + w.end_sample) for w in spoken.words)
        turns.append(Turn(current, placed[0].start_sample, placed[-1].end_sample, placed))
        end = max(end, start + len(spoken.samples))
    turns.sort(key=lambda turn: turn.start_sample)
    return _in_order_of_arrival(Conversation(mixed, tuple(voices), tuple(turns)))


def _utterance(recordings: dict[int, list[Samples]], words: int, speed: float, rng: random.Random) -> DigitString:
    """Random digits, at another speed, with their times at that speed."""
    digits = [rng.randrange(10) for _ in range(words)]
    string = compose(recordings, digits, rng, WITHIN_TURN, sentence_words=(words, words), gain=(0.5, 1.0))
    if speed == 1.0:
        return string
    moved = [replace(w, start_sample=int(w.start_sample / speed), end_sample=int(w.end_sample / speed)) for w in string.words]
    return DigitString(change_speed(string.samples, speed), tuple(moved))


def _beginning(string: DigitString, samples: int) -> DigitString:
    """Cut anywhere, also through a word."""
    words = [replace(w, end_sample=min(w.end_sample, samples)) for w in string.words if w.start_sample < samples]
    return DigitString(string.samples[:samples], tuple(words))


def _in_order_of_arrival(conversation: Conversation) -> Conversation:
    """Overlaps may turn the order of the first turns around."""
    order = list(dict.fromkeys(turn.speaker for turn in conversation.turns))
    voices = tuple(conversation.voices[speaker] for speaker in order)
    turns = tuple(Turn(order.index(t.speaker), t.start_sample, t.end_sample, t.words) for t in conversation.turns)
    return Conversation(conversation.samples, voices, turns)
