"""CUDA graphs of the decoder after failures, with NeMo's stateful implementation driven on the CPU."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve_app.engine.boosting import Booster
from serve_app.engine.cuda_graphs import GraphDecoder
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.errors import EngineBroken
from testing.cuda_errors import NeMoCUDAPythonException

NO_NVRTC = RuntimeError('Failure finding "libnvrtc.so"')
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
SHAPE = (6, 400)


class GraphsOnCpu:
    """NeMo's computer with the buffers that its graphs use, run without graphs: a replay is the same code, called directly.

    `captures` lists the shapes of the captures. A replay of graphs captured for other buffers does nothing, like on a GPU.
    """

    def __init__(self, computer: Any) -> None:
        self.computer = computer
        self.captures: list[tuple[int, int]] = []
        self.fail_capture: Exception | None = None
        self.fail_replay: Exception | None = None
        self.captured_for: Any = None
        self.reinitialise = computer._graph_reinitialize
        computer._graph_reinitialize = self.capture
        computer.force_cuda_graphs_mode("no_graphs")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.computer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "cuda_graphs_allow_fallback":
            setattr(self.computer, name, value)
        super().__setattr__(name, value)

    def capture(self, encoded: torch.Tensor) -> None:
        self.reinitialise(encoded)
        if self.fail_capture is not None:
            raise self.fail_capture
        self.captures.append((encoded.shape[0], encoded.shape[1]))
        self.captured_for = self.computer.state

    def __call__(self, x: torch.Tensor, out_len: torch.Tensor, multi_biasing_ids: torch.Tensor | None = None) -> Any:
        if self.computer.cuda_graphs_mode is None:
            return self.computer(x=x, out_len=out_len, multi_biasing_ids=multi_biasing_ids)
        if self.fail_replay is not None:
            raise self.fail_replay
        result = self.computer.cuda_graphs_impl(x, out_len, None, multi_biasing_ids)
        if self.captured_for is not self.computer.state:
            return SimpleNamespace(current_lengths=torch.zeros(len(x), dtype=torch.long)), None
        return result


@pytest.fixture
def computer(engine: ParakeetEngine) -> Iterator[GraphsOnCpu]:
    """A decoding computer of its own for each test, because the tests change its mode."""
    model: Any = engine._model
    plain = model.decoding.decoding.decoding_computer
    own = type(plain)(
        decoder=model.decoder,
        joint=model.joint,
        blank_index=plain._blank_index,
        durations=plain.durations.tolist(),
        max_symbols_per_step=10,
        allow_cuda_graphs=False,
    )
    with torch.inference_mode():
        yield GraphsOnCpu(own)


@pytest.fixture
def encoded(engine: ParakeetEngine) -> torch.Tensor:
    model: Any = engine._model
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 60, model.cfg.encoder.d_model, generator=generator)


LENGTHS = torch.tensor([60, 31, 1, 45])


def decoded(hypotheses: Any, windows: int) -> list[list[int]]:
    counts = hypotheses.current_lengths[:windows].tolist()
    return [row[:n].tolist() for row, n in zip(hypotheses.transcript, counts, strict=False)]


@pytest.fixture
def expected(engine: ParakeetEngine, encoded: torch.Tensor) -> list[list[int]]:
    with torch.inference_mode():
        hypotheses, _ = engine._model.decoding.decoding.decoding_computer(x=encoded, out_len=LENGTHS)
    tokens = decoded(hypotheses, len(encoded))
    assert sum(map(len, tokens)) > 10
    return tokens


def test_graphs_are_captured_once_for_all_shapes_up_to_the_largest(
    computer: GraphsOnCpu, encoded: torch.Tensor, expected: list[list[int]]
) -> None:
    decoder = GraphDecoder(computer)
    decoder.capture(SHAPE, encoded)
    assert decoded(decoder(encoded, LENGTHS), 4) == expected
    assert decoded(decoder(encoded[:1], LENGTHS[:1]), 1) == expected[:1]
    assert computer.captures == [SHAPE]


@pytest.mark.parametrize(
    "error", [NO_NVRTC, NeMoCUDAPythonException("Nvrtc Error: 7"), NO_MEMORY], ids=lambda e: type(e).__name__
)
def test_where_graphs_cannot_be_captured_at_load_decoding_is_eager(
    computer: GraphsOnCpu,
    encoded: torch.Tensor,
    expected: list[list[int]],
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    computer.fail_capture = error
    decoder = GraphDecoder(computer)
    assert decoder.mode != "eager"
    decoder.capture(SHAPE, encoded)
    assert decoder.mode == "eager"
    assert str(error) in caplog.text
    assert decoded(decoder(encoded, LENGTHS), 4) == expected


def test_an_unusable_gpu_is_not_taken_for_missing_graphs(computer: GraphsOnCpu, encoded: torch.Tensor) -> None:
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    computer.fail_capture = lost
    computer.computer.torch_impl = lambda **_: (_ for _ in ()).throw(lost)
    with pytest.raises(torch.AcceleratorError):
        GraphDecoder(computer).capture(SHAPE, encoded)


def test_after_a_failed_capture_no_old_graph_is_replayed(
    computer: GraphsOnCpu, encoded: torch.Tensor, expected: list[list[int]]
) -> None:
    """Without the reset, the second call would return empty transcripts."""
    decoder = GraphDecoder(computer)
    decoder(encoded[:1, :, :], LENGTHS[:1])
    computer.fail_capture = NO_MEMORY
    with pytest.raises(EngineBroken, match="captured"):
        decoder(encoded, LENGTHS)
    assert computer.state is None
    computer.fail_capture = None
    assert decoded(decoder(encoded, LENGTHS), 4) == expected


def test_after_a_failure_in_mid_decode_the_graphs_are_captured_again_for_the_largest_shape(
    computer: GraphsOnCpu, encoded: torch.Tensor, expected: list[list[int]]
) -> None:
    decoder = GraphDecoder(computer)
    decoder.capture(SHAPE, encoded)
    computer.fail_replay = NO_MEMORY
    with pytest.raises(torch.OutOfMemoryError):
        decoder(encoded, LENGTHS)
    computer.fail_replay = None
    assert computer.state is None
    assert decoded(decoder(encoded[:2], LENGTHS[:2]), 2) == expected[:2]
    assert computer.captures == [SHAPE, SHAPE]


def test_once_graphs_are_captured_nemo_may_not_fall_back_in_service(computer: GraphsOnCpu, encoded: torch.Tensor) -> None:
    """Its fallback is other graphs, whose capture may fail half-way like that of the first."""
    computer.computer.cuda_graphs_allow_fallback = True
    GraphDecoder(computer).capture(SHAPE, encoded)
    assert not computer.computer.cuda_graphs_allow_fallback


def test_when_the_pool_of_trees_grows_nemo_drops_the_graphs(engine: ParakeetEngine) -> None:
    """So the decoder captures them again, for the largest shape."""
    booster = Booster(engine._model, 0.5)
    computer = booster.decoder._computer
    computer.state = "captured"
    booster._prepare({("one",), ("two",)})
    assert computer.state == "captured"
    booster._prepare({(f"one{' two' * n}",) for n in range(130)})
    assert computer.state is None
