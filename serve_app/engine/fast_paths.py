"""Changes to a model that save time. Each is checked when it is switched on, with a clip of speech, on the device that it will
run on: a path that is wrong there, or fails, is undone and left out, and the engine runs without it.

`fast_path_checks.py` has what is compared; `lean_features.py`, `lean_modules.py` and `lean_lstm.py` have what the paths put in.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from nemo.collections.asr.modules import ConformerEncoder, RNNTDecoder
from torch import nn

from serve_app.engine import lean_modules
from serve_app.engine.device_errors import is_device_failure
from serve_app.engine.fast_path_checks import PARTS, Outputs, Part, relative_error
from serve_app.engine.lean_features import LeanFeatures
from serve_app.engine.lean_lstm import LeanLSTM
from serve_app.engine.lean_modules import Unsuitable
from serve_app.engine.protocol import FastPaths
from serve_app.errors import ModelUnavailable
from serve_app.settings import FastPath, WantedFastPaths

log = logging.getLogger("ray.serve")

MAX_ERRORS = {torch.float32: 1e-4, torch.bfloat16: 0.04, torch.float16: 0.01}
"""Tolerance of paths that do the same arithmetic in another order, by the number format: error of the part's output relative to
that of NeMo's, as root mean squares. Three times what rounding gives or more (1e-6, 0.013 and 0.001)."""

MAX_TF32_ERROR = 0.01
"""The same for fp32 on a GPU, where PyTorch rounds the inputs of convolutions to TF32 but not those of linear layers."""

MAX_FEATURES_ERROR = 1e-5
"""Tolerance of `features`, which are fp32 with every model. Rounding gives 1e-6."""

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
class _Path:
    swaps: Callable[[Any], Iterator[_Swap]]
    """The changes that it makes to a model. Raises Unsuitable where its part of it is of another kind."""
    is_for_gpus: bool
    part: Part = "encoder"
    is_automatic: bool = True
    max_error: float | None = None
    """Its own tolerance; unset: that of the number format."""


@dataclass(frozen=True, slots=True)
class _Check:
    outputs: Callable[[], Outputs]
    """Those of a part of the model as it is."""
    expected: Outputs
    """Those with NeMo's modules."""

    @classmethod
    def of(cls, model: Any, part: Part) -> "_Check":
        outputs = PARTS[part](model)
        return cls(outputs, outputs())


def apply_fast_paths(model: Any, wanted: WantedFastPaths) -> FastPaths:
    """Switch on the wanted fast paths of a NeMo model that is ready for inference on its device.

    `auto`: all that make no other approximation than rounding. The model must not have been used under CUDA graphs yet. A path
    that fails is left out, and the model is as it was before. Raises ModelUnavailable for one that makes the device fail.
    """
    names = [name for name, path in PATHS.items() if path.is_automatic] if wanted == "auto" else list(wanted)
    if wanted == "off" or not names:
        return FastPaths()
    used, left_out = [], {}
    checks: dict[Part, _Check | Exception] = {}
    # All before the first path is on: the encoder's check has NeMo's features.
    for part in {path.part for name, path in PATHS.items() if name in names}:
        try:
            with torch.inference_mode():
                checks[part] = _Check.of(model, part)
        except Exception as error:
            checks[part] = error
    for name in (name for name in PATHS if name in names):
        try:
            _switch_on(model, PATHS[name], checks[PATHS[name].part])
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


def _switch_on(model: Any, path: _Path, check: _Check | Exception) -> None:
    """Switch a path on, or raise the reason not to with the model unchanged."""
    parameter = next(model.encoder.parameters())
    if parameter.is_cuda and not path.is_for_gpus:
        raise Unsuitable("for CPUs only")
    with torch.no_grad():
        swaps = list(path.swaps(model))
    if isinstance(check, Exception):
        raise ValueError(f"the check could not run: {_reason(check)}") from check
    before = [(swap.owner, swap.name, getattr(swap.owner, swap.name)) for swap in swaps]
    try:
        for swap in swaps:
            setattr(swap.owner, swap.name, swap.replacement)
        with torch.inference_mode():
            error = relative_error(check.outputs(), check.expected)
        max_error = path.max_error or max(MAX_TF32_ERROR if parameter.is_cuda else 0.0, MAX_ERRORS[parameter.dtype])
        if not error <= max_error:
            raise ValueError(f"the {path.part}'s error is {error:.1g}; the tolerance is {max_error:.1g}")
    except Exception:
        for owner, name, module in before:
            setattr(owner, name, module)
        raise


def _reason(error: Exception) -> str:
    """One line."""
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, Unsuitable | ValueError) else f"{type(error).__name__}: {text}"


def _features(model: Any) -> Iterator[_Swap]:
    yield _Swap(model, "preprocessor", LeanFeatures(model.preprocessor))


def _prediction(model: Any) -> Iterator[_Swap]:
    # A model with CTC alone has its head under this name.
    if type(model.decoder) is not RNNTDecoder:
        raise Unsuitable("the model has no prediction network with an LSTM")
    recurrent = model.decoder.prediction["dec_rnn"]
    yield _Swap(recurrent, "lstm", LeanLSTM(recurrent.lstm))


def _encoder(model: Any) -> Any:
    if type(model.encoder) is not ConformerEncoder:
        raise Unsuitable("the encoder is not a Conformer")
    return model.encoder


def _attention(model: Any) -> Iterator[_Swap]:
    encoder = _encoder(model)
    _require_whole_windows(encoder)
    encodings = encoder.pos_enc.pe
    frames = min(POSITION_FRAMES, encodings.size(1) // 2 + 1)
    middle = encodings.size(1) // 2
    positions = encodings[:, middle - frames + 1 : middle + frames]
    for layer in encoder.layers:
        yield _Swap(layer, "self_attn", lean_modules.LeanAttention(layer.self_attn, positions))


def _convolution(model: Any) -> Iterator[_Swap]:
    encoder = _encoder(model)
    for layer in encoder.layers:
        yield _Swap(layer, "conv", lean_modules.LeanConvolution(layer.conv))


def _subsampling(model: Any) -> Iterator[_Swap]:
    encoder = _encoder(model)
    yield _Swap(encoder, "pre_encode", lean_modules.LeanSubsampling(encoder.pre_encode))


def _int8(model: Any) -> Iterator[_Swap]:
    encoder = _encoder(model)
    if next(encoder.parameters()).dtype != torch.float32:
        raise Unsuitable("for fp32 only")
    return _linear_layers(encoder, lean_modules.int8_linear)


def _packed_linear(model: Any) -> Iterator[_Swap]:
    return _linear_layers(_encoder(model), lean_modules.PackedLinear)


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
    "features": _Path(_features, is_for_gpus=True, part="preprocessor", max_error=MAX_FEATURES_ERROR),
    "attention": _Path(_attention, is_for_gpus=True),
    "convolution": _Path(_convolution, is_for_gpus=True),
    "subsampling": _Path(_subsampling, is_for_gpus=False),
    "int8": _Path(_int8, is_for_gpus=False, is_automatic=False, max_error=MAX_INT8_ERROR),
    "packed_linear": _Path(_packed_linear, is_for_gpus=False),
    "prediction": _Path(_prediction, is_for_gpus=False, part="prediction network"),
}
"""In the order in which they are switched on. A path changes what the paths before it have left."""
