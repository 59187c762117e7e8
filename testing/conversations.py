"""Conversations with known speakers and times: turns of spoken digits by several people, mixed with pauses and overlaps.

They train and evaluate the bundled diarizer. A turn has one activity from its first to its last word: the pauses between its words
belong to it, as in the reference annotations of diarization.
"""

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testing.digit_strings import SAMPLE_RATE, Bank, Pauses, Samples, SpokenWord, change_speed, compose

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


USUAL = Style()


def converse(
    bank: Bank, voices: list[Voice], duration_s: float, rng: random.Random, style: Style = USUAL, *, speed_jitter: float = 0.0
) -> Conversation:
    """A conversation of about `duration_s` seconds in which every voice speaks: each at least once in the first half, in the order
    of `voices`, as far as the duration allows."""
    length = int(duration_s * SAMPLE_RATE)
    mixed = np.zeros(length, np.float32)
    gains = [10 ** (rng.uniform(*style.level_db) / 20) for _ in voices]
    turns: list[Turn] = []
    end, arrived, current = int(rng.uniform(0.05, 1.5) * SAMPLE_RATE), 0, -1
    patience = length / (2 * len(voices))
    while True:
        is_due = arrived < len(voices) and (arrived == 0 or end > patience * arrived or rng.random() < 0.3)
        if is_due:
            current, arrived = arrived, arrived + 1
        else:
            others = [s for s in range(arrived) if s != current]
            current = rng.choice(others) if others and rng.random() < 0.85 else current
        voice = voices[current]
        digits = [rng.randrange(10) for _ in range(rng.randint(*style.turn_words))]
        string = compose(bank[voice.name], digits, rng, WITHIN_TURN, sentence_words=(99, 99), gain=(0.5, 1.0))
        spoken, ratio = string.samples, 1.0
        if voice.speed != 1.0 or speed_jitter:
            ratio = voice.speed * rng.uniform(1 - speed_jitter, 1 + speed_jitter)
            spoken = change_speed(spoken, ratio)
        start = end + int(rng.uniform(*style.gap_s) * SAMPLE_RATE)
        if turns and rng.random() < style.overlap_probability and turns[-1].speaker != current:
            start = max(end - int(rng.uniform(*style.overlap_s) * SAMPLE_RATE), turns[-1].start_sample, 0)
        if start + len(spoken) > length:
            break
        mixed[start : start + len(spoken)] += gains[current] * spoken
        words = tuple(
            SpokenWord(w.text, w.digit, start + int(w.start_sample / ratio), start + int(w.end_sample / ratio))
            for w in string.words
        )
        turns.append(Turn(current, words[0].start_sample, words[-1].end_sample, words))
        end = max(end, start + len(spoken))
    turns.sort(key=lambda turn: turn.start_sample)
    return _in_order_of_arrival(Conversation(mixed, tuple(voices), tuple(turns)))


def _in_order_of_arrival(conversation: Conversation) -> Conversation:
    """Overlaps may turn the order of the first turns around."""
    order = list(dict.fromkeys(turn.speaker for turn in conversation.turns))
    voices = tuple(conversation.voices[speaker] for speaker in order)
    turns = tuple(Turn(order.index(t.speaker), t.start_sample, t.end_sample, t.words) for t in conversation.turns)
    return Conversation(conversation.samples, voices, turns)
