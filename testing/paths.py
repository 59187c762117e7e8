"""Where things are in this repository."""

from pathlib import Path

ROOT = Path(__file__).parent.parent

DATA = ROOT / "tests" / "data"

DIGITS = DATA / "digits"
"""Single synthesised digits, see tests/data/README.md."""
