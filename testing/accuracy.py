"""Measure recognition accuracy on digit strings with a known reference: word errors, exact sentences and word times."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

from serve_app.engine.protocol import Engine
from serve_app.output.segments import Segmenter
from serve_app.transcript import Word
from serve_app.window import SAMPLE_RATE
from testing.augmentation import coloured_noise
from testing.digit_strings import Bank, DigitString, compose, to_int16

HELD_OUT_INDEXES = range(5, 10)
"""Indexes of the recordings of each digit and speaker that are not used for training."""

MAX_STRING_DIGITS = 12
"""Maximum number of digits in a string."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Accuracy over a set of strings. Rates are fractions from 0, errors are medians in seconds."""

    words: int
    word_error_rate: float
    sentences: int
    exact_sentence_rate: float
    exact_string_rate: float
    start_error_s: float
    end_error_s: float


def held_out_strings(bank: Bank, count: int, seed: int) -> list[DigitString]:
    """`count` strings of 1 to MAX_STRING_DIGITS digits, from each speaker of the bank in turn."""
    rng = random.Random(seed)
    speakers = sorted(bank)
    return [
        compose(bank[speakers[i % len(speakers)]], [rng.randrange(10) for _ in range(rng.randint(1, MAX_STRING_DIGITS))], rng)
        for i in range(count)
    ]


def add_noise(string: DigitString, ratio_db: float, seed: int) -> DigitString:
    """Add white noise. `ratio_db` is the ratio of mean speech power to noise power, decibels."""
    speech = np.concatenate([string.samples[w.start_sample : w.end_sample] for w in string.words])
    level = np.sqrt(np.mean(speech**2)) * 10 ** (-ratio_db / 20)
    noise = coloured_noise(len(string.samples), 0.0, np.random.default_rng(seed))
    return DigitString((string.samples + level * noise).astype(np.float32), string.words)


def recognise(engine: Engine, strings: Sequence[DigitString], batch: int = 16) -> list[list[Word]]:
    """The words that the engine recognises in each string."""
    recognised: list[list[Word]] = []
    for first in range(0, len(strings), batch):
        for tokens in engine.transcribe([to_int16(s.samples) for s in strings[first : first + batch]]):
            segmenter = Segmenter()
            segments = segmenter.add(tokens) + segmenter.finish()
            recognised.append([word for segment in segments for word in segment.words])
    return recognised


def judge(strings: Sequence[DigitString], recognised: Sequence[Sequence[Word]]) -> Figures:
    """Compare the recognised words of each string with the reference. Time errors come from the correct words alone.

    Word errors ignore case and full stops. Exact sentences and strings must match in case and full stops too.
    """
    references = [[w.text for w in s.words] for s in strings]
    hypotheses = [[w.text for w in words] for words in recognised]
    plain = jiwer.process_words(_lines(references, plain=True), _lines(hypotheses, plain=True))
    exact = jiwer.process_words(_lines(references, plain=False), _lines(hypotheses, plain=False))
    starts: list[float] = []
    ends: list[float] = []
    for string, words, chunks in zip(strings, recognised, plain.alignments, strict=True):
        for chunk in (c for c in chunks if c.type == "equal"):
            pairs = zip(range(chunk.ref_start_idx, chunk.ref_end_idx), range(chunk.hyp_start_idx, chunk.hyp_end_idx), strict=True)
            for r, h in pairs:
                starts.append(abs(words[h].start_s - string.words[r].start_sample / SAMPLE_RATE))
                ends.append(abs(words[h].end_s - string.words[r].end_sample / SAMPLE_RATE))
    sentences = [ok for words, chunks in zip(references, exact.alignments, strict=True) for ok in _exact_sentences(words, chunks)]
    return Figures(
        words=sum(map(len, references)),
        word_error_rate=plain.wer,
        sentences=len(sentences),
        exact_sentence_rate=sum(sentences) / len(sentences),
        exact_string_rate=sum(a == b for a, b in zip(references, hypotheses, strict=True)) / len(references),
        start_error_s=float(np.median(starts)),
        end_error_s=float(np.median(ends)),
    )


def _lines(texts: Iterable[Sequence[str]], *, plain: bool) -> list[str]:
    lines = (" ".join(words) for words in texts)
    return [line.lower().replace(".", "") if plain else line for line in lines]


def _exact_sentences(words: Sequence[str], chunks: Sequence[jiwer.AlignmentChunk]) -> list[bool]:
    """For each sentence of the reference, whether the hypothesis has exactly the same words."""
    correct = [False] * len(words)
    for chunk in chunks:
        if chunk.type == "equal":
            correct[chunk.ref_start_idx : chunk.ref_end_idx] = [True] * (chunk.ref_end_idx - chunk.ref_start_idx)
        if chunk.type == "insert" and chunk.ref_start_idx < len(words):
            correct[chunk.ref_start_idx] = False
    results, first = [], 0
    for place, word in enumerate(words):
        if word.endswith("."):
            results.append(all(correct[first : place + 1]))
            first = place + 1
    return results
