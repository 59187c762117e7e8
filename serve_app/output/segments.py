"""Group final tokens into words and segments. A segment is returned as soon as later tokens cannot change it.

A word begins at a token whose piece starts with `▁` (SentencePiece). It includes the punctuation that follows. A segment ends
after a sentence or before a long pause.
"""

from collections.abc import Sequence
from itertools import pairwise

from serve_app.transcript import Segment, Token, Word
from serve_app.window import SAMPLE_RATE

WORD_MARK = "▁"
"""First character of a piece that begins a word (SentencePiece)."""

SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！")
"""A word that ends with one of these ends a sentence."""

CLOSING_MARKS = "\"'”’)]»"
"""Quotation marks and brackets that may follow the end of a sentence."""

MAX_PAUSE_S = 2.0
"""A pause of at least this length between two words ends a segment, seconds."""


class Segmenter:
    """Groups the final tokens of one recording into segments. The result does not depend on how many tokens each call adds."""

    def __init__(self) -> None:
        self._tokens: list[Token] = []
        self._words: list[list[Token]] = []
        self._next_index = 0

    def add(self, tokens: Sequence[Token]) -> list[Segment]:
        """Add the next tokens, and return the segments that they complete. A word is complete when the next one begins."""
        segments: list[Segment] = []
        for token in tokens:
            if token.piece.startswith(WORD_MARK) and self._tokens:
                segments += self._end_word(next_start_sample=token.start_sample)
            self._tokens.append(token)
        return segments

    def pass_silence(self, until_sample: int) -> list[Segment]:
        """No later token starts before this: return the segment that a pause has ended by then, without waiting for its word."""
        if not self._tokens or until_sample - self._tokens[-1].end_sample < MAX_PAUSE_S * SAMPLE_RATE:
            return []
        return self._end_word(next_start_sample=until_sample)

    @property
    def start_sample(self) -> int | None:
        """Where the segment that is not complete yet starts; None if there is none."""
        return next((tokens[0].start_sample for tokens in [*self._words[:1], self._tokens] if tokens), None)

    @property
    def unfinished(self) -> tuple[Word, ...]:
        """The words of the segment that is not complete yet. The last word may be incomplete."""
        return tuple(_word(tokens) for tokens in [*self._words, self._tokens] if tokens)

    def finish(self) -> list[Segment]:
        """Return the last segment after all tokens were added; an empty list if every segment was already returned."""
        segments = self._end_word(next_start_sample=None) if self._tokens else []
        return segments + self._end_segment()

    def _end_word(self, next_start_sample: int | None) -> list[Segment]:
        self._words.append(self._tokens)
        text, end_sample = _text(self._tokens), self._tokens[-1].end_sample
        self._tokens = []
        pause_samples = 0 if next_start_sample is None else next_start_sample - end_sample
        if text.rstrip(CLOSING_MARKS).endswith(SENTENCE_ENDS) or pause_samples >= MAX_PAUSE_S * SAMPLE_RATE:
            return self._end_segment()
        return []

    def _end_segment(self) -> list[Segment]:
        if not self._words:
            return []
        segment = _segment(self._next_index, self._words)
        self._words = []
        self._next_index += 1
        return [segment]


def split(segment: Segment, starts: Sequence[int]) -> list[Segment]:
    """A segment as several: each begins with one of these words, ascending from the first one, 0. The indexes do not change."""
    groups: list[list[Token]] = []
    for token in segment.tokens:
        if token.piece.startswith(WORD_MARK) or not groups:
            groups.append([])
        groups[-1].append(token)
    return [_segment(segment.index, groups[start:end]) for start, end in pairwise([*starts, len(groups)])]


def words_of(tokens: Sequence[Token]) -> tuple[Word, ...]:
    """Group a complete sequence of tokens into words."""
    segmenter = Segmenter()
    return tuple(word for segment in segmenter.add(tokens) + segmenter.finish() for word in segment.words)


def _segment(index: int, word_tokens: Sequence[Sequence[Token]]) -> Segment:
    words = tuple(_word(tokens) for tokens in word_tokens)
    return Segment(
        index=index,
        text=" ".join(word.text for word in words),
        start_s=words[0].start_s,
        end_s=words[-1].end_s,
        words=words,
        tokens=tuple(token for group in word_tokens for token in group),
    )


def _word(tokens: Sequence[Token]) -> Word:
    return Word(
        text=_text(tokens),
        start_s=tokens[0].start_sample / SAMPLE_RATE,
        end_s=max(token.end_sample for token in tokens) / SAMPLE_RATE,
        confidence=min(token.confidence for token in tokens),
    )


def _text(tokens: Sequence[Token]) -> str:
    return "".join(token.piece for token in tokens).replace(WORD_MARK, "")
