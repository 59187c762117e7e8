"""Changes to a model's features and encoder that save time. Each is checked when it is switched on, with a clip of speech, on the
device that it will run on: a path that is wrong there, or fails, is undone and left out, and the engine runs without it.

`lean_features.py` and `lean_modules.py` have the modules that the paths use.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nemo.collections.asr.modules import ConformerEncoder
from torch import Tensor, nn

from serve_app.engine import lean_modules
from serve_app.engine.device_errors import is_device_failure
from serve_app.engine.lean_features import LeanFeatures
from serve_app.engine.lean_modules import Unsuitable
from serve_app.engine.protocol import FastPaths
from serve_app.engine.speech_clip import speech_clip
from serve_app.errors import ModelUnavailable
from serve_app.settings import FastPath, WantedFastPaths
from serve_app.window import SAMPLE_RATE

log = logging.getLogger("ray.serve")

CHECK_LENGTHS_S = ((1.6, 0.9), (1.2,))
"""Lengths of the windows of the batches that are compared, seconds: one batch with padding and one without."""

MAX_ERRORS = {torch.float32: 1e-4, torch.bfloat16: 0.04, torch.float16: 0.01}
"""Tolerance of paths that do the same arithmetic in another order, by the encoder's number format: error of the encoder's output
relative to that of NeMo's encoder, as root mean squares. Three times what rounding gives or more (1e-6, 0.013 and 0.001)."""

MAX_FEATURES_ERROR = 1e-4
"""Tolerance of the features, which are always fp32, in the same way. Rounding gives 3e-6."""

MAX_TF32_ERROR = 0.01
"""The same for fp32 on a GPU, where PyTorch rounds the inputs of convolutions to TF32 but not those of linear layers."""

MAX_INT8_ERROR = 0.1
"""Tolerance of `int8`, which rounds weights and inputs to 8 bits."""

POSITION_FRAMES = 512
"""Encoder frames of the longest window (41 s) whose relative positions are projected in advance. A window of the model with 0.6
billion parameters takes 2 kB per frame and layer for that in bf16."""


@dataclass(frozen=True, slots=True)
class _Swap:
    """A module of the model and what takes its place: attribute `name` of `owner`."""

    owner: nn.Module
    name: str
    replacement: nn.Module


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Of one batch: of each window, [features, frames], without padding."""

    features: list[Tensor]
    encoded: list[Tensor]


@dataclass(frozen=True, slots=True)
class _Path:
    swaps: Callable[[Any], Iterator[_Swap]]
    """The changes that it makes to a model. Raises Unsuitable where its features or encoder are of another kind."""
    is_for_gpus: bool
    is_automatic: bool = True
    max_error: float | None = None
    """Its own tolerance; unset: that of the number format."""


def apply_fast_paths(model: Any, wanted: WantedFastPaths) -> FastPaths:
    """Switch on the wanted fast paths of a NeMo model that is ready for inference on its device.

    `auto`: all that make no other approximation than rounding. The encoder must not have been used under CUDA graphs yet. A path
    that fails is left out, and the model is as it was before. Raises ModelUnavailable for one that makes the device fail.
    """
    names = [name for name, path in PATHS.items() if path.is_automatic] if wanted == "auto" else list(wanted)
    if wanted == "off" or not names:
        return FastPaths()
    used, left_out = [], {}
    try:
        with torch.inference_mode():
            batches = list(_check_batches(next(model.encoder.parameters()).device))
            expected = [_outputs(model, *batch) for batch in batches]
    except Exception as error:
        return FastPaths(left_out=tuple(f"{name}: the check could not run: {_reason(error)}" for name in names))
    for name in (name for name in PATHS if name in names):
        try:
            _switch_on(model, PATHS[name], batches, expected)
            used.append(name)
        except Exception as error:
            if is_device_failure(error):
                # The GPU is lost to this process, whatever runs next.
                raise ModelUnavailable(
                    f"the fast path `{name}` made the GPU fail ({error}); set `fast_paths` without it"
                ) from error
            left_out[name] = _reason(error)
            log.log(logging.INFO if isinstance(error, Unsuitable) else logging.WARNING, "fast path %s: %s", name, left_out[name])
    return FastPaths(tuple(used), tuple(f"{name}: {reason}" for name, reason in left_out.items()))


def _switch_on(model: Any, path: _Path, batches: Sequence[tuple[Tensor, Tensor]], expected: Sequence[_Outputs]) -> None:
    """Switch a path on, or raise the reason not to with the model unchanged."""
    parameter = next(model.encoder.parameters())
    if parameter.is_cuda and not path.is_for_gpus:
        raise Unsuitable("for CPUs only")
    if type(model.encoder) is not ConformerEncoder:
        raise Unsuitable("the encoder is not a Conformer")
    with torch.no_grad():
        swaps = list(path.swaps(model))
    before = [(swap.owner, swap.name, getattr(swap.owner, swap.name)) for swap in swaps]
    max_error = path.max_error or (MAX_TF32_ERROR if parameter.is_cuda else 0.0)
    max_error = max(max_error, MAX_ERRORS[parameter.dtype])
    try:
        for swap in swaps:
            setattr(swap.owner, swap.name, swap.replacement)
        with torch.inference_mode():
            outputs = [_outputs(model, *batch) for batch in batches]
        for output, other in zip(outputs, expected, strict=True):
            _check("the features' error", output.features, other.features, MAX_FEATURES_ERROR)
            _check("the encoder's error", output.encoded, other.encoded, max_error)
    except Exception:
        for owner, name, module in before:
            setattr(owner, name, module)
        raise


def _check_batches(device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of the clip, float32 [windows, samples], and their lengths, samples."""
    clip = speech_clip().astype(np.float32) / 32768
    for lengths_s in CHECK_LENGTHS_S:
        lengths = [round(length_s * SAMPLE_RATE) for length_s in lengths_s]
        audio = np.zeros((len(lengths), max(lengths)), np.float32)
        for row, length in zip(audio, lengths, strict=True):
            row[:length] = clip[:length]
        yield torch.from_numpy(audio).to(device), torch.tensor(lengths, device=device)


