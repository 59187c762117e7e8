"""Parakeet models in NeMo. torch and nemo are imported only when a model is loaded.

A batch has three stages: `prepare` (one buffer, its copy to the device, features), `run` (encoder and decoder, on the device) and
`collect` (one copy back, columns). NeMo models are not thread-safe, so one thread runs batches; another one may prepare the next,
since the features have no state.
"""

import contextlib
import logging
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.engine.batch_cost import BatchCost, measure
from serve_app.engine.decoder import DecodedBatch
from serve_app.engine.device_errors import is_device_failure, is_out_of_memory
from serve_app.engine.gpu_memory import MemoryOfBatches
from serve_app.engine.loading import LoadedModel, load_model
from serve_app.engine.protocol import EngineInfo
from serve_app.engine.speech_clip import speech_clip
from serve_app.errors import EngineBroken, EngineOutOfMemory
from serve_app.settings import DecoderChoice, Device, Precision, WantedFastPaths
from serve_app.transcript import Token, TokenColumns
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Keywords, Samples

log = logging.getLogger("ray.serve")

MIN_INPUT_SAMPLES = SAMPLE_RATE // 2
"""Shorter windows are padded to this many samples: features are normalised over the window, which needs several frames."""

LENGTHS_PER_OCTAVE = 32
"""Number of different lengths that batches may have between one length and its double."""

NO_TOKENS = TokenColumns.of([])


@dataclass(frozen=True, slots=True)
class Features:
    """Input of the encoder, on the device."""

    values: Any
    """float32 [windows, features, frames]"""
    frame_counts: Any
    """int [windows]"""
    ready: Any
    """CUDA event after which the values are complete; None on a CPU."""


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """A batch between its stages."""

    windows: Sequence[Samples]
    keywords: Sequence[Keywords]
    audible: list[int]
    """Indexes of the windows that are not digital silence."""
    features: Features | None
    """Of the audible windows; None if there are none, or memory did not suffice."""


