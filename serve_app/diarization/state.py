"""The streaming state of a Sortformer as bytes: what travels with every call, so that any replica serves any chunk. Pure.

A header (what it is, the model, the sizes), then the arrays as little-endian float32, which is exact: after a step, the state and
its bytes are the same thing. Not pickle: the bytes come over the network.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import DiarizerChanged, EngineError

Floats = NDArray[np.float32]

MAGIC = b"sortformer state 1\n"
"""What every state begins with; another number for another layout."""

MODEL_BYTES = 16
"""Length of the digest that names the model and its streaming settings."""

HEADER = struct.Struct(f"<{MODEL_BYTES}sIIII?Q")
"""Model; frames of the cache and of the queue; width; speakers; whether the cache has probabilities; silent frames so far."""


@dataclass(frozen=True, slots=True)
class StreamingState:
    """What a Sortformer remembers of a recording. Embeddings are those before the encoder layers."""

    cache: Floats
    """Embeddings of the speakers so far: [frames, width]."""
    cache_probabilities: Floats | None
    """[frames, speakers]; None until the cache was full for the first time."""
    queue: Floats
    """Embeddings of the last chunks (FIFO): [frames, width]."""
    mean_silence: Floats
    """Mean embedding of silence: [width]."""
    silent_frames: int
    """Frames in that mean."""


def pack(state: StreamingState, model: bytes, speakers: int) -> bytes:
    """`model`: MODEL_BYTES that name the model and its streaming settings."""
    has_probabilities = state.cache_probabilities is not None
    sizes = (len(state.cache), len(state.queue), len(state.mean_silence), speakers)
    header = HEADER.pack(model, *sizes, has_probabilities, state.silent_frames)
    arrays = [state.cache, state.queue, state.mean_silence]
    if state.cache_probabilities is not None:
        arrays.append(state.cache_probabilities)
    return MAGIC + header + b"".join(np.ascontiguousarray(array, dtype="<f4").tobytes() for array in arrays)


def unpack(data: bytes, model: bytes) -> StreamingState:
    """Raises DiarizerChanged for the state of another model or with other settings, EngineError for bytes that are no state."""
    if not data.startswith(MAGIC) or len(data) < len(MAGIC) + HEADER.size:
        raise DiarizerChanged("The state of the diarizer is none of this kind of diarizer.")
    found, cached, queued, width, speakers, has_probabilities, silent = HEADER.unpack_from(data, len(MAGIC))
    if found != model:
        raise DiarizerChanged("The state of the diarizer is that of another model, or of the same with other streaming settings.")
    shapes = [(cached, width), (queued, width), (1, width)] + ([(cached, speakers)] if has_probabilities else [])
    counts = [rows * columns for rows, columns in shapes]
    body = memoryview(data)[len(MAGIC) + HEADER.size :]
    if len(body) != 4 * sum(counts):
        raise EngineError(f"The state of the diarizer is damaged: {len(body)} bytes instead of {4 * sum(counts)}.")
    flat = np.frombuffer(body, dtype="<f4").astype(np.float32)
    parts = np.split(flat, np.cumsum(counts)[:-1])
    arrays = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    return StreamingState(arrays[0], arrays[3] if has_probabilities else None, arrays[1], arrays[2][0], silent)
