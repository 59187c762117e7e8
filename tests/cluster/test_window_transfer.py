"""The audio of a window arrives as it was sent, in pieces that Ray sends along with a call."""

import numpy as np
import pytest

from serve_app.cluster.window_transfer import MAX_PIECE_BYTES, joined, pieces

RAY_INLINE_BYTES = 100 * 1024


@pytest.mark.parametrize("length", [0, 1, MAX_PIECE_BYTES // 2, MAX_PIECE_BYTES // 2 + 1, 512_000])
def test_samples_arrive_unchanged(length: int) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, length).astype(np.int16)
    sent = pieces(samples)
    assert all(0 < len(piece) <= MAX_PIECE_BYTES < RAY_INLINE_BYTES for piece in sent)
    assert np.array_equal(joined(tuple(sent)), samples)


def test_a_long_window_is_not_divided() -> None:
    samples = np.ones(5_000_000, np.int16)
    sent = pieces(samples)
    assert len(sent) == 1
    assert np.array_equal(joined(tuple(sent)), samples)


def test_a_slice_is_sent_as_it_reads() -> None:
    samples = np.arange(100, dtype=np.int16)[::2]
    assert np.array_equal(joined(tuple(pieces(samples))), samples)
