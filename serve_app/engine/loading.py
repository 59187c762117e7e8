"""From a `.nemo` file to a model that is ready to run: checked, on its device, in its number format. Imports torch and nemo when
a model is loaded."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.cores import usable_cores
from serve_app.engine.cpu import CPU_ENVIRONMENT, keep_freed_memory
from serve_app.engine.precision import choose_precision
from serve_app.errors import ModelUnavailable
from serve_app.settings import Device, Precision
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE

log = logging.getLogger("ray.serve")

SMALL_MODEL_PARAMETERS = 20_000_000
"""A model with fewer parameters is small. On a CPU it runs in fp32 on one thread: bf16 would gain too little to be worth its
rounding, and a second thread would gain nothing."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A NeMo model on its device, frozen, and set up for greedy decoding in batches."""

    model: Any
    device: str
    precision: Precision


def load_model(path: Path, *, device: Device, precision: Precision, cpu_threads: int, gpu_share: float) -> LoadedModel:
    """Load a `.nemo` file; see `ParakeetEngine.load`. Raises ModelUnavailable."""
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # torch reads these variables when it is imported.
    import torch

    ASRModel = _import_nemo_quietly()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and gpu_share < 1:
        # Several replicas share the GPU: one must not take the memory of the others.
        torch.cuda.set_per_process_memory_fraction(gpu_share)
    started = time.monotonic()
    try:
        model = ASRModel.restore_from(str(path), map_location=torch.device("cpu"))
    except Exception as error:
        raise ModelUnavailable(f"{path} could not be loaded as a NeMo speech model: {error}") from error
    _check(model, path)
    parameters = sum(p.numel() for p in model.parameters())
    is_small = parameters < SMALL_MODEL_PARAMETERS
    if device == "cpu":
        torch.set_num_threads(cpu_threads or (1 if is_small else usable_cores()))
    model.eval().freeze()
    model.preprocessor.featurizer.dither = 0.0
    model.preprocessor.featurizer.pad_to = 0
    precision = choose_precision(model, device, is_small=is_small) if precision == "auto" else precision
    model.to(device=device)
    cast(model, precision)
    _set_up_decoding(model, device)
    if device == "cpu":
        keep_freed_memory()
    seconds = time.monotonic() - started
    log.info("loaded %s: %.1f M parameters, %s, %s, %.1f s", path.name, parameters / 1e6, device, precision, seconds)
    return LoadedModel(model, device, precision)


def cast(model: Any, precision: Precision) -> None:
    """Change the number format of everything but the features.

    In less than fp32, features cost accuracy: their arithmetic, and also the rounding of the window and the filterbank, which are
    buffers of the preprocessor.
    """
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for part in (model.encoder, model.decoder, model.joint):
        part.to(dtype)


def _check(model: Any, path: Path) -> None:
    """Raises ModelUnavailable for a model that this server cannot run, or whose times it would get wrong."""
    if model.cfg.get("decoding", {}).get("model_type") != "tdt":
        raise ModelUnavailable(f"{path} is not a token-and-duration transducer (TDT) model")
    features = model.preprocessor.featurizer
    if features.sample_rate != SAMPLE_RATE:
        raise ModelUnavailable(f"{path} takes audio of {features.sample_rate} Hz; this server runs models of {SAMPLE_RATE} Hz")
    hop, factor = features.hop_length, model.encoder.subsampling_factor
    if hop * factor != FRAME_SAMPLES:
        raise ModelUnavailable(
            f"{path} has encoder frames of {hop * factor / SAMPLE_RATE * 1000:.0f} ms ({factor} times {hop} samples); "
            f"this server runs models with frames of {FRAME_SAMPLES / SAMPLE_RATE * 1000:.0f} ms"
        )


def _set_up_decoding(model: Any, device: str) -> None:
    from omegaconf import open_dict

    decoding = model.cfg.decoding
    with open_dict(decoding):
        decoding.strategy = "greedy_batch"
        decoding.compute_timestamps = False
        decoding.preserve_alignments = False
        decoding.greedy.use_cuda_graph_decoder = device == "cuda"
        decoding.greedy.max_symbols = 10
    model.change_decoding_strategy(decoding, verbose=False)


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
