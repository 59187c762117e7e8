"""The choice of the floating-point format."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve_app.engine import precision
from serve_app.engine.lean_modules import PackedLinear
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.engine.precision import choose_precision
from serve_app.model_source import bundled_model_path


def fake_model(layer: torch.nn.Module | None = None) -> Any:
    """A model whose encoder has one layer, with 4 features."""
    encoder = SimpleNamespace(layers=[SimpleNamespace(feed_forward1=layer)])
    return SimpleNamespace(encoder=encoder, cfg=SimpleNamespace(encoder=SimpleNamespace(d_model=4)))


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_uses_bf16_where_its_hardware_has_it(monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert choose_precision(fake_model(), "cuda", is_small=False) == expected


def test_a_small_model_on_a_cpu_uses_fp32_without_a_measurement() -> None:
    assert choose_precision(fake_model(), "cpu", is_small=True) == "fp32"


@pytest.mark.parametrize(("bf16_s", "expected"), [(0.5, "bf16"), (0.74, "bf16"), (0.76, "fp32"), (3.0, "fp32")])
def test_a_cpu_uses_bf16_if_it_saves_a_quarter_of_the_time(monkeypatch: pytest.MonkeyPatch, bf16_s: float, expected: str) -> None:
    clock = SimpleNamespace(now_s=0.0)

    class TimedLayer(torch.nn.Linear):
        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            assert frames.dtype == self.weight.dtype
            clock.now_s += bf16_s if frames.dtype == torch.bfloat16 else 1.0
            return frames

    monkeypatch.setattr(precision, "time", SimpleNamespace(perf_counter=lambda: clock.now_s))
    layer = TimedLayer(4, 4)
    assert choose_precision(fake_model(layer), "cpu", is_small=False) == expected
    assert layer.weight.dtype == torch.float32


def test_the_measurement_does_not_change_the_model() -> None:
    model: Any = ParakeetEngine.load(bundled_model_path(), device="cpu", precision="fp32", fast_paths="off")._model
    layer = model.encoder.layers[0].feed_forward1
    before = {name: values.clone() for name, values in layer.state_dict().items()}
    assert choose_precision(model, "cpu", is_small=False) in ("fp32", "bf16")
    assert model.encoder.layers[0].feed_forward1 is layer
    for name, values in layer.state_dict().items():
        assert values.dtype == before[name].dtype == torch.float32
        assert torch.equal(values, before[name])


def test_linear_layers_are_timed_as_they_will_run(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[type] = []

    class Layer(torch.nn.Sequential):
        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            timed.append(type(self[0]))
            output: torch.Tensor = super().forward(frames)  # type: ignore[no-untyped-call]
            return output

    model = fake_model(Layer(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 4)))
    choose_precision(model, "cpu", is_small=False, packs_linear=True)
    assert set(timed) == {PackedLinear}
    assert type(model.encoder.layers[0].feed_forward1[0]) is torch.nn.Linear
    timed.clear()
    choose_precision(model, "cpu", is_small=False)
    assert set(timed) == {torch.nn.Linear}
