"""Decoder processes for the tests of one module."""

from collections.abc import Iterator

import pytest

from serve_app.decoders.pool import DecoderPool


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    """One process."""
    pool = DecoderPool(1)
    yield pool
    pool.close()
