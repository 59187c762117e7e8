"""From a `.nemo` file to a model that is ready to run: checked, on its device, in its number format. Imports torch and nemo when
a model is loaded."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from serve_app.cores import usable_cores
from serve_app.engine.checkpoints import Family, read_family
from serve_app.engine.cpu import CPU_ENVIRONMENT, keep_freed_memory
from serve_app.engine.ctc import CtcDecoder
from serve_app.engine.decoder import Decoder
from serve_app.engine.device_errors import is_out_of_memory
from serve_app.engine.precision import choose_precision
from serve_app.engine.protocol import FastPaths
from serve_app.engine.transducer import TransducerDecoder
from serve_app.errors import ModelUnavailable
from serve_app.settings import DecoderChoice, Device, Precision, WantedFastPaths

log = logging.getLogger("ray.serve")

SMALL_MODEL_PARAMETERS = 20_000_000
"""A model with fewer parameters is small. On a CPU it runs in fp32 on one thread: bf16 would gain too little to be worth its
rounding, and a second thread would gain nothing."""


Head = Literal["transducer", "ctc"]

HEADS: dict[Family, tuple[Head, ...]] = {
    "tdt": ("transducer",),
    "rnnt": ("transducer",),
    "ctc": ("ctc",),
    "hybrid_tdt_ctc": ("transducer", "ctc"),
    "hybrid_rnnt_ctc": ("transducer", "ctc"),
}
"""The heads on the encoder. The first is used unless the settings say otherwise."""

LABEL_LOOPING = ("GreedyBatchedTDTInfer", "GreedyBatchedRNNTInfer")
"""The classes of NeMo whose decoding computer decodes all that the model can emit."""

DTYPES: dict[Precision, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""The names of the number formats in torch."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A NeMo model with its preprocessor, encoder and one head on a device, frozen, and what decodes its encoder output."""

    model: Any
    device: str
    precision: Precision
    decoder: Decoder
    fast_paths: FastPaths


def load_model(
    path: Path,
    *,
    device: Device,
    precision: Precision,
    fast_paths: WantedFastPaths,
    cpu_threads: int,
    gpu_share: float,
    keyword_weight: float,
    decoder: DecoderChoice,
) -> LoadedModel:
    """Load a `.nemo` file; see `ParakeetEngine.load`. Raises ModelUnavailable."""
    head = _choose_head(HEADS[read_family(path)], decoder, path)
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # torch reads these variables when it is imported.
    import torch

    ASRModel = import_nemo_quietly()
    from serve_app.engine.fast_paths import apply_fast_paths

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
    parameters = sum(p.numel() for p in model.parameters())
    is_small = parameters < SMALL_MODEL_PARAMETERS
    if device == "cpu":
        torch.set_num_threads(cpu_threads or (1 if is_small else usable_cores()))
    model.eval().freeze()
    model.preprocessor.featurizer.dither = 0.0
    model.preprocessor.featurizer.pad_to = 0
    if precision == "auto":
        packs_linear = fast_paths == "auto" or "packed_linear" in fast_paths
        precision = choose_precision(model, device, is_small=is_small, packs_linear=packs_linear)
    try:
        model.preprocessor.to(device)
        for part in (model.encoder, *_modules(model, head)):
            # Not the preprocessor: in less than fp32, features cost accuracy, by their arithmetic and by the rounding of window
            # and filterbank, which are buffers of it.
            part.to(device=device, dtype=getattr(torch, DTYPES[precision]))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        share = f", of which it may take {gpu_share:.2f} (`gpus_per_replica`)" if device == "cuda" and gpu_share < 1 else ""
        raise ModelUnavailable(f"{path} does not fit into the memory of {device}{share}: {error}") from error
    paths = apply_fast_paths(model, fast_paths)
    if head == "transducer":
        _set_up_label_looping(model, path, device)
    if device == "cpu":
        keep_freed_memory()
    skip_type_checks()
    decodes = TransducerDecoder(model, keyword_weight) if head == "transducer" else CtcDecoder(*_modules(model, head))
    size, seconds = parameters / 1e6, time.monotonic() - started
    log.info("loaded %s: %.1f M parameters, %s on %s in %s, %.1f s", path.name, size, head, device, precision, seconds)
    return LoadedModel(model, device, precision, decodes, paths)


def skip_type_checks() -> None:
    """Have NeMo no longer compare the inputs of its modules with their declared types in this process: for a window of 2 s that
    takes longer than its features."""
    from nemo.core.classes.common import typecheck

    typecheck.set_typecheck_enabled(False)


def _choose_head(heads: tuple[Head, ...], decoder: DecoderChoice, path: Path) -> Head:
    if decoder == "auto":
        return heads[0]
    if decoder not in heads:
        raise ModelUnavailable(f"{path} has no {decoder} head; its `decoder` has to be {' or '.join(heads)}, or auto")
    return decoder


def _modules(model: Any, head: Head) -> tuple[Any, ...]:
    """The modules of a head. In a model with a single head, NeMo calls that of CTC `decoder` too."""
    if head == "transducer":
        return model.decoder, model.joint
    return (getattr(model, "ctc_decoder", model.decoder),)


def _set_up_label_looping(model: Any, path: Path, device: str) -> None:
    from omegaconf import open_dict

    decoding = model.cfg.decoding
    with open_dict(decoding):
        decoding.strategy = "greedy_batch"
        decoding.compute_timestamps = False
        decoding.preserve_alignments = False
        decoding.greedy.loop_labels = True
        decoding.greedy.use_cuda_graph_decoder = device == "cuda"
        decoding.greedy.max_symbols = 10
    model.change_decoding_strategy(decoding, verbose=False)
    greedy = model.decoding.decoding
    # Not multi-blank transducers, and not prediction networks without an embedding of blank.
    if type(greedy).__name__ not in LABEL_LOOPING or greedy.decoding_computer is None:
        raise ModelUnavailable(f"{path} has a transducer that NeMo does not decode by label looping")


def import_nemo_quietly() -> Any:
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
