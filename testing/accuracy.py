"""How accurate recognition is: word errors, exact sentences and word times of digit strings whose truth is known."""

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
MAX_STRING_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Figures:
    """What came out. Rates are fractions, errors are medians in seconds."""

    words: int
    word_error_rate: float
    sentences: int
    exact_sentence_rate: float
    exact_string_rate: float
    start_error_s: float
    end_error_s: float


def held_out_strings(bank: Bank, count: int, seed: int) -> list[DigitString]:
    """Strings of 1 to 12 digits; speakers take turns."""
    rng = random.Random(seed)
    speakers = sorted(bank)
    return [
        compose(bank[speakers[i % len(speakers)]], [rng.randrange(10) for _ in range(rng.randint(1, MAX_STRING_DIGITS))], rng)
        for i in range(count)
    ]


def add_noise(string: DigitString, ratio_db: float, seed: int) -> DigitString:
    """White noise at that ratio of mean speech power to noise power."""
    speech = np.concatenate([string.samples[w.start_sample : w.end_sample] for w in string.words])
    level = np.sqrt(np.mean(speech**2)) * 10 ** (-ratio_db / 20)
    noise = coloured_noise(len(string.samples), 0.0, np.random.default_rng(seed))
    return DigitString((string.samples + level * noise).astype(np.float32), string.words)


def recognise(engine: Engine, strings: Sequence[DigitString], batch: int = 16) -> list[list[Word]]:
    """The words that the engine hears in each string."""
    heard: list[list[Word]] = []
    for first in range(0, len(strings), batch):
        for tokens in engine.transcribe([to_int16(s.samples) for s in strings[first : first + batch]]):
            segmenter = Segmenter()
            segments = segmenter.add(tokens) + segmenter.finish()
            heard.append([word for segment in segments for word in segment.words])
    return heard


def judge(strings: Sequence[DigitString], heard: Sequence[Sequence[Word]]) -> Figures:
    """Compare what was said with what was heard. Times are judged on the words that are right."""
    spoken = [[w.text for w in s.words] for s in strings]
    found = [[w.text for w in words] for words in heard]
    plain = jiwer.process_words(_lines(spoken, plain=True), _lines(found, plain=True))
    exact = jiwer.process_words(_lines(spoken, plain=False), _lines(found, plain=False))
    starts: list[float] = []
    ends: list[float] = []
    for string, words, chunks in zip(strings, heard, plain.alignments, strict=True):
        for chunk in (c for c in chunks if c.type == "equal"):
            pairs = zip(range(chunk.ref_start_idx, chunk.ref_end_idx), range(chunk.hyp_start_idx, chunk.hyp_end_idx), strict=True)
            for r, h in pairs:
                starts.append(abs(words[h].start_s - string.words[r].start_sample / SAMPLE_RATE))
                ends.append(abs(words[h].end_s - string.words[r].end_sample / SAMPLE_RATE))
    sentences = [ok for words, chunks in zip(spoken, exact.alignments, strict=True) for ok in _exact_sentences(words, chunks)]
    return Figures(
        words=sum(map(len, spoken)),
        word_error_rate=plain.wer,
        sentences=len(sentences),
        exact_sentence_rate=sum(sentences) / len(sentences),
        exact_string_rate=sum(a == b for a, b in zip(spoken, found, strict=True)) / len(spoken),
        start_error_s=float(np.median(starts)),
        end_error_s=float(np.median(ends)),
    )


def _lines(texts: Iterable[Sequence[str]], *, plain: bool) -> list[str]:
    lines = (" ".join(words) for words in texts)
    return [line.lower().replace(".", "") if plain else line for line in lines]


def _exact_sentences(words: Sequence[str], chunks: Sequence[jiwer.AlignmentChunk]) -> list[bool]:
    """For each sentence of the reference, whether it came out exactly."""
    right = [False] * len(words)
    for chunk in chunks:
        if chunk.type == "equal":
            right[chunk.ref_start_idx : chunk.ref_end_idx] = [True] * (chunk.ref_end_idx - chunk.ref_start_idx)
        if chunk.type == "insert" and chunk.ref_start_idx < len(words):
            right[chunk.ref_start_idx] = False
    results, first = [], 0
    for place, word in enumerate(words):
        if word.endswith("."):
            results.append(all(right[first : place + 1]))
            first = place + 1
    return results
