"""A streaming Sortformer as a diarizer: one step of NeMo's streaming inference per call, with the state in and out as bytes.

NeMo's own entry points make their state themselves and call `empty_cache`, which breaks CUDA graphs of other models in the
process; here the preprocessor and `forward_streaming_step` are called directly. The audio is not scaled: NeMo scales it by the
peak of the whole recording only for offline models, and a peak that is known at the end is not known when a step needs it.
"""

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.cores import usable_cores
from serve_app.diarization.number_format import keep_state_in_fp32
from serve_app.diarization.protocol import DiarizerInfo, DiarizerShape, Probabilities
from serve_app.diarization.sortformer_files import StreamingSettings, read_streaming
from serve_app.diarization.state import MODEL_BYTES, StreamingState, pack, unpack
from serve_app.engine.cpu import CPU_ENVIRONMENT, keep_freed_memory
from serve_app.engine.device_errors import is_device_failure, is_out_of_memory
from serve_app.engine.loading import DTYPES, SMALL_MODEL_PARAMETERS, import_nemo_quietly, skip_type_checks
from serve_app.engine.precision import choose_precision
from serve_app.errors import EngineBroken, EngineOutOfMemory, ModelUnavailable
from serve_app.settings import Device, FastPath, Precision, WantedFastPaths
from serve_app.window import FRAME_SAMPLES, Samples

log = logging.getLogger("ray.serve")

HOP_SAMPLES = 160
"""Samples between two feature frames."""

FRAME_FEATURES = FRAME_SAMPLES // HOP_SAMPLES
"""Feature frames per frame."""

EDGE_FEATURES = 2
"""Feature frames at a cut through a recording that are not those of the recording: their windows, of 512 samples around the
frame, reach over the cut. As much more audio is sent on either side, and these features are dropped."""


FAST_PATHS: tuple[FastPath, ...] = ("attention", "convolution", "subsampling", "packed_linear")
"""Those that `auto` means: of a Conformer encoder. `features` is for normalised ones."""


