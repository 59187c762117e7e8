"""Engines: int16 windows in, tokens out. The only module that imports nemo or torch, and only when a Parakeet model is loaded.

An engine is used by one thread at a time: NeMo models are not thread-safe. It is loaded once and never reconfigured; changing the
decoding strategy later would capture the CUDA graphs anew.
"""

import copy
import logging
import os
import time
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from serve_app.errors import EngineBroken, EngineOutOfMemory, ModelUnavailable
from serve_app.settings import Device, Precision, SimulationSettings
from serve_app.transcript import FRAME_SAMPLES, SAMPLE_RATE, Samples, Token

log = logging.getLogger("ray.serve")

SHORTEST_INPUT = SAMPLE_RATE // 2
"""Shorter windows are padded to this: the features are normalised over the window, which needs a few frames."""

SMALL_MODEL_PARAMETERS = 20_000_000
"""Below this a CPU gains too little from bf16 to be worth its rounding."""


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

    def __init__(self, model: Any, info: EngineInfo) -> None:
        self._model = model
        self.info = info
        tokenizer = model.tokenizer
        self._pieces: list[str] = tokenizer.ids_to_tokens(list(range(tokenizer.vocab_size)))
        self._is_punctuation = [bool(p) and unicodedata.category(p[0]).startswith("P") for p in self._pieces]
        self._durations = list(model.cfg.decoding.durations)

    @classmethod
    def load(
        cls, path: Path, *, device: Device = "auto", precision: Precision = "auto", cpu_threads: int = 0
    ) -> "ParakeetEngine":
        """Load a `.nemo` file onto a device; raises ModelUnavailable when it is not a TDT model or does not load."""
        import torch
        from omegaconf import open_dict

        ASRModel = _import_nemo_quietly()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(cpu_threads or len(os.sched_getaffinity(0)))
        started = time.monotonic()
        try:
            model = ASRModel.restore_from(str(path), map_location=torch.device("cpu"))
        except Exception as error:
            raise ModelUnavailable(f"{path} could not be loaded as a NeMo speech model: {error}") from error
        if model.cfg.get("decoding", {}).get("model_type") != "tdt":
            raise ModelUnavailable(f"{path} is not a token-and-duration transducer (TDT) model")
        model.eval().freeze()
        model.preprocessor.featurizer.dither = 0.0
        model.preprocessor.featurizer.pad_to = 0
        precision = _choose_precision(model, device) if precision == "auto" else precision
        model.to(device=device, dtype={"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])
        decoding = model.cfg.decoding
        with open_dict(decoding):
            decoding.strategy = "greedy_batch"
            decoding.compute_timestamps = False
            decoding.preserve_alignments = False
            decoding.greedy.use_cuda_graph_decoder = device == "cuda"
            decoding.greedy.max_symbols = 10
        model.change_decoding_strategy(decoding, verbose=False)
        engine = cls(model, EngineInfo(device=device, precision=precision, decoder=_decoder_mode(model)))
        size = sum(p.numel() for p in model.parameters()) / 1e6
        log.info("loaded %s: %.1f M parameters, %s, %.1f s", path.name, size, engine.info, time.monotonic() - started)
        return engine

    def warm_up(self, items: int, window_samples: int) -> None:
        """Run the largest batch once, so that CUDA graphs and buffers are made at their final size and never again."""
        noise = np.random.default_rng(0).integers(-1000, 1000, window_samples, dtype=np.int16)
        self.transcribe([noise] * items)

    def transcribe(self, windows: Sequence[Samples]) -> list[list[Token]]:
        """See Engine.transcribe. A batch that does not fit in memory is halved until it does."""
        import torch

        try:
            with torch.inference_mode():
                return self._transcribe(windows)
        except torch.OutOfMemoryError:
            if len(windows) == 1:
                seconds = len(windows[0]) / SAMPLE_RATE
                raise EngineOutOfMemory(
                    f"a window of {seconds:.0f} s does not fit into the memory of {self.info.device}"
                ) from None
        except RuntimeError as error:
            if "CUDA error" in str(error):
                raise EngineBroken(f"the GPU failed: {error}") from error
            raise
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
        audio = torch.from_numpy(padded).to(self.info.device).float() / 32768.0
        model = self._model
        encoded, frame_counts = model.forward(
            input_signal=audio, input_signal_length=torch.tensor(lengths, device=self.info.device)
        )
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


class SimulatedEngine:
    """Takes the time a GPU would and says words that depend only on the audio, whatever window they are heard in."""

    info = EngineInfo(device="simulated", precision="none", decoder="simulated")

    def __init__(self, costs: SimulationSettings) -> None:
        self._costs = costs
        time.sleep(costs.load_s)

    def transcribe(self, windows: Sequence[Samples]) -> list[list[Token]]:
        """See Engine.transcribe. About one frame in six says a word: its own checksum."""
        padded_s = max(len(w) for w in windows) * len(windows) / SAMPLE_RATE
        time.sleep(self._costs.step_s + self._costs.seconds_per_audio_s * padded_s)
        return [self._words(window) for window in windows]

    @staticmethod
    def _words(window: Samples) -> list[Token]:
        tokens = []
        for start in range(0, len(window) - FRAME_SAMPLES + 1, FRAME_SAMPLES):
            frame = window[start : start + FRAME_SAMPLES]
            checksum = zlib.crc32(frame.tobytes())
            if frame.any() and checksum % 6 == 0:
                tokens.append(Token(f"▁w{checksum % 9973}", checksum % 9973, start, start + FRAME_SAMPLES, 1.0))
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


def _choose_precision(model: Any, device: str) -> Precision:
    """bf16 where the hardware is faster with it: known for GPUs, measured for CPUs on one layer of this very model."""
    import torch

    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if sum(p.numel() for p in model.parameters()) < SMALL_MODEL_PARAMETERS:
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


def _decoder_mode(model: Any) -> str:
    mode = getattr(model.decoding.decoding.decoding_computer, "cuda_graphs_mode", None)
    if mode is None:
        return "eager"
    return "cuda graphs" if str(mode.value) == "full_graph" else "cuda graphs without loops"
