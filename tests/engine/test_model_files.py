"""Finding and downloading model files, against a fake hub: complete downloads and every kind of failure."""

import os
import resource
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from serve_app.engine import model_files
from serve_app.engine.model_files import DownloadProgress, find_model_file
from serve_app.errors import ModelUnavailable
from testing.fake_hub import FakeHub, Mode

NAME = "nvidia/parakeet-tdt-0.6b-v2"
SIZE = 4_000_000
HANG_S = 60.0

StartHub = Callable[..., FakeHub]


def ignore(progress: DownloadProgress) -> None: ...


def fetch(source: str = NAME, *, timeout_s: float = 50.0, on_progress: Callable[[DownloadProgress], None] = ignore) -> Path:
    """Calls find_model_file in a thread, so that a call that hangs fails the test."""
    outcome: list[Path | BaseException] = []

    def run() -> None:
        try:
            outcome.append(find_model_file(source, timeout_s=timeout_s, on_progress=on_progress))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANG_S)
    assert outcome, "find_model_file hangs"
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HF_HOME; settings of the machine are removed."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")) or name == "TRANSFORMERS_OFFLINE":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return home


@pytest.fixture
def start(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartHub]:
    """Starts a fake hub in a given mode and sets HF_ENDPOINT to it."""
    file = tmp_path / "model.nemo"
    file.write_bytes(os.urandom(SIZE))
    with ExitStack() as stack:

        def start_hub(mode: Mode = "whole", *, limit_bytes: int = 1_500_000, **options: Any) -> FakeHub:
            hub = stack.enter_context(FakeHub(file, mode, limit_bytes=limit_bytes, bytes_per_s=2_500_000, **options))
            monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
            return hub

        yield start_hub


def partial_files(home: Path) -> list[Path]:
    return list(home.rglob("*.incomplete"))


def test_path_of_a_file_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.nemo"
    file.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch(str(file)) == file
    assert fetch("~/mine.nemo") == file
    assert fetch("mine.nemo") == Path("mine.nemo")
    file.rename("any-name")
    assert fetch("any-name") == Path("any-name")


def test_missing_file_is_named_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelUnavailable, match=f"no model file {tmp_path}/models/mine.nemo"):
        fetch("models/mine.nemo")


@pytest.mark.parametrize("source", ["", "parakeet", "a/b/c", "/no/such/file", "a/b;c", "nvidia/", "~nobody-of-that-name/x y"])
def test_source_that_is_neither_file_nor_hub_name(source: str) -> None:
    with pytest.raises(ModelUnavailable, match=r"neither a model on the hub|there is no model file"):
        fetch(source)


def test_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "digits.nemo"
    monkeypatch.setattr(model_files, "bundled_model_path", lambda: file)
    with pytest.raises(ModelUnavailable, match=f"no model file {file}"):
        fetch("bundled")
    file.touch()
    assert fetch("bundled") == file


