"""Voice activity detection with Silero's model, on the CPU of the ingress: one thread, in which the streams share batches."""

import asyncio
import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.live.endpointing import VAD_FRAME_SAMPLES, Endpointer, Endpointing, VadEvent
from serve_app.window import SAMPLE_RATE, Samples

CONTEXT_SAMPLES = 64
"""Samples before a frame that are part of the model's input."""

WARM_UP_FRAMES = 4
"""Frames after which the model is as fast as it gets: TorchScript optimises it during the first runs."""

MAX_STREAMS = 256
"""Streams per batch."""

MAX_ENCODED_FRAMES = 1024
"""Frames that the network's encoder takes at once; they need 20 MB."""

FRAME_S = VAD_FRAME_SAMPLES / SAMPLE_RATE

MAX_PACE = 2.0
"""A stream that is sent faster than this, as a multiple of the pace of speech, is a recording: the next batch follows at once."""

PACE_PERIOD_S = 1.0
"""What a stream may send is counted over this time, seconds: after a pause, its audio comes at once, maybe in several pieces."""

MIN_BATCH_INTERVAL_S = 0.05
"""Minimum time from the start of a batch to the start of the next one, seconds, so that streams share batches: a frame costs
0.2 ms of processor time by itself, and 0.03 ms in a batch of twelve."""

GATHER_S = 0.01
"""How long the first frames wait for those of other streams, seconds: an ingress gets the audio of all at about the same time."""

MAX_BATCH_SHARE = 0.1
"""Maximum share of the time that batches run. Where they take longer, because of more streams or a busy machine, batches are less
frequent and larger, up to MAX_BATCH_INTERVAL_S."""

MAX_BATCH_INTERVAL_S = 0.25
"""Maximum time from the start of a batch to the start of the next one, seconds, unless the batch itself takes longer: all streams
wait for it, also after a single batch that was slow."""


@dataclass(slots=True)
class _Stream:
    """The model's state for one stream, the samples that do not fill a frame yet, and when all that it has sent was due at the
    latest, at MAX_PACE; seconds of the event loop's clock."""

    state: NDArray[np.float32] = field(default_factory=lambda: np.zeros((2, 128), np.float32))
    context: Samples = field(default_factory=lambda: np.zeros(CONTEXT_SAMPLES, np.int16))
    rest: Samples = field(default_factory=lambda: np.zeros(0, np.int16))
    due_s: float = -math.inf

    def is_live(self, frames: int, now_s: float) -> bool:
        """Count frames that are sent now. Returns whether live speech may come like this."""
        self.due_s = min(max(self.due_s, now_s - PACE_PERIOD_S), now_s) + frames * FRAME_S / MAX_PACE
        return self.due_s <= now_s


@dataclass(frozen=True, slots=True)
class _Request:
    stream: _Stream
    frames: Samples
    """int16 [frames, VAD_FRAME_SAMPLES]"""
    is_live: bool
    result: "asyncio.Future[list[float]]"


