"""The documentation as tests read it: pages, and the blocks of code in them."""

import re
from dataclasses import dataclass

from testing.paths import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
"""The text of every page, by its path in the repository."""

NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
"""The comment above a block that no test can run, with the reason."""

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code on a page."""

    page: str
    line: int
    """Of its fence, from 1."""
    language: str
    text: str
    not_run: str
    """Why no test runs it; empty if one does."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Every block in one of these languages."""
    return [block for page in PAGES for block in _blocks_of(page) if block.language in languages]


def _blocks_of(page: str) -> list[Block]:
    text, found = PAGES[page], []
    for match in FENCE.finditer(text):
        before = text[: match.start()].rstrip("\n").rpartition("\n")[2]
        reason = NOT_RUN.fullmatch(before.strip())
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match[2], match[3], reason[1] if reason else ""))
    return found


def without_blocks(text: str) -> str:
    """The text of a page without its blocks of code."""
    return FENCE.sub("", text)


def code_spans(text: str) -> list[str]:
    """What a page has between single backticks."""
    return re.findall(r"`([^`\n]+)`", without_blocks(text))


def is_shown(expected: str, actual: str) -> bool:
    """Whether a page shows what really came, `...` standing for anything."""
    pattern = ".*".join(re.escape(part) for part in expected.strip().split("..."))
    return re.fullmatch(pattern, actual.strip(), re.DOTALL) is not None
