"""Where lines of text may end, in scripts with and without spaces, and how wide it is."""

import re
import unicodedata
from itertools import pairwise

SPACELESS = re.compile("[\u3001-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff9f\U00020000-\U0003ffff]")
"""Chinese and Japanese characters. These scripts have no spaces: a line may end after almost every character."""

NEVER_FIRST = set(
    "、。，．・：；？！‥…ー〜～」』）］｝〉》】〕〟’”»,.!?:;)]}%％々ゝゞヽヾぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶ"
)
"""Characters that must not begin a line in Chinese and Japanese text (Japanese: kinsoku shori)."""

NEVER_LAST = set("「『（［｛〈《【〔〝‘“«([{")
"""Characters that must not end a line in Chinese and Japanese text."""


def width(text: str) -> int:
    """Width of a text in characters; a full-width character counts as two."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def divide(text: str) -> list[str]:
    """Divide a text without spaces wherever its script allows a line to end."""
    if not SPACELESS.search(text):
        return [text]
    pieces = [text[0]]
    for left, right in pairwise(text):
        is_combining = unicodedata.category(right).startswith("M")
        if (
            (SPACELESS.match(left) or SPACELESS.match(right))
            and left not in NEVER_LAST
            and right not in NEVER_FIRST
            and not is_combining
        ):
            pieces.append(right)
        else:
            pieces[-1] += right
    return pieces