class ParakeetEngine:
    """Runs the parts of a NeMo model itself: NeMo's own `transcribe()` is slow and keeps state between calls."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = model = loaded.model
        self._device = loaded.device
        self._precision = loaded.precision
        self._fast_paths = loaded.fast_paths
        self._dtype = next(model.encoder.parameters()).dtype
        tokenizer = model.tokenizer
        pieces: list[str] = tokenizer.ids_to_tokens(list(range(tokenizer.vocab_size)))
        self._pieces = np.array(pieces, dtype=object)
        self._is_punctuation = np.array([bool(p) and unicodedata.category(p[0]).startswith("P") for p in pieces])
        self._decoder = loaded.decoder
        self._copy_stream: Any = None
        """On a GPU: the CUDA stream of `prepare`, beside that of the batch that runs."""
        self._fitting_audio_s = math.inf

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(self._device, self._precision, self._decoder.mode, self._decoder.has_keywords, self._fast_paths)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: Device = "auto",
        precision: Precision = "auto",
        fast_paths: WantedFastPaths = "auto",
        cpu_threads: int = 0,
        gpu_share: float = 1.0,
        keyword_weight: float = 0.5,
        decoder: DecoderChoice = "auto",
    ) -> "ParakeetEngine":
        """Load a `.nemo` file onto a device: an RNNT, TDT or CTC model, or one with both kinds of heads.

        `fast_paths`: see fast_paths.py. `cpu_threads`: 0 uses one thread for a small model, else all usable cores. `gpu_share`:
        fraction of the GPU's memory that this process may use. `keyword_weight`: weight of boosted phrases, 0 to 1. `decoder`:
        which head of a hybrid model. Raises ModelUnavailable if the file cannot be loaded, or holds a model that this server
        does not run.
        """
        loaded = load_model(
            path,
            device=device,
            precision=precision,
            fast_paths=fast_paths,
            cpu_threads=cpu_threads,
            gpu_share=gpu_share,
            keyword_weight=keyword_weight,
            decoder=decoder,
        )
        return cls(loaded)

    def warm_up(self, window_samples: int, *, max_items: int) -> None:
        """On a GPU: capture the decoder's CUDA graphs, for `max_items` windows of `window_samples`, which no batch exceeds.

        Raises EngineBroken if the GPU fails.
        """
        import torch

        like = next(self._model.encoder.parameters()).new_zeros(1, 1, self._model.cfg.encoder.d_model)
        with torch.inference_mode(), _as_engine_broken():
            self._decoder.warm_up((max_items, padded_samples(window_samples) // FRAME_SAMPLES + 2), like)

    def transcribe(self, windows: Sequence[Samples], keywords: Sequence[Keywords] = ()) -> list[list[Token]]:
        """See Engine.transcribe."""
        return [columns.tokens() for columns in self.recognise(self.prepare(windows, keywords))]

    def prepare(self, windows: Sequence[Samples], keywords: Sequence[Keywords] = ()) -> PreparedBatch:
        """See Engine.prepare."""
        # Digital silence is skipped: it has no speech, and normalisation would turn its features into rounding noise.
        audible = [i for i, window in enumerate(windows) if window.any()]
        features = None
        try:
            with _as_engine_broken():
                features = self._features([windows[i] for i in audible]) if audible else None
        except Exception as error:
            if isinstance(error, EngineBroken) or not is_out_of_memory(error):
                raise
        return PreparedBatch(windows, keywords or [()] * len(windows), audible, features)

    def recognise(self, batch: PreparedBatch) -> list[TokenColumns]:
        """See Engine.recognise. A batch that does not fit into memory is split into halves until it does."""
        if (results := self._recognise_whole(batch)) is not None:
            return results
        if len(batch.windows) == 1:
            seconds = len(batch.windows[0]) / SAMPLE_RATE
            raise EngineOutOfMemory(f"A window of {seconds:.0f} s does not fit into the memory of {self._device}.")
        middle = len(batch.windows) // 2
        log.warning("out of memory with a batch of %d windows; retrying in two halves", len(batch.windows))
        halves = (slice(None, middle), slice(middle, None))
        return [columns for h in halves for columns in self.recognise(self.prepare(batch.windows[h], batch.keywords[h]))]

    def _recognise_whole(self, batch: PreparedBatch) -> list[TokenColumns] | None:
        """The tokens of each window; None if memory does not suffice."""
        import torch

        if batch.audible and batch.features is None:
            # Now no other batch takes memory beside it.
            batch = self.prepare(batch.windows, batch.keywords)
        results = [NO_TOKENS] * len(batch.windows)
        if not batch.audible:
            return results
        if batch.features is None:
            return None
        try:
            with torch.inference_mode(), _as_engine_broken():
                decoded = self._run(batch.features, [batch.keywords[i] for i in batch.audible])
                for i, columns in zip(batch.audible, self._collect(decoded), strict=True):
                    results[i] = columns
            return results
        except Exception as error:
            if isinstance(error, EngineBroken) or not is_out_of_memory(error):
                raise
            return None

    def measure_cost(self, window_s: float, max_windows: int) -> BatchCost:
        """See Engine.measure_cost."""

        def run(windows: Sequence[Samples]) -> None:
            if self._recognise_whole(self.prepare(windows)) is None:
                raise EngineOutOfMemory(f"Windows of {window_s:.0f} s do not fit into the memory of {self._device}.")

        on_gpu = self._device == "cuda"
        memory = MemoryOfBatches() if on_gpu else None
        measurements = measure(run, speech_clip(), window_s=window_s, max_windows=max_windows)
        if memory is not None:
            self._fitting_audio_s = memory.fitting_batches() * measurements[-1].padded_s
        return BatchCost.fit(measurements)

    def fitting_audio_s(self) -> float:
        """See Engine.fitting_audio_s."""
        return self._fitting_audio_s

    def _features(self, windows: Sequence[Samples]) -> Features:
        import torch

        on_gpu = self._device == "cuda"
        lengths = torch.tensor([max(len(window), MIN_INPUT_SAMPLES) for window in windows])
        # From pinned memory, the copy does not stop this thread or wait for the batch that runs.
        padded = torch.zeros(len(windows), padded_samples(int(lengths.max())), dtype=torch.int16, pin_memory=on_gpu)
        for row, window in zip(padded.numpy(), windows, strict=True):
            row[: len(window)] = window
        if on_gpu and self._copy_stream is None:
            self._copy_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.inference_mode(), torch.cuda.stream(self._copy_stream) if on_gpu else contextlib.nullcontext():
            audio = padded.to(self._device, non_blocking=True).float() / 32768.0
            lengths = (lengths.pin_memory() if on_gpu else lengths).to(self._device, non_blocking=True)
            values, frame_counts = self._model.preprocessor(input_signal=audio, length=lengths)
            return Features(values, frame_counts, self._copy_stream.record_event() if on_gpu else None)

    def _run(self, features: Features, keywords: Sequence[Keywords]) -> DecodedBatch:
        import torch

        if features.ready is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(features.ready)
            for tensor in (features.values, features.frame_counts):
                # Their memory belongs to the stream of `prepare`, which may not use it again before this one is done.
                tensor.record_stream(stream)
        values = features.values.to(self._dtype)
        encoded, frame_counts = self._model.encoder(audio_signal=values, length=features.frame_counts)
        return self._decoder.decode(encoded.transpose(1, 2), frame_counts, keywords)

    def _collect(self, decoded: DecodedBatch) -> list[TokenColumns]:
        import torch

        whole = [decoded.token_ids.int(), decoded.start_frames.int(), decoded.end_frames.int()]
        packed = torch.stack([*whole, decoded.confidences.float().view(torch.int32)]).cpu().numpy()
        token_ids, starts, ends, confidences = *packed[:3], packed[3].view(np.float32)
        bounds = np.cumsum([0, *decoded.counts])
        if self._decoder.late_punctuation:
            # Punctuation may be emitted long after its word, in silence. As in NeMo, it gets the end time of the word.
            moves = self._is_punctuation[token_ids]
            moves[bounds[:-1][np.array(decoded.counts) > 0]] = False  # The first token of a window follows nothing.
            ends = ends[np.maximum.accumulate(np.where(moves, 0, np.arange(len(token_ids))))]
            starts = np.where(moves, ends, starts)
        starts, ends = starts * FRAME_SAMPLES, ends * FRAME_SAMPLES
        pieces = self._pieces[token_ids].tolist()
        spans = [slice(start, end) for start, end in pairwise(bounds)]
        return [TokenColumns(pieces[s], token_ids[s], starts[s], ends[s], confidences[s]) for s in spans]


def padded_samples(samples: int) -> int:
    """Length of a batch whose longest window has so many samples: up to 3 % more, so that few different lengths occur.

    Libraries prepare a kernel for every shape, and freed memory is used again for what has the same size.
    """
    step = max(FRAME_SAMPLES, (1 << (samples.bit_length() - 1)) // LENGTHS_PER_OCTAVE)
    return -(-samples // step) * step


@contextlib.contextmanager
def _as_engine_broken() -> Iterator[None]:
    """Raises EngineBroken for a failure of the device."""
    try:
        yield
    except EngineBroken:
        raise
    except Exception as error:
        if is_device_failure(error):
            raise EngineBroken(f"the GPU failed: {error}") from error
        raise
