"""The rules that keep the code a house: who may import what, and how long a file may be."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "serve_app"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 300

PURE = {
    "transcript",
    "errors",
    "settings",
    "audio",
    "resampling",
    "buffer",
    "live",
    "voice",
    "pcm",
    "chunking",
    "seams",
    "segments",
    "export",
    "batching",
    "pipeline",
    "service",
    "admission",
    "seed_variables",
    "gaps",
    "cues",
    "subtitles",
    "board",
}
RAY = {"deployments", "ingress", "app", "backpressure", "run"}
ENGINE = {"engine", "boosting", "hardware", "vad"}


def imported(path: Path) -> set[str]:
    """Top-level packages that a module imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def imported_modules(path: Path) -> set[str]:
    """Modules of this package that a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("serve_app"):
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_who_may_imports_ray_nemo_torch_and_fastapi(path: Path) -> None:
    names, stem = imported(path), path.stem
    in_api = path.parent.name == "api"
    if stem not in RAY or in_api:
        assert "ray" not in names
    if stem not in ENGINE or in_api:
        assert not names & {"torch", "nemo", "omegaconf"}
    if stem in PURE and not in_api:
        assert not names & {"ray", "torch", "nemo", "fastapi", "starlette"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    modules = imported_modules(path)
    if path.stem in PURE and path.parent == PACKAGE:
        assert {m.removeprefix("serve_app.") for m in modules} <= PURE
    if path.parent.name == "api":
        assert not {m.removeprefix("serve_app.") for m in modules} & (RAY | ENGINE)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_no_module_is_called_utils() -> None:
    assert not list(PACKAGE.rglob("util*.py"))


@pytest.mark.parametrize("stem", sorted(RAY))
def test_annotations_that_serve_reads_are_not_deferred(stem: str) -> None:
    """With deferred annotations Serve passes `build_app` a raw dict and says nothing."""
    assert "from __future__ import annotations" not in (PACKAGE / f"{stem}.py").read_text()
