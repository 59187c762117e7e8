"""`python -m serve_app.run CONFIG.yaml`: `serve run` that lets requests finish when it is told to end.

On SIGTERM or SIGINT every ingress refuses new requests (503), and once those at work are done the server ends. A second signal
ends it at once. `serve run` itself breaks requests off. Besides, the variable PORT takes the place of the file's port, and what a
`.env` in the working directory sets (app.py reads it) holds for every process of the server.
"""

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import ray
import yaml
from ray import serve
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.scripts import run as serve_run

from serve_app.app import DRAIN_S

POLL_S = 0.5
ANSWER_S = 5.0


def main() -> None:
    arguments = sys.argv[1:]
    with contextlib.ExitStack() as stack:
        if (port := os.environ.get("PORT")) and arguments and Path(arguments[-1]).is_file():
            arguments[-1] = stack.enter_context(with_port(Path(arguments[-1]), port))
        _run(arguments)


@contextlib.contextmanager
def with_port(config: Path, port: str) -> Iterator[str]:
    """The path of a copy of a Serve config that has the server listen on that port."""
    if not (port.isdecimal() and 0 < int(port) < 65_536):
        sys.exit(f"PORT={port!r} is not a port.")
    content = yaml.safe_load(config.read_text())
    content["http_options"] = (content.get("http_options") or {}) | {"port": int(port)}
    with tempfile.NamedTemporaryFile("w", prefix=f"{config.stem}-", suffix=".yaml") as copy:
        yaml.safe_dump(content, copy)
        copy.flush()
        yield copy.name


def _run(arguments: Sequence[str]) -> None:
    # Before `serve run` does it, whose handler for SIGTERM would stay.
    ray.init(namespace=SERVE_NAMESPACE)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    serve_run.main(arguments, prog_name="python -m serve_app.run")


def drain() -> None:
    """Refuse new requests and wait for those at work, DRAIN_S at most."""
    boards = [serve.get_deployment_handle("board", name) for name in serve.status().applications]
    until = time.monotonic() + DRAIN_S
    # Told again each time: a board that was replaced meanwhile has forgotten it.
    while time.monotonic() < until and not all(board.drain.remote().result(timeout_s=ANSWER_S) for board in boards):
        time.sleep(POLL_S)


def _end(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    print("Waiting for the requests at work; a second signal ends them.", file=sys.stderr, flush=True)
    try:
        drain()
    except Exception as error:
        print(f"They cannot be waited for: {error!r}", file=sys.stderr, flush=True)
    # What `serve run` waits for.
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
