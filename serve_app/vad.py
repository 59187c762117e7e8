"""Voice activity by Silero's model, on the CPU of the ingress: one thread for all streams, whose frames share batches."""

import asyncio
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serve_app.batching import Batcher, BatchLimits
from serve_app.transcript import Lane, Samples
from serve_app.voice import FRAME, Endpointer, Endpointing, Turn

CONTEXT = 64
"""Samples before a frame that the model hears with it."""

MOST_STREAMS = 256
"""In one batch."""


@dataclass(slots=True)
class _Stream:
    """What the model remembers of a stream, and the samples that do not make up a frame yet."""

    state: Any = None
    context: Samples = field(default_factory=lambda: np.zeros(CONTEXT, np.int16))
    rest: Samples = field(default_factory=lambda: np.zeros(0, np.int16))


class SpeechDetector:
    """One for a process. It is loaded when the first stream begins."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="voice")
        limits = BatchLimits(max_samples=10**9, max_items=MOST_STREAMS, ageing_s=1.0)
        self._batcher: Batcher[tuple[_Stream, Samples], list[float]] = Batcher(self._process, limits)

    def follow(self, endpointing: Endpointing) -> "SileroVoice":
        """The voice of a new stream."""
        return SileroVoice(self, endpointing)

    async def probabilities(self, stream: _Stream, block: Samples) -> list[float]:
        """Of the frames that are complete with this block."""
        samples = np.concatenate([stream.rest, block])
        whole = len(samples) // FRAME * FRAME
        stream.rest = samples[whole:]
        if not whole:
            return []
        frames = samples[:whole].reshape(-1, FRAME)
        return await self._batcher.submit((stream, frames), whole, Lane.LIVE, str(id(stream)))

    async def _process(self, items: list[tuple[_Stream, Samples]]) -> list[list[float]]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, _run, items)


class SileroVoice:
    """A stream's Voice."""

    def __init__(self, detector: SpeechDetector, endpointing: Endpointing) -> None:
        self._detector = detector
        self._stream = _Stream()
        self._endpointer = Endpointer(endpointing)

    async def push(self, block: Samples) -> list[Turn]:
        """See Voice.push."""
        return self._endpointer.push(await self._detector.probabilities(self._stream, block))


def _run(items: Sequence[tuple[_Stream, Samples]]) -> list[list[float]]:
    """The probabilities of each stream's frames, frame by frame for all streams at once."""
    import torch

    model = _model()
    found: list[list[float]] = [[] for _ in items]
    with torch.inference_mode():
        for step in range(max(len(frames) for _, frames in items)):
            active = [i for i, (_, frames) in enumerate(items) if step < len(frames)]
            streams = [items[i][0] for i in active]
            heard = [np.concatenate([stream.context, items[i][1][step]]) for i, stream in zip(active, streams, strict=True)]
            states = [torch.zeros(2, 128) if stream.state is None else stream.state for stream in streams]
            out, after = model(torch.from_numpy(np.stack(heard)).float() / 32768.0, torch.stack(states, dim=1))
            for place, (i, stream) in enumerate(zip(active, streams, strict=True)):
                found[i].append(float(out[place]))
                stream.state, stream.context = after[:, place].clone(), heard[place][-CONTEXT:]
    return found


@functools.cache
def _model() -> Any:
    """The network for 16 kHz without the wrapper around it, which keeps the state of one stream only."""
    from silero_vad import load_silero_vad

    return load_silero_vad()._model