def test_whole_download(start: StartHub, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    hub = start()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    seen: list[DownloadProgress] = []
    path = fetch(on_progress=seen.append)
    assert path.name == "parakeet-tdt-0.6b-v2.nemo"
    assert path.read_bytes() == hub.content
    assert path.is_relative_to(home)
    assert seen[-1] == DownloadProgress(SIZE, SIZE)
    assert hub.gets[0].token == "Bearer hf_secret"
    assert capfd.readouterr() == ("", "")


def test_progress_of_a_slow_download(start: StartHub) -> None:
    start("slow")
    seen: list[DownloadProgress] = []
    fetch(on_progress=seen.append)
    done = [progress.done_bytes for progress in seen]
    assert done == sorted(done)
    assert any(0 < d < SIZE for d in done)
    assert {progress.total_bytes for progress in seen} == {SIZE}


@pytest.mark.parametrize("mode", ["breaking", "resetting"])
def test_download_resumes_after_a_broken_connection(start: StartHub, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not `caplog`: Ray and NeMo change the propagation of loggers when they are imported.
    logged: list[str] = []
    monkeypatch.setattr(model_files.log, "warning", lambda text, *arguments: logged.append(text % arguments))
    hub = start(mode, breaks=1)
    assert fetch().read_bytes() == hub.content
    first, second = hub.gets
    assert first.first_byte == 0
    assert 0 < second.first_byte < hub.limit_bytes
    assert any("Trying to resume download" in line for line in logged)


@pytest.mark.slow
def test_every_connection_breaks_and_then_the_hub_recovers(start: StartHub, home: Path) -> None:
    hub = start("breaking", limit_bytes=300_000)
    with pytest.raises(ModelUnavailable, match=r"peer closed connection.*or download the \.nemo file yourself.* of 4\.0 MB"):
        fetch()
    assert not partial_files(home)
    hub.mode = "whole"
    hub.requests.clear()
    assert fetch().read_bytes() == hub.content
    assert [request.first_byte for request in hub.gets] == [0], "huggingface_hub keeps no partial file of a failed call"


def test_stalled_transfer_fails(start: StartHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start("stalling")
    monkeypatch.setattr(model_files, "STALL_S", 1.5)
    with pytest.raises(ModelUnavailable, match=r"received no data for 1\.5 s"):
        fetch()
    assert not partial_files(home)


def test_download_that_takes_too_long_fails(start: StartHub, home: Path) -> None:
    hub = start("slow")
    hub.bytes_per_s = 200_000
    with pytest.raises(ModelUnavailable, match="not finished within 2 s: raise the model's `load_timeout_s`"):
        fetch(timeout_s=2)
    assert not partial_files(home)


def test_hub_that_never_answers(start: StartHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = start("silent")
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    with pytest.raises(ModelUnavailable, match=r"http://127\.0\.0\.1:\d+ is unavailable: .*timed out"):
        fetch()
    assert len(hub.requests) == 1


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("no repository", rf"http://127\.0\.0\.1:\d+ has no model {NAME}, or a private one: .*HF_TOKEN"),
        (
            "no file",
            rf"{NAME} on http://127\.0\.0\.1:\d+ has no file parakeet-tdt-0\.6b-v2\.nemo at revision main, nor any other .*: "
            "it is not a NeMo model",
        ),
        ("gated", rf"{NAME} is gated: .*HF_TOKEN"),
        (
            "down",
            rf"{NAME} is not in .*, and http://127\.0\.0\.1:\d+ is unavailable: .*refused.*HF_ENDPOINT.*set the model's `source`",
        ),
    ],
)
def test_errors_say_what_to_do(start: StartHub, mode: Mode, message: str) -> None:
    start(mode)
    with pytest.raises(ModelUnavailable, match=message):
        fetch()


@pytest.mark.parametrize(
    ("source", "name", "commit"),
    [
        ("org/model:folder/ultra.nemo", "folder/ultra.nemo", "a" * 40),
        ("org/model:folder/ultra.nemo@v1.0", "folder/ultra.nemo", "b" * 40),
        ("org/model:folder/ultra.nemo@refs/pr/3", "folder/ultra.nemo", "c" * 40),
        (f"org/model@{'b' * 40}", "model.nemo", "b" * 40),
    ],
)
def test_any_file_at_any_revision(start: StartHub, source: str, name: str, commit: str) -> None:
    commits = {"main": "a" * 40, "v1.0": "b" * 40, "refs/pr/3": "c" * 40, "b" * 40: "b" * 40}
    hub = start(repository="org/model", file_name=name, revisions=commits)
    path = fetch(source)
    assert path.as_posix().endswith(f"/snapshots/{commit}/{name}")
    assert path.read_bytes() == hub.content
    start("down")
    assert fetch(source) == path


def test_file_that_the_repository_does_not_have(start: StartHub) -> None:
    start(repository="ncannings/parakeet-ultra-nemo", file_name="ultra.nemo", revisions={"main": "a" * 40, "v1": "b" * 40})
    advice = "has no file {} at revision {}: write `source` as one of ncannings/parakeet-ultra-nemo:ultra.nemo{}$"
    with pytest.raises(ModelUnavailable, match=advice.format("parakeet-ultra-nemo.nemo", "main", "")):
        fetch("ncannings/parakeet-ultra-nemo")
    with pytest.raises(ModelUnavailable, match=advice.format("other.nemo", "v1", "@v1")):
        fetch("ncannings/parakeet-ultra-nemo:other.nemo@v1")


def test_revision_that_the_repository_does_not_have(start: StartHub) -> None:
    start()
    with pytest.raises(ModelUnavailable, match=f"{NAME} on .* has no revision v9: correct what follows the @"):
        fetch(f"{NAME}@v9")


def test_local_copy_serves_only_a_source_without_file_and_revision(
    start: StartHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start("down")
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    copy = tmp_path / "parakeet-tdt-0.6b-v2.nemo"
    copy.touch()
    assert fetch(NAME) == copy
    for source in (f"{NAME}@main", f"{NAME}:{copy.name}"):
        with pytest.raises(ModelUnavailable, match="is unavailable"):
            fetch(source)


def test_repository_that_the_hub_does_not_have(start: StartHub) -> None:
    start()
    with pytest.raises(ModelUnavailable, match="has no model nvidia/parakeet-tdt-9b"):
        fetch("nvidia/parakeet-tdt-9b")


def test_cached_file_needs_no_hub(start: StartHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = start()
    path = fetch()
    start("down")
    seen: list[DownloadProgress] = []
    assert fetch(on_progress=seen.append) == path
    assert path.read_bytes() == hub.content
    assert not seen
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch() == path


def test_offline_without_the_file(start: StartHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = start()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailable, match="unset the `HF_HUB_OFFLINE`"):
        fetch()
    assert not hub.requests


def test_file_that_cannot_be_stored(start: StartHub, home: Path) -> None:
    start()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
    try:
        with pytest.raises(ModelUnavailable, match=f"cannot be stored: .*File too large.* Make room in {home}/hub"):
            fetch()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not partial_files(home)


def test_download_process_that_fails_at_the_start(start: StartHub, monkeypatch: pytest.MonkeyPatch) -> None:
    start()
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "soon")
    with pytest.raises(ModelUnavailable, match=r"ended unexpectedly: ValueError.*soon"):
        fetch()


def test_two_concurrent_calls_download_once(start: StartHub) -> None:
    hub = start("slow")
    with ThreadPoolExecutor() as pool:
        paths = {future.result(HANG_S) for future in [pool.submit(fetch) for _ in range(2)]}
    assert [path.read_bytes() == hub.content for path in paths] == [True]
    assert len(hub.gets) == 1


def test_failing_progress_callback_ends_the_download(start: StartHub, home: Path) -> None:
    start("slow")

    def fail(progress: DownloadProgress) -> None:
        raise RuntimeError("callback failed")

    with pytest.raises(RuntimeError, match="callback failed"):
        fetch(on_progress=fail)
    assert not partial_files(home)
