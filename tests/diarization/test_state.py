"""The streaming state as bytes."""

import numpy as np
import pytest

from serve_app.diarization.state import StreamingState, pack, unpack
from serve_app.errors import EngineError

MODEL = b"a model's digest"


def state(cached: int, queued: int, width: int = 8, *, full: bool = True) -> StreamingState:
    random = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    return StreamingState(floats(cached, width), floats(cached, 4) if full else None, floats(queued, width), floats(width), 7)


@pytest.mark.parametrize("before", [state(5, 3), state(5, 0), state(0, 0, full=False), state(0, 4, full=False)])
def test_nothing_is_lost(before: StreamingState) -> None:
    after = unpack(pack(before, MODEL, 4), MODEL)
    for name in ("cache", "queue", "mean_silence"):
        assert np.array_equal(getattr(after, name), getattr(before, name)), name
    assert after.silent_frames == 7
    if before.cache_probabilities is None:
        assert after.cache_probabilities is None
    else:
        assert after.cache_probabilities is not None
        assert np.array_equal(after.cache_probabilities, before.cache_probabilities)


def test_state_of_another_model_is_refused() -> None:
    with pytest.raises(EngineError, match="another model"):
        unpack(pack(state(5, 3), b"another's  digest", 4), MODEL)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b"simulated 1\n", lambda _: b""]
)
def test_other_bytes_are_refused(damage: object) -> None:
    assert callable(damage)
    with pytest.raises(EngineError):
        unpack(damage(pack(state(5, 3), MODEL, 4)), MODEL)


def test_states_of_the_published_models_stay_below_a_megabyte() -> None:
    # A cache of 188 frames, and at most as long a queue: the recommendations on their model cards.
    assert len(pack(state(188, 188, 512), MODEL, 4)) < 1_000_000
