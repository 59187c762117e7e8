"""Parakeet TDT models in NeMo. torch and nemo are imported only when a model is loaded.

NeMo models are not thread-safe: use an engine from one thread at a time. The decoding strategy is set once, at load; changing it
later would capture the CUDA graphs again.
"""

import logging
import os
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.cores import usable_cores
from serve_app.engine.boosting import Booster
from serve_app.engine.cpu import CPU_ENVIRONMENT, keep_freed_memory
from serve_app.engine.device_errors import is_device_failure, is_out_of_memory
from serve_app.engine.precision import choose_precision
from serve_app.engine.protocol import EngineInfo, FastPaths
from serve_app.errors import EngineBroken, EngineOutOfMemory, ModelUnavailable
from serve_app.settings import Device, Precision, WantedFastPaths
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Keywords, Samples

log = logging.getLogger("ray.serve")

MIN_INPUT_SAMPLES = SAMPLE_RATE // 2
"""Shorter windows are padded to this many samples: features are normalised over the window, which needs several frames."""

SMALL_MODEL_PARAMETERS = 20_000_000
"""A model with fewer parameters is small. On a CPU it runs in fp32 on one thread: bf16 would gain too little to be worth its
rounding, and a second thread would gain nothing."""


class ParakeetEngine:
    """Runs the parts of a NeMo model itself: NeMo's own `transcribe()` is slow and keeps state between calls."""

    def __init__(self, model: Any, device: str, precision: Precision, fast_paths: FastPaths, keyword_weight: float) -> None:
        self._model = model
        self._device = device
        self._precision = precision
        self._fast_paths = fast_paths
        tokenizer = model.tokenizer
        self._pieces: list[str] = tokenizer.ids_to_tokens(list(range(tokenizer.vocab_size)))
        self._is_punctuation = [bool(p) and unicodedata.category(p[0]).startswith("P") for p in self._pieces]
        self._durations = list(model.cfg.decoding.durations)
        self._keyword_weight = keyword_weight
        self._booster: Booster | None = None
        self._max_shape: tuple[int, int] | None = None  # (windows, encoder frames) of the captured graphs

    @property
    def info(self) -> EngineInfo:
        """`decoder` may still change at the first batch: NeMo falls back where it cannot capture a full CUDA graph."""
        return EngineInfo(self._device, self._precision, _decoder_mode(self._model), self._fast_paths)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: Device = "auto",
        precision: Precision = "auto",
        fast_paths: WantedFastPaths = "auto",
        cpu_threads: int = 0,
        keyword_weight: float = 0.5,
    ) -> "ParakeetEngine":
        """Load a `.nemo` file onto a device.

        `fast_paths`: see fast_paths.py. `cpu_threads`: 0 uses one thread for a small model, else all usable cores.
        `keyword_weight`: weight of boosted phrases, 0 to 1. Raises ModelUnavailable if the file cannot be loaded, or is not a
        token-and-duration transducer (TDT).
        """
        for name, value in CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # torch reads these variables when it is imported.
        import torch
        from omegaconf import open_dict

        ASRModel = _import_nemo_quietly()
        from serve_app.engine.fast_paths import apply_fast_paths

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        started = time.monotonic()
        try:
            model = ASRModel.restore_from(str(path), map_location=torch.device("cpu"))
        except Exception as error:
            raise ModelUnavailable(f"{path} could not be loaded as a NeMo speech model: {error}") from error
        if model.cfg.get("decoding", {}).get("model_type") != "tdt":
            raise ModelUnavailable(f"{path} is not a token-and-duration transducer (TDT) model")
        parameters = sum(p.numel() for p in model.parameters())
        is_small = parameters < SMALL_MODEL_PARAMETERS
        if device == "cpu":
            torch.set_num_threads(cpu_threads or (1 if is_small else usable_cores()))
        model.eval().freeze()
        model.preprocessor.featurizer.dither = 0.0
        model.preprocessor.featurizer.pad_to = 0
        precision = choose_precision(model, device, is_small=is_small) if precision == "auto" else precision
        model.to(device=device, dtype={"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])
        # Computing features in less than fp32 costs accuracy. NeMo converts them to the encoder's dtype.
        model.preprocessor.featurizer.float()
        paths = apply_fast_paths(model, fast_paths)
        decoding = model.cfg.decoding
        with open_dict(decoding):
            decoding.strategy = "greedy_batch"
            decoding.compute_timestamps = False
            decoding.preserve_alignments = False
            decoding.greedy.use_cuda_graph_decoder = device == "cuda"
            decoding.greedy.max_symbols = 10
        model.change_decoding_strategy(decoding, verbose=False)
        if device == "cpu":
            keep_freed_memory()
        engine = cls(model, device, precision, paths, keyword_weight)
        seconds = time.monotonic() - started
        log.info("loaded %s: %.1f M parameters, %s, %.1f s", path.name, parameters / 1e6, engine.info, seconds)
        return engine

    def warm_up(self, items: int, window_samples: int, *, max_items: int) -> None:
        """Warm up on a GPU: capture the decoder's CUDA graphs, and run a batch of `items` windows of `window_samples`.

        NeMo captures the graphs again whenever a batch has more windows or more frames than every earlier one. So they are
        captured for (`max_items` windows, frames of a full window), which no batch exceeds.
        """
        self._max_shape = max_items, window_samples // FRAME_SAMPLES + 2
        self._capture_graphs(self._model.decoding)
        try:
            self._booster = self._make_booster()
        except Exception:
            log.exception("keywords are unavailable; the next request with keywords retries")
        noise = np.random.default_rng(0).integers(-1000, 1000, window_samples, dtype=np.int16)
        self.transcribe([noise] * min(items, max_items))

    def _capture_graphs(self, decoding: Any) -> None:
        import torch

        if self._max_shape is None:
            return
        items, frames = self._max_shape
        encoded = torch.zeros(items, self._model.cfg.encoder.d_model, frames, device=self._device)
        lengths = torch.full((items,), frames, device=self._device)
        dtype = next(self._model.encoder.parameters()).dtype
        with torch.inference_mode():
            decoding.rnnt_decoder_predictions_tensor(encoded.to(dtype), lengths, return_hypotheses=True)

    def transcribe(self, windows: Sequence[Samples], keywords: Sequence[Keywords] = ()) -> list[list[Token]]:
        """See Engine.transcribe. A batch that does not fit into memory is split into halves until it does."""
        import torch

        keywords = keywords or [()] * len(windows)
        try:
            with torch.inference_mode():
                return self._transcribe(windows, keywords)
        except Exception as error:
            if not is_out_of_memory(error):
                if is_device_failure(error):
                    raise EngineBroken(f"the GPU failed: {error}") from error
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
        encoded, frame_counts = model.forward(input_signal=audio, input_signal_length=torch.tensor(lengths, device=self._device))
        hypotheses = self._decode(encoded, frame_counts, keywords)
        token_ids = [[int(token_id) for token_id in h.y_sequence] for h in hypotheses]
        frames = [[int(frame) for frame in h.timestamp] for h in hypotheses]
        scored = self._score(encoded.transpose(1, 2), token_ids, frames)
        return [self._tokens(*row) for row in zip(token_ids, frames, *scored, strict=True)]

    def _decode(self, encoded: Any, frame_counts: Any, keywords: Sequence[Keywords]) -> list[Any]:
        if not any(keywords):
            hypotheses: list[Any] = self._model.decoding.rnnt_decoder_predictions_tensor(
                encoded, frame_counts, return_hypotheses=True
            )
            return hypotheses
        booster, self._booster = self._booster or self._make_booster(), None
        hypotheses = booster.decode(encoded, frame_counts, keywords)
        # Kept only after success: after a failure the state of the decoder is unknown.
        self._booster = booster
        return hypotheses

    def _make_booster(self) -> Booster:
        return Booster(self._model, self._keyword_weight, self._capture_graphs)

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


def _import_nemo_quietly() -> Any:
    """NeMo's ASRModel, imported with the logging of NeMo and its dependencies silenced."""
    logging.getLogger("nv_one_logger").setLevel(logging.CRITICAL)
    root_level = logging.getLogger().level
    logging.getLogger().setLevel(logging.CRITICAL)
    try:
        from nemo.collections.asr.models import ASRModel
        from nemo.utils import logging as nemo_logging
    finally:
        logging.getLogger().setLevel(root_level)
    nemo_logging.set_verbosity(nemo_logging.ERROR)
    return ASRModel


def _decoder_mode(model: Any) -> str:
    mode = getattr(model.decoding.decoding.decoding_computer, "cuda_graphs_mode", None)
    if mode is None:
        return "eager"
    return "cuda graphs" if str(mode.value) == "full_graph" else "cuda graphs without loops"