def _outputs(model: Any, audio: Tensor, lengths: Tensor) -> _Outputs:
    features, frames = model.preprocessor(input_signal=audio, length=lengths)
    encoded, counts = model.encoder(audio_signal=features.to(next(model.encoder.parameters()).dtype), length=frames)
    return _Outputs(_without_padding(features, frames), _without_padding(encoded, counts))


def _without_padding(batch: Tensor, lengths: Tensor) -> list[Tensor]:
    return [row[:, :length].float() for row, length in zip(batch, lengths.tolist(), strict=True)]


def _check(name: str, outputs: Sequence[Tensor], expected: Sequence[Tensor], max_error: float) -> None:
    """Raises ValueError where a window of `outputs` is not as expected."""
    if [o.shape for o in outputs] != [e.shape for e in expected]:
        raise ValueError("another number of frames comes out")
    error = max(float((o - e).norm() / e.norm()) for o, e in zip(outputs, expected, strict=True))
    if not error <= max_error:
        raise ValueError(f"{name} is {error:.1g}; the tolerance is {max_error:.1g}")


def _reason(error: Exception) -> str:
    """One line."""
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, Unsuitable | ValueError) else f"{type(error).__name__}: {text}"


def _features(model: Any) -> Iterator[_Swap]:
    yield _Swap(model.preprocessor, "featurizer", LeanFeatures(model.preprocessor.featurizer))


def _attention(model: Any) -> Iterator[_Swap]:
    encoder = model.encoder
    _require_whole_windows(encoder)
    encodings = encoder.pos_enc.pe
    frames = min(POSITION_FRAMES, encodings.size(1) // 2 + 1)
    middle = encodings.size(1) // 2
    positions = encodings[:, middle - frames + 1 : middle + frames]
    for layer in encoder.layers:
        yield _Swap(layer, "self_attn", lean_modules.LeanAttention(layer.self_attn, positions))


def _convolution(model: Any) -> Iterator[_Swap]:
    for layer in model.encoder.layers:
        yield _Swap(layer, "conv", lean_modules.LeanConvolution(layer.conv))


def _subsampling(model: Any) -> Iterator[_Swap]:
    encoder = model.encoder
    yield _Swap(encoder, "pre_encode", lean_modules.LeanSubsampling(encoder.pre_encode))


def _int8(model: Any) -> Iterator[_Swap]:
    if next(model.encoder.parameters()).dtype != torch.float32:
        raise Unsuitable("for fp32 only")
    return _linear_layers(model.encoder, lean_modules.int8_linear)


def _packed_linear(model: Any) -> Iterator[_Swap]:
    return _linear_layers(model.encoder, lean_modules.PackedLinear)


def _linear_layers(encoder: Any, replacement: Callable[[nn.Linear], nn.Module]) -> Iterator[_Swap]:
    layers = [
        (owner, name, layer)
        for owner in encoder.modules()
        for name, layer in owner.named_children()
        # That of the positions is used only for windows that are too long for those that are kept.
        if type(layer) is nn.Linear and name != "linear_pos"
    ]
    if not layers:
        raise Unsuitable("no linear layers are left")
    return (_Swap(owner, name, replacement(layer)) for owner, name, layer in layers)


def _require_whole_windows(encoder: Any) -> None:
    if encoder.self_attention_model != "rel_pos" or list(encoder.att_context_size) != [-1, -1]:
        raise Unsuitable("the attention is not over whole windows")


PATHS: dict[FastPath, _Path] = {
    "features": _Path(_features, is_for_gpus=False),
    "attention": _Path(_attention, is_for_gpus=True),
    "convolution": _Path(_convolution, is_for_gpus=True),
    "subsampling": _Path(_subsampling, is_for_gpus=False),
    "int8": _Path(_int8, is_for_gpus=False, is_automatic=False, max_error=MAX_INT8_ERROR),
    "packed_linear": _Path(_packed_linear, is_for_gpus=False),
}
"""In the order in which they are switched on. A path changes what the paths before it have left."""
