"""The engine on a GPU: `make gpu`, which fails where there is none. `make test` skips all of it there."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from serve_app.engine.parakeet import ParakeetEngine
from serve_app.errors import EngineBroken, EngineOutOfMemory
from serve_app.model_source import bundled_model_path
from serve_app.settings import LiveSettings
from serve_app.transcript import Token
from serve_app.window import SAMPLE_RATE, Samples
from testing.digit_strings import Bank, DigitString, compose, to_int16
from testing.heads import FAMILIES, Family

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

MAX_ITEMS = 16
WINDOW_S = 12.0
RANDOM_BATCHES = 5_000
KEYWORDS_EVERY = 10
"""Of the random batches, one in so many has keywords."""

EAGER_EVERY = 49
"""Of the random batches, one in so many is compared with decoding without graphs; all are compared with the first result. No
multiple of KEYWORDS_EVERY, so that both kinds are among them."""


def load(path: Path | None = None, *, is_warm: bool = True, **options: Any) -> ParakeetEngine:
    engine = ParakeetEngine.load(path or bundled_model_path(), device="cuda", **{"precision": "fp32", **options})
    if is_warm:
        engine.warm_up(round(WINDOW_S * SAMPLE_RATE), max_items=MAX_ITEMS)
    return engine


@pytest.fixture(scope="module")
def on_gpu() -> ParakeetEngine:
    """With CUDA graphs."""
    engine = load()
    assert engine.info.decoder == "cuda graphs"
    return engine


@pytest.fixture(scope="module")
def without_graphs() -> ParakeetEngine:
    engine: Any = load(is_warm=False)
    engine._decoder._plain._computer.disable_cuda_graphs()
    # The decoder for keywords is made from it.
    engine._model.cfg.decoding.greedy.use_cuda_graph_decoder = False
    assert engine.info.decoder == "eager"
    return cast(ParakeetEngine, engine)


@pytest.fixture(scope="module")
def windows(bank: Bank) -> list[Samples]:
    """Digit strings of 1 to 20 digits, int16 [samples] of at most WINDOW_S."""
    rng, voices = random.Random(0), sorted(bank)
    strings: list[DigitString] = [
        compose(bank[voices[n % 3]], [rng.randrange(10) for _ in range(1 + n % 20)], rng) for n in range(60)
    ]
    return [to_int16(string.samples)[: round(WINDOW_S * SAMPLE_RATE)] for string in strings]


def text_of(tokens: Sequence[Token]) -> str:
    return "".join(token.piece for token in tokens)


def assert_same(left: Sequence[Sequence[Token]], right: Sequence[Sequence[Token]]) -> None:
    """The same tokens at the same times; confidences may differ by rounding."""
    for a, b in zip(left, right, strict=True):
        assert [(t.token_id, t.start_sample, t.end_sample) for t in a] == [(t.token_id, t.start_sample, t.end_sample) for t in b]
        assert [t.confidence for t in a] == pytest.approx([t.confidence for t in b], abs=1e-2)


def test_graphs_and_eager_decoding_give_the_same(
    on_gpu: ParakeetEngine, without_graphs: ParakeetEngine, windows: list[Samples]
) -> None:
    for start in range(0, len(windows), MAX_ITEMS):
        batch = windows[start : start + MAX_ITEMS]
        assert_same(on_gpu.transcribe(batch), without_graphs.transcribe(batch))


def test_a_gpu_recognises_what_a_cpu_does(on_gpu: ParakeetEngine, engine: ParakeetEngine, windows: list[Samples]) -> None:
    same = [text_of(a) == text_of(b) for a, b in zip(on_gpu.transcribe(windows), engine.transcribe(windows), strict=True)]
    assert sum(same) >= len(same) - 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_the_bits_recognise_the_same_words(precision: str, on_gpu: ParakeetEngine, windows: list[Samples]) -> None:
    half = load(precision=precision)
    same = [text_of(a) == text_of(b) for a, b in zip(half.transcribe(windows), on_gpu.transcribe(windows), strict=True)]
    assert sum(same) >= 0.9 * len(same)


def test_every_fast_path_is_used_or_says_why_not(on_gpu: ParakeetEngine, windows: list[Samples]) -> None:
    paths = on_gpu.info.fast_paths
    assert {"attention", "convolution"} <= set(paths.used), paths.left_out
    assert_same(load(fast_paths="off").transcribe(windows[:MAX_ITEMS]), on_gpu.transcribe(windows[:MAX_ITEMS]))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_families(family: Family, family_file: Callable[[Family], Path], strings: list[DigitString]) -> None:
    engine = load(family_file(family))
    texts = [text_of(tokens) for tokens in engine.transcribe([to_int16(string.samples) for string in strings])]
    spoken = [string.text for string in strings]
    plain = [text.replace("▁", " ").strip().lower().replace(".", "") for text in texts]
    assert plain == [text.lower().replace(".", "") for text in spoken]


def test_a_batch_larger_than_the_captured_graphs_captures_them_again(windows: list[Samples]) -> None:
    engine, alone = load(is_warm=False), load(is_warm=False)
    for size in (1, 4, 2, 40, 3):
        assert_same(engine.transcribe(windows[:size]), [alone.transcribe([window])[0] for window in windows[:size]])


def test_the_longest_live_window_needs_no_capture() -> None:
    longest_s = LiveSettings().longest_window_s
    engine: Any = load(is_warm=False)
    engine.warm_up(round(longest_s * SAMPLE_RATE), max_items=4)
    state = engine._decoder._plain._computer.state
    engine.transcribe([np.random.default_rng(0).integers(-900, 900, round(longest_s * SAMPLE_RATE), np.int16)] * 4)
    assert engine._decoder._plain._computer.state is state


@pytest.fixture
def little_memory() -> Iterator[Callable[[float], None]]:
    """Limits this process to so many bytes more than it uses now."""

    def limit(more_bytes: float) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + more_bytes) / total))

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_a_batch_that_does_not_fit_is_split(
    on_gpu: ParakeetEngine, windows: list[Samples], little_memory: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    expected = on_gpu.transcribe(windows[:MAX_ITEMS])
    long = [np.tile(window, 20)[: round(WINDOW_S * SAMPLE_RATE)] for window in windows[:MAX_ITEMS]]
    on_gpu.transcribe(long[:1])
    little_memory(40e6)
    results = on_gpu.transcribe(long)
    assert len(results) == MAX_ITEMS
    assert "out of memory" in caplog.text
    little_memory(1e12)
    assert_same(on_gpu.transcribe(windows[:MAX_ITEMS]), expected)


def test_after_a_batch_that_failed_for_lack_of_memory_the_next_one_is_right(
    windows: list[Samples], little_memory: Callable[[float], None]
) -> None:
    engine = load()
    expected = engine.transcribe(windows[:4])
    little_memory(1e6)
    # Larger than the graphs, so that they would have to be captured again.
    with pytest.raises((EngineBroken, EngineOutOfMemory)):
        engine.transcribe([np.resize(windows[0], 60 * SAMPLE_RATE)] * 2 * MAX_ITEMS)
    little_memory(1e12)
    assert_same(engine.transcribe(windows[:4]), expected)


def test_after_a_capture_that_failed_the_next_batch_is_right(windows: list[Samples], monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails after NeMo has replaced the buffers, so that the graphs of the first capture belong to others."""
    engine: Any = load()
    expected, computer = engine.transcribe(windows[:4]), engine._decoder._plain._computer
    reinitialise = computer._graph_reinitialize

    def fail(encoded: torch.Tensor) -> None:
        with monkeypatch.context() as capture:
            capture.setattr(computer, "cuda_graphs_mode", computer.CudaGraphsMode.NO_GRAPHS)
            reinitialise(encoded)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    with monkeypatch.context() as patch:
        patch.setattr(computer, "_graph_reinitialize", fail)
        with pytest.raises(EngineBroken, match="could not be captured"):
            engine.transcribe(windows[: MAX_ITEMS + 1])
    assert_same(engine.transcribe(windows[:4]), expected)


