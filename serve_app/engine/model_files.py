"""Finds the `.nemo` file of a model's `source`; downloads it from the Hugging Face hub if necessary.

The download runs in a process of its own: this module, run as a program. huggingface_hub has timeouts and retries of its own that
cannot be cancelled, and hf-xet has been seen to hang; a process can always be killed. The process reads the HF_* variables at its
start and reports in lines of JSON. It stops when its standard input is closed, which also happens when its parent dies.
"""

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from serve_app.errors import ModelUnavailable
from serve_app.model_source import MAIN, bundled_model_path, hub_file, problem_of

log = logging.getLogger("ray.serve")
BY_HAND = "download the .nemo file yourself and set the model's `source` to its path"
"""Last advice of the error messages for failed downloads."""

MESSAGE_MARK = "\x1e"
"""First character of the messages of the download process; all other lines are printed by libraries."""

STALL_S = 120.0
"""A transfer that has begun fails after this many seconds without data."""

GRACE_S = 5
"""Time that the download process has to remove its partial file before it is killed, seconds."""


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """Progress of a download. `done_bytes` decreases only if the download starts over; `total_bytes` is None while unknown."""

    done_bytes: int
    total_bytes: int | None


def find_model_file(source: str, *, timeout_s: float, on_progress: Callable[[DownloadProgress], None]) -> Path:
    """The `.nemo` file of a `source`: `bundled`, the path of a file, or a file on the hub (see serve_app.model_source).

    For a hub source, the first of these that exists: for `owner/name` alone, `name.nemo` in the folder MODELS_DIR and in `models`
    of the working directory; then the file in the cache of huggingface_hub. The cache is used without a request to the hub, so
    that all replicas use the same file and start while the hub is down. Otherwise the call blocks until the file is downloaded,
    for at most `timeout_s` and a few seconds of clean-up. `on_progress` is called in the caller's thread, at most once a second
    and at the end. Raises ModelUnavailable with the reason and what to do; call again to retry.
    """
    path = bundled_model_path() if source == "bundled" else Path(os.path.expanduser(source))
    if os.path.isfile(path):
        return path
    wanted = hub_file(source)
    if wanted is None:
        missing = f"there is no model file {path.absolute()}: put it there, or correct the model's `source`"
        raise ModelUnavailable(problem_of(source) or missing)
    if wanted.is_conventional:
        for folder in (os.environ.get("MODELS_DIR"), "models"):
            if folder and (local := Path(folder, wanted.file)).is_file():
                return local
    # Ray may have changed the import path of this process.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    command = [sys.executable, "-P", "-m", "serve_app.engine.model_files", wanted.repository, wanted.file, wanted.revision]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            return _follow(child.stdout, source, timeout_s, on_progress)
        finally:
            child.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                child.wait(2 * GRACE_S)
            child.kill()


def _follow(stdout: IO[bytes], source: str, timeout_s: float, on_progress: Callable[[DownloadProgress], None]) -> Path:
    limit = deadline = time.monotonic() + timeout_s
    rest, last_line, so_far = "", "no reason given", ""
    poll = select.poll()
    poll.register(stdout, select.POLLIN)
    while poll.poll(min(max(0.0, limit - time.monotonic()), 1e6) * 1000):
        received = os.read(stdout.fileno(), 1 << 16).decode(errors="replace")
        if not received:
            raise ModelUnavailable(f"the download of {source} ended unexpectedly: {last_line}{so_far}")
        *lines, rest = (rest + received).split("\n")
        for line in lines:
            if not line.startswith(MESSAGE_MARK):
                last_line = line.strip() or last_line
                log.warning("download of %s: %s", source, line)
                continue
            message = json.loads(line[1:])
            if "error" in message:
                raise ModelUnavailable(message["error"] + so_far)
            if "path" in message:
                size = os.path.getsize(message["path"])
                if so_far:
                    on_progress(DownloadProgress(size, size))
                return Path(message["path"])
            on_progress(DownloadProgress(message["done"], message["total"]))
            so_far = f" (received {message['done'] / 1e6:.1f} of {(message['total'] or 0) / 1e6:.1f} MB)"
            limit = min(deadline, time.monotonic() + STALL_S)
    too_slow = f"was not finished within {timeout_s:g} s: raise the model's `load_timeout_s`"
    stalled = f"received no data for {STALL_S:g} s: check the network, try HF_HUB_DISABLE_XET=1"
    raise ModelUnavailable(f"the download of {source} {too_slow if limit == deadline else stalled}, or {BY_HAND}{so_far}")


