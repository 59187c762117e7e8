"""Measure the accuracy of seams on recordings with a known reference: words inserted, deleted or shifted in time near them."""

import asyncio
import math
import sys
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import pairwise

import jiwer
import numpy as np
from numpy.typing import NDArray

from serve_app.chunking import Planner
from serve_app.engine.batch_queue import Batcher, BatchLimits
from serve_app.engine.protocol import Engine
from serve_app.events import Done
from serve_app.output.segments import Segmenter
from serve_app.pipeline import Recognise, transcribe
from serve_app.transcript import Token, Word
from serve_app.window import SAMPLE_RATE, Lane, Samples, Window
from testing.decoding import windows_of
from testing.long_recordings import Recording, blocks_of

BATCH_WINDOWS = 16
"""Maximum number of windows in a batch, and of windows in flight per recording."""

NEAR_SEAM_S = 2.0
"""A word is near a seam if it starts at most this far from it, seconds."""


def seams_of(samples: Samples, window_s: float, overlap_s: float) -> list[int]:
    """The middle of each overlap, in samples, if int16 [samples] are cut into windows of these sizes."""
    planner = Planner(window_s, overlap_s)
    windows = [w for block in blocks_of(samples) for w in planner.push(block)] + planner.finish()
    overlap = round(overlap_s * SAMPLE_RATE)
    return [(max(right.start_sample, left.end_sample - overlap) + left.end_sample) // 2 for left, right in pairwise(windows)]


@dataclass(frozen=True, slots=True)
class SeamFigures:
    """Errors of one transcript, near seams and elsewhere. Time errors come from the correct words alone."""

    words: int
    """Number of words in the reference."""
    wrong: frozenset[int]
    """Indices of the reference words that were substituted or deleted."""
    word_error_rate: float
    """A fraction from 0; case and full stops are ignored."""
    near: int
    """Number of words inserted or deleted at most NEAR_SEAM_S from a seam."""
    elsewhere: int
    """Number of other words inserted or deleted."""
    near_share: float
    """The fraction of the recording that lies at most NEAR_SEAM_S from a seam."""
    duration_s: float
    """Length of the recording, seconds."""
    starts_s: NDArray[np.float64]
    """True start of each correct word, seconds."""
    start_errors_s: NDArray[np.float64]
    """Recognised start minus true start of the same words, seconds."""

    @property
    def chance(self) -> float:
        """Probability that at least `near` of all insertions and deletions are near a seam if seams cause none (binomial)."""
        total, share = self.near + self.elsewhere, self.near_share
        return sum(math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(self.near, total + 1))

    @property
    def drift_s(self) -> float:
        """Change of the start error over the recording, seconds: the slope of a least-squares line times the duration."""
        return float(np.polyfit(self.starts_s, self.start_errors_s, 1)[0] * self.duration_s)

    def errors_by_s(self, span_s: float) -> list[float]:
        """Median absolute start error of each stretch of `span_s` seconds, in seconds.

        Stretches with fewer than one correct word in three seconds are left out.
        """
        span = (self.starts_s // span_s).astype(int)
        groups = [np.abs(self.start_errors_s[span == k]) for k in np.unique(span)]
        return [float(np.median(group)) for group in groups if len(group) >= span_s / 3]


def judge_seams(recording: Recording, recognised: Sequence[Word], seams: Sequence[int]) -> SeamFigures:
    """Compare the recognised words with the reference. Errors near `seams` (samples) and elsewhere are counted separately."""
    reference = [_plain(w.text) for w in recording.words]
    aligned = jiwer.process_words(" ".join(reference), " ".join(_plain(w.text) for w in recognised))
    wrong: set[int] = set()
    changed_s: list[float] = []
    starts_s: list[float] = []
    errors_s: list[float] = []
    for chunk in aligned.alignments[0]:
        true_words = recording.words[chunk.ref_start_idx : chunk.ref_end_idx]
        found_words = recognised[chunk.hyp_start_idx : chunk.hyp_end_idx]
        match chunk.type:
            case "insert":
                changed_s += [w.start_s for w in found_words]
            case "delete":
                changed_s += [w.start_sample / SAMPLE_RATE for w in true_words]
            case "equal":
                starts_s += [w.start_sample / SAMPLE_RATE for w in true_words]
                pairs = zip(true_words, found_words, strict=True)
                errors_s += [found.start_s - true.start_sample / SAMPLE_RATE for true, found in pairs]
        if chunk.type != "equal":
            wrong.update(range(chunk.ref_start_idx, chunk.ref_end_idx))
    seams_s = np.asarray(seams) / SAMPLE_RATE
    near = sum(bool((np.abs(seams_s - time_s) <= NEAR_SEAM_S).any()) for time_s in changed_s)
    duration_s = len(recording.samples) / SAMPLE_RATE
    return SeamFigures(
        words=len(reference),
        wrong=frozenset(wrong),
        word_error_rate=aligned.wer,
        near=near,
        elsewhere=len(changed_s) - near,
        near_share=_covered_s(seams_s, duration_s) / duration_s,
        duration_s=duration_s,
        starts_s=np.asarray(starts_s),
        start_errors_s=np.asarray(errors_s),
    )


def _plain(text: str) -> str:
    return text.lower().replace(".", "")


def _covered_s(seams_s: Iterable[float], duration_s: float) -> float:
    covered_s = end_s = 0.0
    for seam_s in seams_s:
        start_s, end_s = max(end_s, seam_s - NEAR_SEAM_S), min(seam_s + NEAR_SEAM_S, duration_s)
        covered_s += end_s - start_s
    return covered_s


def in_batches(engine: Engine) -> Recognise:
    """A recogniser that batches the waiting windows, at most BATCH_WINDOWS. It must be used within one event loop."""

    async def process(windows: list[Window]) -> list[list[Token]]:
        return engine.transcribe([window.samples for window in windows])

    limits = BatchLimits(max_samples=sys.maxsize, max_live_samples=sys.maxsize, max_items=BATCH_WINDOWS, ageing_s=1.0)
    batcher: Batcher[Window, list[Token]] = Batcher(process, limits)
    return lambda window: batcher.submit(window, len(window.samples), Lane.BULK, "")


async def transcribe_long(recognise: Recognise, samples: Samples, window_s: float, overlap_s: float) -> list[Word]:
    """Transcribe int16 [samples] with the pipeline; word times in seconds."""

    async def audio() -> AsyncGenerator[Samples, None]:
        for block in blocks_of(samples):
            yield block

    windows = windows_of(audio(), window_s, overlap_s)
    async with aclosing(transcribe(windows, recognise, overlap_s=overlap_s, max_in_flight=lambda: BATCH_WINDOWS)) as events:
        async for event in events:
            if isinstance(event, Done):
                return [word for segment in event.segments for word in segment.words]
    raise AssertionError("the pipeline ended without Done")


async def transcribe_pieces(recognise: Recognise, windows: Iterable[Window]) -> list[Word]:
    """Transcribe each piece of a recording separately; word times in seconds of the recording."""
    windows, words = list(windows), list[Word]()
    for window, tokens in zip(windows, await asyncio.gather(*map(recognise, windows)), strict=True):
        segmenter = Segmenter()
        segments = segmenter.add([token.moved(window.start_sample) for token in tokens]) + segmenter.finish()
        words += [word for segment in segments for word in segment.words]
    return words
