"""Tokens as columns."""

import pickle

import numpy as np
import pytest

from serve_app.transcript import Token, TokenColumns

TOKENS = [Token("▁one", 24, 0, 2560, 0.875), Token(".", 1, 2560, 2560, 0.5), Token("▁日", 900, 768_000, 769_280, 1.0)]


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:1], []], ids=len)
def test_columns_become_the_same_tokens_after_their_way(tokens: list[Token]) -> None:
    columns: TokenColumns = pickle.loads(pickle.dumps(TokenColumns.of(tokens)))
    assert columns.tokens() == tokens


def test_values_are_plain_numbers() -> None:
    """NumPy's own would be slow in the merge, and no JSON."""
    (token,) = TokenColumns.of(TOKENS[:1]).tokens()
    assert [type(value) for value in token] == [str, int, int, int, float]


def test_columns_that_are_cut_from_those_of_a_batch_carry_only_their_own_part() -> None:
    batch = TokenColumns.of(TOKENS * 1000)
    cut = TokenColumns(
        batch.pieces[:3], batch.token_ids[:3], batch.start_samples[:3], batch.end_samples[:3], batch.confidences[:3]
    )
    assert len(pickle.dumps(cut)) < 1_000
    assert cut.tokens() == TOKENS
    assert cut.token_ids.dtype == np.int32
