"""The lean LSTM gives what PyTorch's gives, token by token and for sequences."""

from typing import Any

import pytest
import torch
from torch import nn

from serve_app.engine.lean_lstm import LeanLSTM
from serve_app.engine.lean_modules import Unsuitable

WIDTH = 24


def make_lstm(layers: int = 1, **changes: Any) -> nn.LSTM:
    torch.manual_seed(0)
    return nn.LSTM(WIDTH, WIDTH, layers, **changes).eval()


@pytest.mark.parametrize("windows", [1, 3, 17])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)], ids=["fp32", "bf16"])
def test_steps(dtype: torch.dtype, tolerance: float, layers: int, windows: int) -> None:
    stock = make_lstm(layers).to(dtype)
    lean = LeanLSTM(stock)
    with torch.inference_mode():
        state = expected_state = (torch.zeros(layers, windows, WIDTH, dtype=dtype),) * 2
        for _ in range(5):
            x = torch.randn(1, windows, WIDTH).to(dtype)
            output, state = lean(x, state)
            expected, expected_state = stock(x, expected_state)
            for value, expected_value in zip((output, *state), (expected, *expected_state), strict=True):
                assert value.shape == expected_value.shape
                assert value.dtype == expected_value.dtype
                torch.testing.assert_close(value, expected_value, rtol=0, atol=tolerance)


def test_the_state_shares_no_memory_with_the_output_or_the_state_before() -> None:
    # NeMo's decoder writes the states of windows that are done into it.
    before = (torch.randn(1, 2, WIDTH), torch.randn(1, 2, WIDTH))
    copies = [part.clone() for part in before]
    with torch.inference_mode():
        output, state = LeanLSTM(make_lstm())(torch.randn(1, 2, WIDTH), before)
        expected = output.clone()
        for part in state:
            part.zero_()
    assert torch.equal(output, expected)
    assert all(map(torch.equal, before, copies))


def test_sequences() -> None:
    stock, x = make_lstm(2), torch.randn(7, 3, WIDTH)
    with torch.inference_mode():
        assert torch.equal(LeanLSTM(stock)(x)[0], stock(x)[0])
        assert torch.equal(LeanLSTM(stock)(x[:1])[0], stock(x[:1])[0])


@pytest.mark.parametrize("changes", [{"bias": False}, {"bidirectional": True}, {"batch_first": True}, {"proj_size": 8}], ids=str)
def test_others_are_left_to_pytorch(changes: dict[str, Any]) -> None:
    with pytest.raises(Unsuitable):
        LeanLSTM(make_lstm(**changes))
    with pytest.raises(Unsuitable):
        LeanLSTM(nn.GRU(WIDTH, WIDTH))  # type: ignore[arg-type]