class _Bar:
    """Progress bar for huggingface_hub: the methods of tqdm that it calls. Reports to the parent process.

    This class and all functions below it run in the download process.
    """

    def __init__(self, *, total: int | None = None, initial: int = 0, **_: object) -> None:
        self.total, self.done, self.reported_at = total, initial, float("-inf")
        self.update(0)

    def update(self, n: int) -> None:
        self.done += n
        if time.monotonic() >= self.reported_at + 1:
            self.reported_at = time.monotonic()
            _report(done=self.done, total=self.total)

    def update_transfer(self, n: int) -> None:
        self.update(0)  # hf-xet has received `n` bytes but has not written them to the file yet

    def ignore(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> Self:
        return self

    __exit__ = set_postfix_str = set_transfer_postfix_str = ignore


def _report(**message: object) -> None:
    # One write per message, so that messages of several threads do not mix in the pipe.
    sys.stdout.write(MESSAGE_MARK + json.dumps(message) + "\n")
    sys.stdout.flush()


def _fetch(repository: str, name: str, revision: str) -> str:
    from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache

    if isinstance(cached := try_to_load_from_cache(repository, name, revision=revision), str):
        return cached
    # First a request with a short timeout: if the hub does not answer, hf_hub_download retries for minutes.
    get_hf_file_metadata(hf_hub_url(repository, name, revision=revision), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    get_session().event_hooks["response"].append(_make_resumable)
    # The unit of progress reports, and the most that is downloaded again after a broken connection. The default is 10 MiB.
    constants.DOWNLOAD_CHUNK_SIZE = 1 << 20
    return hf_hub_download(repository, name, revision=revision, tqdm_class=_Bar)


def _make_resumable(response: Any) -> None:
    """Report a reset connection as one that was closed early: huggingface_hub resumes the download only after the latter."""
    import httpx2

    def iter_raw(chunk_size: int | None = None, inner: Any = response.iter_raw) -> Iterator[bytes]:
        try:
            yield from inner(chunk_size)
        except httpx2.ReadError as error:
            raise httpx2.RemoteProtocolError(str(error)) from error

    response.iter_raw = iter_raw


def _reason(error: BaseException, repository: str, name: str, revision: str) -> str:
    from huggingface_hub import constants, errors

    hub, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    match error:
        case errors.GatedRepoError():
            return f"{repository} is gated: accept its terms on {hub} and set HF_TOKEN to a token of that account"
        case errors.RepositoryNotFoundError():
            return f"{hub} has no model {repository}, or a private one: correct the model's `source`, or set HF_TOKEN"
        case errors.RevisionNotFoundError():
            return f"{repository} on {hub} has no revision {revision}: correct what follows the @ in the model's `source`"
        case errors.RemoteEntryNotFoundError():
            return f"{repository} on {hub} has no file {name} at revision {revision}{_other_files(repository, revision)}"
        case OSError(errno=int()):
            return f"{repository} cannot be stored: {cause}. Make room in {cache}, or set HF_HOME to another folder"
    return (
        f"{repository} is not in {cache}, and {hub} is unavailable: {cause}. Check network, HF_ENDPOINT, HF_TOKEN, or {BY_HAND}"
    )


def _other_files(repository: str, revision: str) -> str:
    """What to do where a file is missing: name one of those that the repository has."""
    from huggingface_hub import HfApi

    try:
        names = [name for name in HfApi().list_repo_files(repository, revision=revision) if name.endswith(".nemo")]
    except Exception:  # only the advice is lost
        return ": correct the model's `source`"
    if not names:
        return ", nor any other `.nemo` file: it is not a NeMo model"
    suffix = "" if revision == MAIN else f"@{revision}"
    return ": write `source` as one of " + ", ".join(f"{repository}:{name}{suffix}" for name in names)


def _stop_with_parent() -> None:
    os.read(0, 1)
    signal.alarm(GRACE_S)  # kills the process if it does not react to the interrupt
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _main(repository: str, name: str, revision: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        answer = {"path": _fetch(repository, name, revision)}
    except BaseException as error:
        answer = {"error": _reason(error, repository, name, revision)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _report(**answer)
    os._exit(0)  # skips the interpreter's clean-up, which has been seen to hang


if __name__ == "__main__":
    _main(*sys.argv[1:])
