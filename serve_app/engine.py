"""Engines: int16 windows in, tokens out. The only module that imports nemo or torch, and only when a Parakeet model is loaded.

An engine is used by one thread at a time: NeMo models are not thread-safe. It is loaded once and never reconfigured; changing the
decoding strategy later would capture the CUDA graphs anew.
"""

import contextlib
import copy
import logging
import os
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from serve_app.errors import EngineBroken, EngineOutOfMemory, ModelUnavailable
from serve_app.settings import Device, Precision
from serve_app.transcript import FRAME_SAMPLES, SAMPLE_RATE, Samples, Token

log = logging.getLogger("ray.serve")

SHORTEST_INPUT = SAMPLE_RATE // 2
"""Shorter windows are padded to this: the features are normalised over the window, which needs a few frames."""

CPU_LIBRARIES = {"OMP_WAIT_POLICY": "PASSIVE", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
"""OpenMP's threads wait for one another by spinning: beside other busy processes a step then took 50 times as long. And oneDNN
keeps what it prepared for 1,024 shapes: 150 MB where every window has a length of its own."""

SMALL_MODEL_PARAMETERS = 20_000_000
"""Below this a CPU gains too little from bf16 to be worth its rounding, and nothing from a second thread."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine runs on."""

    device: str
    precision: str
    decoder: str
    """How the decoding loop runs: `cuda graphs` (full graph), `cuda graphs without loops`, `eager`, or `simulated`."""


class Engine(Protocol):
    """Anything that turns windows into tokens."""

    @property
    def info(self) -> EngineInfo: ...

    def transcribe(self, windows: Sequence[Samples]) -> list[list[Token]]:
        """Recognise a batch of windows, each int16 [samples] at 16 kHz.

        Returns one list of tokens per window, in order, with times in samples from the window's start. Raises EngineOutOfMemory
        when even a single window does not fit, EngineBroken when the device is lost to this process.
        """
        ...


class ParakeetEngine:
    """A Parakeet TDT model driven directly, without NeMo's `transcribe()` (which is slow and keeps state between calls)."""

    def __init__(self, model: Any, device: str, precision: Precision) -> None:
        self._model = model
        self._device = device
        self._precision = precision
        tokenizer = model.tokenizer
        self._pieces: list[str] = tokenizer.ids_to_tokens(list(range(tokenizer.vocab_size)))
        self._is_punctuation = [bool(p) and unicodedata.category(p[0]).startswith("P") for p in self._pieces]
        self._durations = list(model.cfg.decoding.durations)

    @property
    def info(self) -> EngineInfo:
        """As of now: how the decoder runs is certain only after the first batch."""
        return EngineInfo(self._device, self._precision, _decoder_mode(self._model))

    @classmethod
    def load(
        cls, path: Path, *, device: Device = "auto", precision: Precision = "auto", cpu_threads: int = 0
    ) -> "ParakeetEngine":
        """Load a `.nemo` file onto a device; raises ModelUnavailable when it is not a TDT model or does not load."""
        for name, value in CPU_LIBRARIES.items():
            os.environ.setdefault(name, value)
        # It reads them when it is loaded, which is now.
        import torch
        from omegaconf import open_dict

        ASRModel = _import_nemo_quietly()
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
        precision = _choose_precision(model, device, is_small=is_small) if precision == "auto" else precision
        model.to(device=device, dtype={"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])
        # Features in less than fp32 cost accuracy; NeMo converts them to the encoder's type itself.
        model.preprocessor.featurizer.float()
        decoding = model.cfg.decoding
        with open_dict(decoding):
            decoding.strategy = "greedy_batch"
            decoding.compute_timestamps = False
            decoding.preserve_alignments = False
            decoding.greedy.use_cuda_graph_decoder = device == "cuda"
            decoding.greedy.max_symbols = 10
        model.change_decoding_strategy(decoding, verbose=False)
        engine = cls(model, device, precision)
        seconds = time.monotonic() - started
        log.info("loaded %s: %.1f M parameters, %s, %.1f s", path.name, parameters / 1e6, engine.info, seconds)
        return engine

    def warm_up(self, items: int, window_samples: int, *, most_items: int) -> None:
        """Run once what will be the largest: a batch of `items` full windows, and the decoder on `most_items` of them.

        The decoder captures its CUDA graphs for the shape it sees, and again whenever a batch has more members or frames. It is
        small enough to be shown the largest of both at once, though no batch is, so that it never captures again.
        """
        import torch

        frames = window_samples // FRAME_SAMPLES + 2
        encoded = torch.zeros(most_items, self._model.cfg.encoder.d_model, frames, device=self._device)
        lengths = torch.full((most_items,), frames, device=self._device)
        dtype = next(self._model.encoder.parameters()).dtype
        with torch.inference_mode():
            self._model.decoding.rnnt_decoder_predictions_tensor(encoded.to(dtype), lengths, return_hypotheses=True)
        noise = np.random.default_rng(0).integers(-1000, 1000, window_samples, dtype=np.int16)
        self.transcribe([noise] * min(items, most_items))

    def transcribe(self, windows: Sequence[Samples]) -> list[list[Token]]:
        """See Engine.transcribe. A batch that does not fit in memory is halved until it does."""
        import torch

        try:
            with torch.inference_mode():
                return self._transcribe(windows)
        except Exception as error:
            if not _is_out_of_memory(error):
                if _is_device_failure(error):
                    raise EngineBroken(f"the GPU failed: {error}") from error
                raise
        if len(windows) == 1:
            seconds = len(windows[0]) / SAMPLE_RATE
            raise EngineOutOfMemory(f"A window of {seconds:.0f} s does not fit into the memory of {self._device}.")
        middle = len(windows) // 2
        log.warning("out of memory with a batch of %d windows; trying halves", len(windows))
        return self.transcribe(windows[:middle]) + self.transcribe(windows[middle:])

    def _transcribe(self, windows: Sequence[Samples]) -> list[list[Token]]:
        # Exact digital silence holds no speech; normalising it would only amplify rounding.
        spoken = [i for i, window in enumerate(windows) if window.any()]
        results: list[list[Token]] = [[] for _ in windows]
        if spoken:
            for place, tokens in zip(spoken, self._recognise([windows[i] for i in spoken]), strict=True):
                results[place] = tokens
        return results

    def _recognise(self, windows: Sequence[Samples]) -> list[list[Token]]:
        import torch

        lengths = [max(len(window), SHORTEST_INPUT) for window in windows]
        padded = np.zeros((len(windows), max(lengths)), dtype=np.int16)
        for row, window in zip(padded, windows, strict=True):
            row[: len(window)] = window
        audio = torch.from_numpy(padded).to(self._device).float() / 32768.0
        model = self._model
        encoded, frame_counts = model.forward(input_signal=audio, input_signal_length=torch.tensor(lengths, device=self._device))
        hypotheses = model.decoding.rnnt_decoder_predictions_tensor(encoded, frame_counts, return_hypotheses=True)
        token_ids = [h.y_sequence.tolist() for h in hypotheses]
        frames = [h.timestamp.tolist() for h in hypotheses]
        scored = self._score(encoded.transpose(1, 2), token_ids, frames)
        return [self._tokens(*row) for row in zip(token_ids, frames, *scored, strict=True)]

    def _score(
        self, encoded: Any, token_ids: list[list[int]], frames: list[list[int]]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Durations in frames and confidences of tokens that the decoder has emitted.

        One teacher-forced pass puts the same question to the joint network that the decoder asked for each token. NeMo 3.0.0
        could give durations itself, but outside CUDA graphs they depend on the other members of the batch (its issue 16097), and
        it gives no confidences from within CUDA graphs.
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
            # Punctuation may be emitted long after its word, over silence; like NeMo, put it where the word ends.
            if self._is_punctuation[token_id] and tokens:
                start = end = tokens[-1].end_sample
            tokens.append(Token(self._pieces[token_id], token_id, start, end, confidence))
        return tokens


def _import_nemo_quietly() -> Any:
    """NeMo's ASRModel, with the chatter of NeMo and of what it imports turned off for good."""
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


def _choose_precision(model: Any, device: str, *, is_small: bool) -> Precision:
    """bf16 where the hardware is faster with it: known for GPUs, measured for CPUs on one layer of this very model."""
    import torch

    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if is_small:
        return "fp32"
    layer = copy.deepcopy(model.encoder.layers[0].feed_forward1)
    seconds: list[float] = []
    for dtype in (torch.float32, torch.bfloat16):
        layer.to(dtype)
        frames = torch.zeros(1, 375, model.cfg.encoder.d_model, dtype=dtype)
        runs = []
        with torch.inference_mode():
            for _ in range(6):
                started = time.perf_counter()
                layer(frames)
                runs.append(time.perf_counter() - started)
        seconds.append(min(runs))
    return "bf16" if seconds[1] < 0.75 * seconds[0] else "fp32"


def _is_out_of_memory(error: Exception) -> bool:
    """torch has a type of its own for this on GPUs only."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _is_device_failure(error: Exception) -> bool:
    """Whether a GPU, and with it this process's use of it, is lost. The libraries on top of CUDA raise types of their own."""
    text = f"{type(error).__name__}: {error}".lower()
    return any(sign in text for sign in ("cuda error", "cuda runtime error", "cudnn error", "cublas error", "acceleratorerror"))


def usable_cores() -> int:
    """Cores that this process may use: of its affinity, and of a container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _decoder_mode(model: Any) -> str:
    mode = getattr(model.decoding.decoding.decoding_computer, "cuda_graphs_mode", None)
    if mode is None:
        return "eager"
    return "cuda graphs" if str(mode.value) == "full_graph" else "cuda graphs without loops"
