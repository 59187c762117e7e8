"""How accurate the seams between windows are: words inserted, deleted and moved near them, on recordings whose truth is known."""

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
from testing.long_recordings import Recording, blocks_of

BATCH_WINDOWS = 16
NEAR_SEAM_S = 2.0


def seams_of(samples: Samples, window_s: float, overlap_s: float) -> list[int]:
    """Samples at the middle of each overlap when `samples` are transcribed with those sizes."""
    planner = Planner(window_s, overlap_s)
    windows = [w for block in blocks_of(samples) for w in planner.push(block)] + planner.finish()
    reach = round(overlap_s * SAMPLE_RATE)
    return [(max(after.start_sample, before.end_sample - reach) + before.end_sample) // 2 for before, after in pairwise(windows)]


@dataclass(frozen=True, slots=True)
class SeamFigures:
    """What came out. Times of words heard are compared with the true ones on the words that are right."""

    words: int
    wrong: frozenset[int]
    """Places of the true words that were heard as something else or not at all."""
    word_error_rate: float
    """A fraction; case and full stops do not count."""
    near: int
    """Words inserted or deleted within two seconds of a seam."""
    elsewhere: int
    near_share: float
    """How much of the recording is that near to a seam, a fraction."""
    duration_s: float
    starts_s: NDArray[np.float64]
    """True start of each word that is right, seconds."""
    start_errors_s: NDArray[np.float64]
    """Start heard minus true start of the same words, seconds."""

    @property
    def chance(self) -> float:
        """How likely at least `near` of all insertions and deletions fall near a seam if seams make no difference."""
        total, share = self.near + self.elsewhere, self.near_share
        return sum(math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(self.near, total + 1))

    @property
    def drift_s(self) -> float:
        """Rise of a straight line through the start errors, over the whole recording, seconds."""
        return float(np.polyfit(self.starts_s, self.start_errors_s, 1)[0] * self.duration_s)

    def errors_by_s(self, span_s: float) -> list[float]:
        """Median absolute start error of every stretch of that length that has enough words to tell, seconds."""
        span = (self.starts_s // span_s).astype(int)
        groups = [np.abs(self.start_errors_s[span == k]) for k in np.unique(span)]
        return [float(np.median(group)) for group in groups if len(group) >= span_s / 3]


def judge_seams(recording: Recording, heard: Sequence[Word], seams: Sequence[int]) -> SeamFigures:
    """Compare what was said with what was heard, apart for what is near to `seams` (samples) and for the rest."""
    spoken = [_plain(w.text) for w in recording.words]
    aligned = jiwer.process_words(" ".join(spoken), " ".join(_plain(w.text) for w in heard))
    wrong: set[int] = set()
    changed: list[float] = []
    starts: list[float] = []
    errors: list[float] = []
    for chunk in aligned.alignments[0]:
        ours = recording.words[chunk.ref_start_idx : chunk.ref_end_idx]
        theirs = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        match chunk.type:
            case "insert":
                changed += [w.start_s for w in theirs]
            case "delete":
                changed += [w.start_sample / SAMPLE_RATE for w in ours]
            case "equal":
                starts += [w.start_sample / SAMPLE_RATE for w in ours]
                errors += [b.start_s - a.start_sample / SAMPLE_RATE for a, b in zip(ours, theirs, strict=True)]
        if chunk.type != "equal":
            wrong.update(range(chunk.ref_start_idx, chunk.ref_end_idx))
    seams_s = np.asarray(seams) / SAMPLE_RATE
    near = sum(bool((np.abs(seams_s - time_s) <= NEAR_SEAM_S).any()) for time_s in changed)
    duration_s = len(recording.samples) / SAMPLE_RATE
    return SeamFigures(
        words=len(spoken),
        wrong=frozenset(wrong),
        word_error_rate=aligned.wer,
        near=near,
        elsewhere=len(changed) - near,
        near_share=_covered_s(seams_s, duration_s) / duration_s,
        duration_s=duration_s,
        starts_s=np.asarray(starts),
        start_errors_s=np.asarray(errors),
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
    """A recogniser for use within one event loop that gives the engine all windows that wait, up to `BATCH_WINDOWS`."""

    async def process(windows: list[Window]) -> list[list[Token]]:
        return engine.transcribe([window.samples for window in windows])

    batcher = Batcher(process, BatchLimits(max_samples=sys.maxsize, max_items=BATCH_WINDOWS, ageing_s=1.0))
    return lambda window: batcher.submit(window, len(window.samples), Lane.BULK, "")


async def transcribe_long(recognise: Recognise, samples: Samples, window_s: float, overlap_s: float) -> list[Word]:
    """The words that the pipeline makes of int16 [samples], times in seconds."""

    async def audio() -> AsyncGenerator[Samples, None]:
        for block in blocks_of(samples):
            yield block

    async with aclosing(
        transcribe(audio(), recognise, window_s=window_s, overlap_s=overlap_s, max_in_flight=lambda: BATCH_WINDOWS)
    ) as events:
        async for event in events:
            if isinstance(event, Done):
                return [word for segment in event.segments for word in segment.words]
    raise AssertionError("the pipeline ends with Done")


async def transcribe_pieces(recognise: Recognise, windows: Iterable[Window]) -> list[Word]:
    """The words of pieces of a recording, each recognised by itself; times in seconds of the recording."""
    windows, heard = list(windows), list[Word]()
    for window, tokens in zip(windows, await asyncio.gather(*map(recognise, windows)), strict=True):
        segmenter = Segmenter()
        segments = segmenter.add([token.moved(window.start_sample) for token in tokens]) + segmenter.finish()
        heard += [word for segment in segments for word in segment.words]
    return heard
