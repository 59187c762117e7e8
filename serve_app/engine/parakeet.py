"""Parakeet TDT models in NeMo. torch and nemo are imported only when a model is loaded.

NeMo models are not thread-safe: use an engine from one thread at a time. The decoding strategy is set once, at load; changing it
later would capture the CUDA graphs again.
"""

import contextlib
import logging
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.engine.boosting import Booster
from serve_app.engine.cuda_graphs import GraphDecoder, GraphShape
from serve_app.engine.device_errors import is_device_failure, is_out_of_memory
from serve_app.engine.loading import LoadedModel, load_model
from serve_app.engine.protocol import EngineInfo
from serve_app.errors import EngineBroken, EngineOutOfMemory
from serve_app.settings import Device, Precision
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Keywords, Samples

log = logging.getLogger("ray.serve")

MIN_INPUT_SAMPLES = SAMPLE_RATE // 2
"""Shorter windows are padded to this many samples: features are normalised over the window, which needs several frames."""


class ParakeetEngine:
    """Runs the parts of a NeMo model itself: NeMo's own `transcribe()` is slow and keeps state between calls."""

    def __init__(self, loaded: LoadedModel, keyword_weight: float) -> None:
        self._model = model = loaded.model
        self._device = loaded.device
        self._precision = loaded.precision
        tokenizer = model.tokenizer
        self._pieces: list[str] = tokenizer.ids_to_tokens(list(range(tokenizer.vocab_size)))
        self._is_punctuation = [bool(p) and unicodedata.category(p[0]).startswith("P") for p in self._pieces]
        self._durations = list(model.cfg.decoding.durations)
        self._keyword_weight = keyword_weight
        self._decoder = GraphDecoder(model.decoding.decoding.decoding_computer)
        self._booster: Booster | None = None
        self._graph_shape: GraphShape | None = None

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(self._device, self._precision, self._decoder.mode)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: Device = "auto",
        precision: Precision = "auto",
        cpu_threads: int = 0,
        gpu_share: float = 1.0,
        keyword_weight: float = 0.5,
    ) -> "ParakeetEngine":
        """Load a `.nemo` file onto a device.

        `cpu_threads`: 0 uses one thread for a small model, else all usable cores. `gpu_share`: fraction of the GPU's memory that
        this process may use. `keyword_weight`: weight of boosted phrases, 0 to 1. Raises ModelUnavailable if the file cannot be
        loaded, or holds a model that this server does not run.
        """
        loaded = load_model(path, device=device, precision=precision, cpu_threads=cpu_threads, gpu_share=gpu_share)
        return cls(loaded, keyword_weight)

    def warm_up(self, items: int, window_samples: int, *, max_items: int) -> None:
        """Warm up on a GPU: capture the decoder's CUDA graphs, and run a batch of `items` windows of `window_samples`.

        The graphs are captured for `max_items` windows of `window_samples`, so that no batch needs a capture of its own. Raises
        EngineBroken if the GPU fails.
        """
        import torch

        self._graph_shape = max_items, window_samples // FRAME_SAMPLES + 2
        like = next(self._model.encoder.parameters()).new_zeros(1, 1, self._model.cfg.encoder.d_model)
        with torch.inference_mode(), _as_engine_broken():
            self._decoder.capture(self._graph_shape, like)
            try:
                self._booster = self._make_booster(like)
            except Exception as error:
                if is_device_failure(error):
                    raise
                log.exception("keywords are unavailable; the next request with keywords retries")
        noise = np.random.default_rng(0).integers(-1000, 1000, window_samples, dtype=np.int16)
        self.transcribe([noise] * min(items, max_items))

    def transcribe(self, windows: Sequence[Samples], keywords: Sequence[Keywords] = ()) -> list[list[Token]]:
        """See Engine.transcribe. A batch that does not fit into memory is split into halves until it does."""
        import torch

        keywords = keywords or [()] * len(windows)
        try:
            with torch.inference_mode(), _as_engine_broken():
                return self._transcribe(windows, keywords)
        except EngineBroken:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if len(windows) == 1:
            seconds = len(windows[0]) / SAMPLE_RATE
            raise EngineOutOfMemory(f"A window of {seconds:.0f} s does not fit into the memory of {self._device}.")
        middle = len(windows) // 2
        log.warning("out of memory with a batch of %d windows; retrying in two halves", len(windows))
        return self.transcribe(windows[:middle], keywords[:middle]) + self.transcribe(windows[middle:], keywords[middle:])

    def _transcribe(self, windows: Sequence[Samples], keywords: Sequence[Keywords]) -> list[list[Token]]:
        # Digital silence is skipped: it has no speech, and normalisation would turn its features into rounding noise.
        audible = [i for i, window in enumerate(windows) if window.any()]
        results: list[list[Token]] = [[] for _ in windows]
        if audible:
            recognised = self._recognise([windows[i] for i in audible], [keywords[i] for i in audible])
            for i, tokens in zip(audible, recognised, strict=True):
                results[i] = tokens
        return results

    def _recognise(self, windows: Sequence[Samples], keywords: Sequence[Keywords]) -> list[list[Token]]:
        import torch

        lengths = [max(len(window), MIN_INPUT_SAMPLES) for window in windows]
        padded = np.zeros((len(windows), max(lengths)), dtype=np.int16)
        for row, window in zip(padded, windows, strict=True):
            row[: len(window)] = window
        audio = torch.from_numpy(padded).to(self._device).float() / 32768.0
        model = self._model
        features, lengths = model.preprocessor(input_signal=audio, length=torch.tensor(lengths, device=self._device))
        dtype = next(model.encoder.parameters()).dtype
        encoded, frame_counts = model.encoder(audio_signal=features.to(dtype), length=lengths)
        encoded = encoded.transpose(1, 2)
        hypotheses = self._decode(encoded, frame_counts, keywords)
        counts = hypotheses.current_lengths[: len(windows)].tolist()
        token_ids = [row[:n].tolist() for row, n in zip(hypotheses.transcript, counts, strict=False)]
        frames = [row[:n].tolist() for row, n in zip(hypotheses.timestamps, counts, strict=False)]
        scored = self._score(encoded, token_ids, frames)
        return [self._tokens(*row) for row in zip(token_ids, frames, *scored, strict=True)]

    def _decode(self, encoded: Any, frame_counts: Any, keywords: Sequence[Keywords]) -> Any:
        if not any(keywords):
            return self._decoder(encoded, frame_counts)
        booster, self._booster = self._booster or self._make_booster(encoded), None
        hypotheses = booster.decode(encoded, frame_counts, keywords)
        # Kept only after success: after a failure the state of the decoder is unknown.
        self._booster = booster
        return hypotheses

    def _make_booster(self, like: Any) -> Booster:
        booster = Booster(self._model, self._keyword_weight)
        if self._graph_shape is not None:
            booster.decoder.capture(self._graph_shape, like)
        return booster

    def _score(
        self, encoded: Any, token_ids: list[list[int]], frames: list[list[int]]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Durations (frames) and confidences (0 to 1) of the emitted tokens, per window, by a teacher-forced scoring pass.

        `encoded`: float [windows, frames, features]. `frames`: the frame at which each token was emitted. The joint network is
        evaluated once more at that frame. NeMo 3.0.0 can return durations itself, but without CUDA graphs they depend on the
        other windows of the batch (NeMo issue 16097), and with CUDA graphs it returns no confidences.
        """
        import torch

        counts = [len(ids) for ids in token_ids]
        if not any(counts):
            return [[] for _ in counts], [[] for _ in counts]
        device, decoder, joint = encoded.device, self._model.decoder, self._model.joint
        targets = torch.zeros(len(counts), max(counts), dtype=torch.long)
        for row, ids in zip(targets, token_ids, strict=True):
            row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        predicted, _ = decoder.predict(targets.to(device), state=None, add_sos=True)
        rows = torch.tensor([i for i, n in enumerate(counts) for _ in range(n)], device=device)
        steps = torch.tensor([u for n in counts for u in range(n)], device=device)
        at_frames = torch.tensor([t for row in frames for t in row], device=device)
        emitted = torch.tensor([t for row in token_ids for t in row], device=device)
        scores = joint.joint_after_projection(
            joint.project_encoder(encoded[rows, at_frames].unsqueeze(1)),
            joint.project_prednet(predicted[rows, steps].unsqueeze(1)),
        )[:, 0, 0]
        choices = len(self._durations)
        best = scores[:, -choices:].argmax(-1).tolist()
        confidence = torch.softmax(scores[:, :-choices].float(), -1).gather(1, emitted[:, None])[:, 0].tolist()
        durations = [self._durations[i] for i in best]
        ends = np.cumsum(counts).tolist()
        spans = [slice(end - n, end) for n, end in zip(counts, ends, strict=True)]
        return [durations[s] for s in spans], [confidence[s] for s in spans]

    def _tokens(self, token_ids: list[int], frames: list[int], durations: list[int], confidences: list[float]) -> list[Token]:
        tokens: list[Token] = []
        for token_id, frame, duration, confidence in zip(token_ids, frames, durations, confidences, strict=True):
            start, end = frame * FRAME_SAMPLES, (frame + duration) * FRAME_SAMPLES
            # Punctuation may be emitted long after its word, in silence. As in NeMo, it gets the end time of the word.
            if self._is_punctuation[token_id] and tokens:
                start = end = tokens[-1].end_sample
            tokens.append(Token(self._pieces[token_id], token_id, start, end, confidence))
        return tokens


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
