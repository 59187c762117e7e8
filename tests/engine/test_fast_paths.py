"""Fast paths: each gives what NeMo's modules give, and one that does not is left out."""

import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor, ConformerEncoder, ConvASRDecoder, RNNTDecoder
from torch import Tensor, nn

from serve_app.engine import fast_paths, lean_features, lean_lstm, lean_modules
from serve_app.engine.fast_paths import apply_fast_paths
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.engine.protocol import FastPaths
from serve_app.settings import FastPath, bundled_model_path
from serve_app.window import Samples
from testing.digit_strings import DigitString, to_int16

MELS = 80
ENCODER: tuple[FastPath, ...] = ("attention", "convolution", "subsampling", "packed_linear")
EXACT: tuple[FastPath, ...] = ("features", *ENCODER, "prediction")
ERRORS = {torch.float32: 1e-5, torch.bfloat16: 0.03}


def make_model(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A small encoder of NeMo's with random weights, none of which is left at a value that hides a mistake."""
    torch.manual_seed(0)
    sizes = {"feat_in": MELS, "n_layers": 2, "d_model": 32, "n_heads": 4, "subsampling_conv_channels": 16, "conv_kernel_size": 9}
    kind = {"subsampling": "dw_striding", "subsampling_factor": 8, "use_bias": False, "xscaling": False}
    encoder = ConformerEncoder(**{**sizes, **kind, **changes}).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    for name, parameter in encoder.named_parameters():
        if "pos_bias" in name:
            nn.init.normal_(parameter, std=0.3)
    encoder.freeze()
    preprocessor = AudioToMelSpectrogramPreprocessor(features=MELS, dither=0.0, pad_to=0).eval()
    decoder = RNNTDecoder(prednet={"pred_hidden": 32, "pred_rnn_layers": 2}, vocab_size=12).eval()
    decoder.freeze()
    return SimpleNamespace(encoder=encoder.to(dtype), preprocessor=preprocessor, decoder=decoder.to(dtype))


def encode(model: Any, lengths: Sequence[int]) -> list[Tensor]:
    """The encoder's outputs without padding, for windows of random features with these numbers of frames."""
    generator = torch.Generator().manual_seed(1)
    features = torch.zeros(len(lengths), MELS, max(lengths))
    for row, length in zip(features, lengths, strict=True):
        row[:, :length] = torch.randn(MELS, length, generator=generator)
    dtype = next(model.encoder.parameters()).dtype
    with torch.inference_mode():
        encoded, counts = model.encoder(audio_signal=features.to(dtype), length=torch.tensor(lengths))
    return [row[:, :count].float() for row, count in zip(encoded, counts.tolist(), strict=True)]


def error(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    assert [o.shape for o in outputs] == [e.shape for e in expected]
    return max(float((o - e).norm() / e.norm()) for o, e in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("lengths", [(333,), (200, 200), (401, 333, 87, 9)], ids=["alone", "one length", "mixed"])
@pytest.mark.parametrize("variant", [{}, {"use_bias": True, "xscaling": True, "untie_biases": False}], ids=["plain", "biased"])
@pytest.mark.parametrize("dtype", ERRORS, ids=["fp32", "bf16"])
@pytest.mark.parametrize("paths", [*((name,) for name in ENCODER), EXACT], ids=[*ENCODER, "all"])
def test_a_path_gives_what_nemo_gives(
    paths: tuple[FastPath, ...], dtype: torch.dtype, variant: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    model = make_model(dtype, **variant)
    expected = encode(model, lengths)
    assert apply_fast_paths(model, paths) == FastPaths(paths)
    assert error(encode(model, lengths), expected) <= ERRORS[dtype]


def test_a_window_in_a_mixed_batch_gets_what_it_gets_alone() -> None:
    model = make_model()
    apply_fast_paths(model, EXACT)
    alone, together = encode(model, (401,)), encode(model, (401, 87))
    assert error(together[:1], alone) <= ERRORS[torch.float32]


def test_a_window_may_be_longer_than_the_positions_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_paths, "POSITION_FRAMES", 20)
    model = make_model()
    for lengths in [(401, 87), (160,), (153,)]:
        expected = encode(make_model(), lengths)
        apply_fast_paths(model, ("attention",))
        assert error(encode(model, lengths), expected) <= ERRORS[torch.float32]


def test_int8_is_near_and_only_on_request() -> None:
    model = make_model()
    expected = encode(model, (401, 87))
    assert apply_fast_paths(model, "auto").used == EXACT
    model = make_model()
    assert apply_fast_paths(model, ("int8", "packed_linear")) == FastPaths(
        ("int8",), ("packed_linear: no linear layers are left",)
    )
    assert 0.001 < error(encode(model, (401, 87)), expected) <= fast_paths.MAX_INT8_ERROR
    assert apply_fast_paths(make_model(torch.bfloat16), ("int8",)).left_out == ("int8: for fp32 only",)


@pytest.mark.parametrize(
    ("variant", "left_out"),
    [
        (
            {"self_attention_model": "rel_pos_local_attn", "att_context_size": [8, 8]},
            {"attention: the attention is not over whole windows"},
        ),
        ({"att_context_size": [8, 8]}, {"attention: the attention is not over whole windows"}),
        ({"conv_norm_type": "layer_norm"}, {"convolution: there is no batch norm"}),
        ({"conv_context_size": "causal"}, {"convolution: the convolution is not symmetrical"}),
        ({"subsampling": "striding"}, {"subsampling: the subsampling is another one"}),
        ({"causal_downsampling": True}, {"subsampling: the subsampling is causal"}),
    ],
    ids=["local attention", "limited context", "layer norm", "causal convolution", "other subsampling", "causal subsampling"],
)
def test_what_a_path_cannot_replace_stays(variant: dict[str, Any], left_out: set[str]) -> None:
    model = make_model(**variant)
    lengths = (401, 333, 87)
    expected = encode(model, lengths)
    paths = apply_fast_paths(model, "auto")
    assert set(paths.left_out) == left_out
    assert set(paths.used) == set(EXACT) - {reason.partition(":")[0] for reason in left_out}
    assert error(encode(model, lengths), expected) <= ERRORS[torch.float32]


def test_another_encoder_is_left_alone() -> None:
    model = make_model()
    model.encoder = nn.Linear(2, 2)
    paths = apply_fast_paths(model, "auto")
    assert paths.used == ("features", "prediction")
    assert paths.left_out == tuple(f"{name}: the encoder is not a Conformer" for name in ENCODER)


def test_another_preprocessor_and_another_head_are_left_alone() -> None:
    model = make_model()
    model.preprocessor.featurizer.normalize = "all_features"
    model.decoder = ConvASRDecoder(feat_in=32, num_classes=12)
    before = model.preprocessor, model.decoder
    paths = apply_fast_paths(model, "auto")
    assert paths.used == ENCODER
    assert paths.left_out == (
        "features: the normalisation is not by feature",
        "prediction: the model has no prediction network with an LSTM",
    )
    assert (model.preprocessor, model.decoder) == before


def test_off_changes_nothing() -> None:
    model = make_model()
    before = parts(model)
    assert apply_fast_paths(model, "off") == FastPaths()
    assert parts(model) == before


def parts(model: Any) -> list[tuple[str, int]]:
    return [(name, id(module)) for name, module in model.encoder.named_modules()]


def slightly_wrong(x: Tensor) -> Tensor:
    return 1.01 * x


def not_a_number(x: Tensor) -> Tensor:
    return x * float("nan")


def failing(x: Tensor) -> Tensor:
    raise RuntimeError("no such kernel\nat line 1")


BREAKS: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (slightly_wrong, r"convolution: the encoder's error is 0\.\d+; the tolerance is 0.0001"),
    (not_a_number, r"convolution: the encoder's error is nan; the tolerance is 0.0001"),
    (failing, r"convolution: RuntimeError: no such kernel"),
]


def broken(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    forward = lean_modules.LeanConvolution.forward
    monkeypatch.setattr(
        lean_modules.LeanConvolution, "forward", lambda self, x, pad_mask=None, cache=None: change(forward(self, x, pad_mask))
    )


@pytest.mark.parametrize(("change", "reason"), BREAKS)
def test_a_path_that_fails_its_check_is_undone(
    change: Callable[[Tensor], Tensor], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, change)
    model = make_model()
    before, expected = parts(model), encode(model, (401, 87))
    paths = apply_fast_paths(model, ("convolution",))
    assert paths.used == ()
    assert len(paths.left_out) == 1
    assert re.fullmatch(reason, paths.left_out[0])
    assert parts(model) == before
    assert all(map(torch.equal, encode(model, (401, 87)), expected))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (slightly_wrong, r"the preprocessor's error is 0\.\d+; the tolerance is 1e-05"),
        (not_a_number, r"the preprocessor's error is nan; the tolerance is 1e-05"),
        (lambda x: x[:, :-1], r"it gives another number of frames"),
        (failing, r"RuntimeError: no such kernel"),
    ],
    ids=["wrong", "nan", "short", "failing"],
)
def test_features_that_fail_their_check_are_undone(
    change: Callable[[Tensor], Tensor], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    normalised = lean_features.LeanFeatures._normalised
    monkeypatch.setattr(
        lean_features.LeanFeatures, "_normalised", lambda self, x, counts: change(normalised(self, x, counts)[:, : counts.max()])
    )
    model = make_model()
    before = model.preprocessor
    paths = apply_fast_paths(model, ("features",))
    assert paths.used == ()
    assert re.fullmatch(f"features: {reason}", paths.left_out[0])
    assert model.preprocessor is before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (slightly_wrong, r"the prediction network's error is 0\.\d+; the tolerance is 0.0001"),
        (not_a_number, r"the prediction network's error is nan; the tolerance is 0.0001"),
        (failing, r"RuntimeError: no such kernel"),
    ],
    ids=["wrong", "nan", "failing"],
)
def test_a_prediction_network_that_fails_its_check_is_undone(
    change: Callable[[Tensor], Tensor], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = lean_lstm.LeanLSTM.forward
    # Only the cells: they are what the output of a first token does not show.
    monkeypatch.setattr(lean_lstm.LeanLSTM, "forward", lambda self, x, state: _with_cells(*forward(self, x, state), change))
    model = make_model()
    before = model.decoder.prediction["dec_rnn"].lstm
    paths = apply_fast_paths(model, ("prediction",))
    assert paths.used == ()
    assert re.fullmatch(f"prediction: {reason}", paths.left_out[0])
    assert model.decoder.prediction["dec_rnn"].lstm is before


def _with_cells(output: Tensor, state: tuple[Tensor, Tensor], change: Callable[[Tensor], Tensor]) -> Any:
    return output, (state[0], change(state[1]))


@pytest.fixture(scope="module")
def windows(strings: list[DigitString]) -> list[Samples]:
    return [to_int16(string.samples) for string in strings]


@pytest.fixture(scope="module")
def plain(windows: list[Samples]) -> list[Any]:
    return ParakeetEngine.load(bundled_model_path(), device="cpu", fast_paths="off").transcribe(windows)


def facts(results: list[Any]) -> list[list[tuple[Any, ...]]]:
    return [[(t.token_id, t.start_sample, t.end_sample) for t in tokens] for tokens in results]


def test_the_bundled_model_gives_the_same_tokens_and_times(
    engine: ParakeetEngine, windows: list[Samples], plain: list[Any]
) -> None:
    assert engine.info.fast_paths == FastPaths(EXACT)
    assert facts(engine.transcribe(windows)) == facts(plain)
    assert facts([engine.transcribe([window])[0] for window in windows]) == facts(plain)


def test_an_engine_with_a_broken_path_loads_without_it_and_says_so(
    windows: list[Samples], plain: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, slightly_wrong)
    # Not `caplog`: Ray and NeMo change the propagation of loggers when they are imported.
    logged: list[str] = []
    monkeypatch.setattr(fast_paths.log, "log", lambda level, message, *arguments: logged.append(message % arguments))
    engine = ParakeetEngine.load(bundled_model_path(), device="cpu")
    paths = engine.info.fast_paths
    assert paths.used == tuple(name for name in EXACT if name != "convolution")
    assert [reason.partition(":")[0] for reason in paths.left_out] == ["convolution"]
    assert [line.partition(" is ")[0] for line in logged] == ["fast path convolution: the encoder's error"]
    assert facts(engine.transcribe(windows)) == facts(plain)
