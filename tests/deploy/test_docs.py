"""docs/deploy.md names every file for deployment, and none that does not exist."""

import re

from testing.paths import ROOT

TEXT = (ROOT / "docs" / "deploy.md").read_text()
ELSEWHERE = ("deploy/prometheus/", "deploy/grafana/", "deploy/entrypoint.sh")
"""Metrics are in docs/operating.md, and the image has its entrypoint."""


def test_what_it_names_exists() -> None:
    named = set(re.findall(r"(?:configs|deploy|tests)/[\w./-]+\w", TEXT))
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_it_names_everything() -> None:
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    assert [path for path in files if not path.startswith(ELSEWHERE) and path not in TEXT] == []


def test_its_links_lead_somewhere() -> None:
    for path, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", TEXT):
        target = ROOT / "docs" / (path or "deploy.md")
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, f"{path}#{anchor}"


def test_the_makefile_has_the_targets_that_it_names() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make ([a-z-]+)`", TEXT)) <= set(targets)