class SileroModel:
    """One per process, used from one event loop. Unless `load` was called, it is loaded with the first frame."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vad")
        self._waiting: list[_Request] = []
        self._worker: asyncio.Task[None] | None = None

    def load(self) -> None:
        """Load the model and run it, as its first runs take long. Blocks for seconds, mostly with the interpreter's lock held."""
        frames = np.zeros((WARM_UP_FRAMES, VAD_FRAME_SAMPLES), np.int16)
        self._thread.submit(_run, [(_Stream(), frames)]).result()

    def detector(self, endpointing: Endpointing) -> "SileroDetector":
        """The detector of a new stream."""
        return SileroDetector(self, endpointing)

    async def probabilities(self, stream: _Stream, block: Samples) -> list[float]:
        """Speech probabilities of the frames that int16 `block` completes."""
        samples = np.concatenate([stream.rest, block])
        whole = len(samples) // VAD_FRAME_SAMPLES * VAD_FRAME_SAMPLES
        stream.rest = samples[whole:]
        if not whole:
            return []
        frames = samples[:whole].reshape(-1, VAD_FRAME_SAMPLES)
        loop = asyncio.get_running_loop()
        request = _Request(stream, frames, stream.is_live(len(frames), loop.time()), loop.create_future())
        self._waiting.append(request)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await request.result

    async def _work(self) -> None:
        """Run everything that waits as one batch, again and again, until nothing does."""
        now_s = asyncio.get_running_loop().time
        try:
            if self._waiting[0].is_live:
                await asyncio.sleep(GATHER_S)
            while self._waiting:
                began_s = now_s()
                # Requests of streams that have left are done: cancelled.
                waiting = [request for request in self._waiting if not request.result.done()]
                batch, self._waiting = waiting[:MAX_STREAMS], waiting[MAX_STREAMS:]
                if batch:
                    await self._process(batch)
                if all(request.is_live for request in batch):
                    interval_s = max(MIN_BATCH_INTERVAL_S, (now_s() - began_s) / MAX_BATCH_SHARE)
                    await asyncio.sleep(began_s + min(interval_s, MAX_BATCH_INTERVAL_S) - now_s())
        finally:
            self._worker = None

    async def _process(self, batch: list[_Request]) -> None:
        try:
            work = [(request.stream, request.frames) for request in batch]
            results = await asyncio.get_running_loop().run_in_executor(self._thread, _run, work)
        except Exception as error:
            for request in batch:
                if not request.result.done():
                    request.result.set_exception(error)
        else:
            for request, probabilities in zip(batch, results, strict=True):
                if not request.result.done():
                    request.result.set_result(probabilities)


class SileroDetector:
    """The VoiceActivityDetector of one stream."""

    def __init__(self, model: SileroModel, endpointing: Endpointing) -> None:
        self._model = model
        self._stream = _Stream()
        self._endpointer = Endpointer(endpointing)

    @property
    def possible_speech_until(self) -> int:
        """See VoiceActivityDetector.possible_speech_until."""
        return self._endpointer.possible_speech_until

    async def push(self, block: Samples) -> list[VadEvent]:
        """See VoiceActivityDetector.push."""
        return self._endpointer.push(await self._model.probabilities(self._stream, block))


def _run(batch: Sequence[tuple[_Stream, Samples]]) -> list[list[float]]:
    """Speech probabilities of the frames, int16 [frames, VAD_FRAME_SAMPLES], of each stream.

    The network's encoder takes all frames of all streams at once; its decoder is recurrent, and takes one of each stream.
    """
    import torch

    model = _model()
    counts = np.array([len(frames) for _, frames in batch])
    inputs = np.concatenate([_with_context(stream, frames) for stream, frames in batch])
    # Streams with the most frames first, so that those which have another one are always the first rows.
    order = np.argsort(-counts)
    firsts, counts = (np.cumsum(counts) - counts)[order], counts[order]
    states = np.stack([batch[i][0].state for i in order], axis=1)
    found = np.empty((len(batch), counts[0]), np.float32)
    with torch.inference_mode():
        parts = torch.split(torch.from_numpy(inputs), MAX_ENCODED_FRAMES)
        features = torch.cat([model.encoder(model.run_extractors(part.float() / 32768.0)) for part in parts])
        for step in range(counts[0]):
            active = np.count_nonzero(counts > step)
            out, after = model.decoder(features[firsts[:active] + step], torch.from_numpy(states[:, :active]))
            found[:active, step], states[:, :active] = out.flatten(), after
    results: list[list[float]] = [[] for _ in batch]
    for place, i in enumerate(order):
        batch[i][0].state = states[:, place].copy()
        results[i] = found[place, : counts[place]].tolist()
    return results


def _with_context(stream: _Stream, frames: Samples) -> Samples:
    """Each frame with the samples before it, int16 [frames, CONTEXT_SAMPLES + VAD_FRAME_SAMPLES]."""
    samples = np.concatenate([stream.context, frames.ravel()])
    stream.context = samples[-CONTEXT_SAMPLES:]
    return np.lib.stride_tricks.sliding_window_view(samples, CONTEXT_SAMPLES + VAD_FRAME_SAMPLES)[::VAD_FRAME_SAMPLES]


@functools.cache
def _model() -> Any:
    """Silero's network for 16 kHz, without its wrapper, which keeps the state of a single stream."""
    from silero_vad import load_silero_vad

    return load_silero_vad()._model