def test_two_models_on_one_card(on_gpu: ParakeetEngine, windows: list[Samples]) -> None:
    """As two threads, each with its own engine."""
    other, expected = load(), on_gpu.transcribe(windows[:8])
    failures = list[BaseException]()

    def repeat(engine: ParakeetEngine) -> None:
        try:
            for _ in range(50):
                assert_same(engine.transcribe(windows[:8]), expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=repeat, args=(engine,)) for engine in (on_gpu, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_batch_is_prepared_beside_the_one_that_runs(on_gpu: ParakeetEngine, windows: list[Samples]) -> None:
    expected = [on_gpu.transcribe(windows[start : start + 8]) for start in range(0, 56, 8)]
    prepared: Any = on_gpu.prepare(windows[:8])
    for number, tokens in enumerate(expected):
        following: list[Any] = []
        batch = windows[8 * number + 8 : 8 * number + 16]
        thread = threading.Thread(target=lambda batch=batch, to=following: to.append(on_gpu.prepare(batch)))
        thread.start()
        assert_same([columns.tokens() for columns in on_gpu.recognise(prepared)], tokens)
        thread.join()
        prepared = following[0]


def test_random_batches(on_gpu: ParakeetEngine, without_graphs: ParakeetEngine, windows: list[Samples]) -> None:
    """Of all sizes and lengths, with and without keywords: graphs that are replayed thousands of times stay right."""
    rng = random.Random(0)
    alone = [text_of(on_gpu.transcribe([window])[0]) for window in windows]
    boosted: dict[int, str] = {}
    for number in range(RANDOM_BATCHES):
        chosen = [rng.randrange(len(windows)) for _ in range(rng.randint(1, MAX_ITEMS))]
        batch = [windows[i] for i in chosen]
        share = 0.2 if number % KEYWORDS_EVERY == 0 else 0.0
        keywords = [("seven",) if rng.random() < share else () for _ in chosen]
        results = on_gpu.transcribe(batch, keywords)
        for i, phrases, tokens in zip(chosen, keywords, results, strict=True):
            text = text_of(tokens)
            assert text == (boosted.setdefault(i, text) if phrases else alone[i])
        if number % EAGER_EVERY == 0:
            assert_same(results, without_graphs.transcribe(batch, keywords))


def test_what_a_batch_costs_is_measured_and_fits(on_gpu: ParakeetEngine) -> None:
    cost = on_gpu.measure_cost(WINDOW_S, MAX_ITEMS)
    assert cost.step_s > 0
    assert WINDOW_S < on_gpu.fitting_audio_s() < 1e7