class SortformerEngine:
    """See DiarizerEngine."""

    def __init__(self, model: Any, settings: StreamingSettings, identity: bytes, info: DiarizerInfo) -> None:
        self._model, self._identity, self._device = model, identity, info.device
        self.info = info
        edge = EDGE_FEATURES * HOP_SAMPLES
        self.shape = DiarizerShape(
            chunk_samples=settings.chunk_len * FRAME_SAMPLES,
            left_samples=settings.chunk_left_context * FRAME_SAMPLES + edge,
            right_samples=settings.chunk_right_context * FRAME_SAMPLES + edge,
            max_speakers=model.sortformer_modules.n_spk,
        )
        self.cache_frames = settings.spkcache_len + settings.fifo_len
        """Frames of the past that every later step encodes again."""
        self._left_features = settings.chunk_left_context * FRAME_FEATURES
        self._right_features = settings.chunk_right_context * FRAME_FEATURES

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: Device = "auto",
        precision: Precision = "auto",
        fast_paths: WantedFastPaths = "auto",
        chunk_s: float | None = None,
        cpu_threads: int = 0,
    ) -> "SortformerEngine":
        """Load a `.nemo` file.

        `precision`: `auto`: fp32 on a GPU, where a step waits for its launches and not for its arithmetic; on a CPU as
        `choose_precision` measures. `chunk_s`: see `read_streaming`. `cpu_threads`: 0: one for a small model, else all cores.
        Raises ModelUnavailable.
        """
        settings = read_streaming(path, chunk_s)
        for name, value in CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # torch reads these variables when it is imported.
        import torch

        import_nemo_quietly()
        from nemo.collections.asr.models import SortformerEncLabelModel

        from serve_app.engine.fast_paths import apply_fast_paths

        started = time.monotonic()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            model = SortformerEncLabelModel.restore_from(str(path), map_location=torch.device("cpu"))
        except Exception as error:
            raise ModelUnavailable(f"{path} could not be loaded as a Sortformer: {error}") from error
        parameters = sum(p.numel() for p in model.parameters())
        is_small = parameters < SMALL_MODEL_PARAMETERS
        if device == "cpu":
            torch.set_num_threads(cpu_threads or (1 if is_small else usable_cores()))
            keep_freed_memory()
        model.eval().freeze()
        model.async_streaming = False
        model.preprocessor.featurizer.dither = 0.0
        model.preprocessor.featurizer.pad_to = 0
        for name in StreamingSettings.__slots__:
            setattr(model.sortformer_modules, name, getattr(settings, name))
        try:
            model.sortformer_modules._check_streaming_parameters()
            model.float().to(device)
            if precision == "auto":
                precision = "fp32" if device == "cuda" else choose_precision(model, device, is_small=is_small, packs_linear=True)
            dtype = getattr(torch, DTYPES[precision])
            for part in (model.encoder, model.transformer_encoder, model.sortformer_modules.encoder_proj):
                if part is not None:
                    part.to(dtype)
        except ValueError as error:
            raise ModelUnavailable(f"{path} cannot be used as a diarizer: {error}") from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise ModelUnavailable(f"{path} does not fit into the memory of {device}: {error}") from error
        paths = apply_fast_paths(model, FAST_PATHS if fast_paths == "auto" else fast_paths)
        if precision != "fp32":
            keep_state_in_fp32(model, dtype)
        skip_type_checks()
        seconds = time.monotonic() - started
        log.info("loaded %s: %.1f M parameters, %s on %s, %.1f s", path.name, parameters / 1e6, precision, device, seconds)
        return cls(model, settings, _identity(path, settings), DiarizerInfo(device, precision, paths.used, paths.left_out))

    def step(self, samples: Samples, left_samples: int, right_samples: int, state: bytes | None) -> tuple[Probabilities, bytes]:
        """See DiarizerEngine.step. `left_samples` is a multiple of HOP_SAMPLES, as it is if chunks and contexts have the lengths
        of `shape`. Raises EngineOutOfMemory if the step does not fit into memory."""
        import torch

        chunk_samples = len(samples) - left_samples - right_samples
        rows = -(-chunk_samples // FRAME_SAMPLES)
        speakers = self.shape.max_speakers
        before_chunk = left_samples // HOP_SAMPLES
        left = min(before_chunk, self._left_features)
        # The rest of a recording that is shorter than a hop has no feature frame, as in NeMo.
        after_left = len(samples) // HOP_SAMPLES - before_chunk
        chunk = min(rows * FRAME_FEATURES, after_left)
        right = min(self._right_features, after_left - chunk)
        before = StreamingState(*_nothing(self._model)) if state is None else unpack(state, self._identity)
        found = np.zeros((rows, speakers), np.float16)
        if chunk > 0:
            with torch.inference_mode(), _as_engine_error():
                wave = torch.from_numpy(samples.astype(np.float32) / 32768)[None].to(self._device)
                length = torch.tensor([len(samples)], device=self._device)
                features, _ = self._model.preprocessor(input_signal=wave, length=length)
                features = features[:, :, before_chunk - left : before_chunk + chunk + right].transpose(1, 2)
                probabilities, before = self._forward(features, left, right, before)
            found[: len(probabilities)] = probabilities[:rows]
        return found, pack(before, self._identity, speakers)

    def _forward(self, features: Any, left: int, right: int, state: StreamingState) -> tuple[np.ndarray, StreamingState]:
        """`features`: [1, left + chunk + right, mel]. Returns the chunk's probabilities, float32 [frames, speakers]."""
        import torch

        device, model = self._device, self._model
        streaming = model.sortformer_modules.init_streaming_state(batch_size=1, device=device)
        streaming.spkcache = torch.from_numpy(state.cache)[None].to(device)
        if state.cache_probabilities is not None:
            streaming.spkcache_preds = torch.from_numpy(state.cache_probabilities)[None].to(device)
        streaming.fifo = torch.from_numpy(state.queue)[None].to(device)
        streaming.mean_sil_emb = torch.from_numpy(state.mean_silence)[None].to(device)
        streaming.n_sil_frames = torch.tensor([state.silent_frames], device=device)
        streaming, found = model.forward_streaming_step(
            processed_signal=features,
            processed_signal_length=torch.tensor([features.shape[1]], device=device),
            streaming_state=streaming,
            total_preds=torch.zeros((1, 0, model.sortformer_modules.n_spk), device=device),
            left_offset=left,
            right_offset=right,
        )
        probabilities = None if streaming.spkcache_preds is None else streaming.spkcache_preds[0].cpu().numpy()
        after = StreamingState(
            cache=streaming.spkcache[0].cpu().numpy(),
            cache_probabilities=probabilities,
            queue=streaming.fifo[0].cpu().numpy(),
            mean_silence=streaming.mean_sil_emb[0].cpu().numpy(),
            silent_frames=int(streaming.n_sil_frames[0]),
        )
        return found[0].cpu().numpy(), after


def _nothing(model: Any) -> tuple[np.ndarray, None, np.ndarray, np.ndarray, int]:
    """The state before the first step."""
    width = model.sortformer_modules.fc_d_model
    empty = np.zeros((0, width), np.float32)
    return empty, None, empty, np.zeros(width, np.float32), 0


def _identity(path: Path, settings: StreamingSettings) -> bytes:
    """Names a model with what its state depends on: equal on every replica that has the same file, also with other chunks."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=MODEL_BYTES)).digest()
    return hashlib.blake2b(digest + repr((settings.spkcache_len, settings.fifo_len)).encode(), digest_size=MODEL_BYTES).digest()


@contextlib.contextmanager
def _as_engine_error() -> Iterator[None]:
    """Raises EngineBroken for a failure of the device, EngineOutOfMemory where memory runs out."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise EngineOutOfMemory(f"a step of the diarizer does not fit into memory: {error}") from error
        if is_device_failure(error):
            raise EngineBroken(f"the GPU failed: {error}") from error
        raise
