"""The forms of a model's `source`."""

from pathlib import Path

import pytest

from serve_app.model_source import HubFile, hub_file, problem_of


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("nvidia/parakeet-tdt-0.6b-v2", ("nvidia/parakeet-tdt-0.6b-v2", "parakeet-tdt-0.6b-v2.nemo", "main", True)),
        ("a/b:c.nemo", ("a/b", "c.nemo", "main", False)),
        ("a/b:c/d.nemo", ("a/b", "c/d.nemo", "main", False)),
        ("a/b@v1.0", ("a/b", "b.nemo", "v1.0", False)),
        ("a/b@refs/pr/3", ("a/b", "b.nemo", "refs/pr/3", False)),
        ("a/b:c.nemo@0123abc", ("a/b", "c.nemo", "0123abc", False)),
        ("a/b.nemo@main", ("a/b.nemo", "b.nemo.nemo", "main", False)),
    ],
)
def test_hub_sources(source: str, expected: tuple[str, str, str, bool]) -> None:
    assert hub_file(source) == HubFile(*expected)
    assert not problem_of(source)


@pytest.mark.parametrize(
    "source", ["models/mine.nemo", "mine.nemo", "/data/a:b.nemo", "./any-name", "../x", "~/x", "/no/such/file"]
)
def test_paths(source: str) -> None:
    assert hub_file(source) is None
    assert not problem_of(source)


@pytest.mark.parametrize(
    "source",
    [
        "a/b:",
        "a/b:c.bin",
        "a/b:../c.nemo",
        "a/b:/c.nemo",
        "a/b:c.nemo@",
        "a/b@",
        "a/b@v 1",
        "a/b@../v1",
        "a/b:c.nemo:d.nemo",
        "a/b@-v",
    ],
)
def test_malformed_hub_sources(source: str) -> None:
    assert hub_file(source) is None
    assert "is not `owner/name:file.nemo@revision`" in problem_of(source)


@pytest.mark.parametrize("source", ["", "parakeet", "parakeet-tdt-0.6b-v2", "a/b/c", "a/b;c", "nvidia/", "https://hf.co/a/b"])
def test_other_text(source: str) -> None:
    assert hub_file(source) is None
    assert "is neither a model on the hub" in problem_of(source)


def test_file_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert problem_of("any-name")
    Path("any-name").touch()
    assert not problem_of("any-name")
