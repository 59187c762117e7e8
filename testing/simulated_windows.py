"""Windows of any plan, and the tokens that a recogniser would return for each window of a recording that is known."""

import random
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from serve_app.chunking import Planner
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples, Window

JITTER = FRAME_SAMPLES
"""Maximum difference between the time of a token in one window and its true time, samples (80 ms)."""

# Derandomised: every run has the same examples, so a new failure is caused by a change of the code.
quick = settings(deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
thorough = settings(quick, max_examples=250)


def at(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def plan(audio: Samples, window_s: float, overlap_s: float, blocks: list[int] | None = None) -> list[Window]:
    planner = Planner(window_s, overlap_s)
    windows, rest = [], audio
    for size in blocks or []:
        windows += planner.push(rest[:size])
        rest = rest[size:]
    return windows + planner.push(rest) + planner.finish()


@st.composite
def window_settings(
    draw: st.DrawFn, min_s: float = 2, max_s: float = 9, min_overlap_s: float = 0, max_overlap_s: float = 4.5
) -> tuple[float, float]:
    window_s = draw(st.floats(min_s, max_s))
    return window_s, draw(st.floats(min_overlap_s, min(max_overlap_s, window_s / 2)))


SPOKEN = {
    "seven": (("▁s", "eve", "n"), ("▁", "S", "eve", "n")),
    "four": (("▁four",), ("▁F", "our")),
    "two": (("▁t", "wo"), ("▁T", "wo")),
    "eight": (("▁e", "ight"), ("▁", "E", "i", "ght")),
    "it's": (("▁it", "'s"), ("▁It", "'", "s")),
    "nine": (("▁n", "ine"), ("▁N", "ine")),
}
"""Pieces of each word, in lower case and with a capital letter."""


@dataclass(frozen=True)
class Said:
    """A word of the recording with its true half-open span in samples; `stop`: a full stop follows."""

    word: str
    stop: bool
    start: int
    end: int

    def tokens(self, *, capital: bool = False, stop: bool | None = None) -> list[Token]:
        pieces = SPOKEN[self.word][capital]
        step = (self.end - self.start) // len(pieces)
        tokens = [token(p, self.start + k * step, self.start + (k + 1) * step) for k, p in enumerate(pieces)]
        return tokens + [token(".", self.end, self.end)] * (self.stop if stop is None else stop)


def token(piece: str, start: int, end: int) -> Token:
    return Token(piece, sum(map(ord, piece)) % 1000, start, end, 0.9)


def say(length: int, words: list[str], pause_s: tuple[float, float], seed: int) -> list[Said]:
    """Random words that fill `length` samples. A few pauses are twenty times as long. A repeat starts at least 0.4 s later."""
    rng = random.Random(seed)
    said: list[Said] = []
    now = at(rng.uniform(0, 0.5))
    while True:
        is_repeat = len(words) < 3 or rng.random() < 0.2
        word = rng.choice(words if is_repeat or not said else [w for w in words if w != said[-1].word])
        span = at(rng.uniform(0.25, 0.5))
        if said and word == said[-1].word:
            now = max(now, said[-1].start + at(0.4))
        if now + span > length:
            return said
        said.append(Said(word, rng.random() < 0.15, now, now + span))
        now += span + at(rng.uniform(*pause_s)) + at(rng.choice([0, 0, 0, 0, 0, 0, pause_s[1] * 20]))


def audio_of(said: list[Said], length: int) -> Samples:
    audio = np.random.default_rng(0).normal(0, 1, length)
    for word in said:
        audio[word.start : word.end] *= 3000
    return audio.astype(np.int16)


def simulate(
    windows: list[Window], k: int, said: list[Said], overlap: int, rng: random.Random, jitter: int = JITTER
) -> list[Token]:
    """The tokens of window `k`: the words within it, with the errors that window edges cause.

    Times differ from the true ones by up to `jitter` samples. A false full stop may follow the last word if that word starts in
    the overlap of `overlap` samples.
    """
    window = windows[k]
    whole = [word for word in said if word.start >= window.start_sample and word.end <= window.end_sample]
    cut_first = [word for word in said if word.start < window.start_sample < word.end]
    cut_last = [word for word in said if word.start < window.end_sample < word.end]

    tokens = truncated(cut_first, window, rng)
    for word in whole:
        is_first, is_last = word is whole[0] and not tokens, word is whole[-1]
        capital = is_first and k > 0 and decodes_well(windows[k - 1], word, said, first=False)
        stop = word.stop or (
            is_last
            and not cut_last
            and k + 1 < len(windows)
            and word.start >= window.end_sample - overlap
            and decodes_well(windows[k + 1], word, said, last=False)
        )
        decoded = word.tokens(capital=capital and rng.random() < 0.8, stop=stop and (word.stop or rng.random() < 0.8))
        if (k > 0 and touches(word.start, window.start_sample)) or (
            k + 1 < len(windows) and touches(word.end, window.end_sample)
        ):
            decoded = with_one_error(decoded, rng)
        tokens += decoded
    tokens += truncated(cut_last, window, rng)
    return jittered(tokens, rng, jitter)


def touches(time: int, edge: int) -> bool:
    return abs(time - edge) <= at(0.1)


def decodes_well(window: Window, word: Said, said: list[Said], *, first: bool = True, last: bool = True) -> bool:
    """Whether the word is at least 0.8 s from the window edges. It may be the window's first or last word only where allowed."""
    inside = [w for w in said if w.start >= window.start_sample and w.end <= window.end_sample]
    return (
        word.start > window.start_sample + at(0.8)
        and word.end < window.end_sample - at(0.8)
        and (first or word is not inside[0])
        and (last or word is not inside[-1])
    )


def truncated(words: list[Said], window: Window, rng: random.Random) -> list[Token]:
    """Possible tokens of a word that a window edge truncates: none, the audible ones, or wrong ones."""
    tokens: list[Token] = []
    for word in words:
        start, end = max(word.start, window.start_sample), min(word.end, window.end_sample)
        audible = [t for t in word.tokens() if t.end_sample > start and t.start_sample < window.end_sample]
        # The start of a word is decoded with a word-start marker. The rest of a word may be decoded without one.
        wrong = token(rng.choice(["▁uh", "▁for", "▁s"] + ["ven"] * (word.start < start)), start, end)
        tokens += rng.choice([[], audible, [wrong], [wrong, *audible[1:]]])
    return tokens


def with_one_error(tokens: list[Token], rng: random.Random) -> list[Token]:
    k = rng.randrange(len(tokens) - (tokens[-1].piece == "."))
    here = tokens[k]
    marker = "▁" if here.piece.startswith("▁") else ""
    match rng.choice(["substitute", "delete", "insert", "none"]):
        case "substitute":
            return [*tokens[:k], here._replace(piece=marker + "x"), *tokens[k + 1 :]]
        case "delete":
            rest = tokens[:k] + tokens[k + 1 :]
            return rest if any(t.piece != "." for t in rest) else []
        case "insert":
            middle = (here.start_sample + here.end_sample) // 2
            more = "x" if tokens[-1].piece == "." else rng.choice(["x", "▁a", "."])
            return [*tokens[: k + 1], token(more, middle, here.end_sample), *tokens[k + 1 :]]
    return tokens


def jittered(tokens: list[Token], rng: random.Random, jitter: int) -> list[Token]:
    """Shift each token, or all tokens alike, by up to `jitter` samples. Start times never decrease, as in a decoder's output."""
    together = rng.choice([None, rng.randint(-jitter, jitter)])
    shifted, floor = [], 0
    for one in tokens:
        moved = one.moved(rng.randint(-jitter, jitter) if together is None else together)
        floor = max(floor, moved.start_sample)
        shifted.append(moved._replace(start_sample=floor, end_sample=max(floor, moved.end_sample)))
    return shifted


def is_monotonic(tokens: list[Token]) -> bool:
    return all(a.start_sample <= b.start_sample for a, b in pairwise(tokens)) and all(
        t.start_sample <= t.end_sample for t in tokens
    )
