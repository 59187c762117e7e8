"""`python -m serve_app.run CONFIG.yaml`: `serve run` that finishes the requests in progress when it is told to stop.

On SIGTERM or SIGINT every ingress refuses new requests (503), and the server stops once those in progress are done. A second
signal stops it at once. `serve run` itself aborts them. In addition, the variable PORT overrides the file's port, and what a
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
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.scripts import run as serve_run

from serve_app.app import DRAIN_S

POLL_S = 0.5
"""Interval between two questions whether all is drained, seconds."""

SHUT_DOWN_S = 30.0
"""Time for Serve to stop its processes once the requests are done, seconds."""

REPLY_TIMEOUT_S = 5.0
"""The status registry must reply within this time, seconds."""


def main() -> None:
    # Ray would otherwise report usage statistics to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    arguments = sys.argv[1:]
    with contextlib.ExitStack() as stack:
        if (port := os.environ.get("PORT")) and arguments and Path(arguments[-1]).is_file():
            arguments[-1] = stack.enter_context(with_port(Path(arguments[-1]), port))
        _run(arguments)


@contextlib.contextmanager
def with_port(config: Path, port: str) -> Iterator[str]:
    """The path of a temporary copy of a Serve config with that port."""
    if not (port.isdecimal() and 0 < int(port) < 65_536):
        sys.exit(f"PORT={port!r} is not a port.")
    content = yaml.safe_load(config.read_text())
    content["http_options"] = (content.get("http_options") or {}) | {"port": int(port)}
    with tempfile.NamedTemporaryFile("w", prefix=f"{config.stem}-", suffix=".yaml") as copy:
        yaml.safe_dump(content, copy)
        copy.flush()
        yield copy.name


def _run(arguments: Sequence[str]) -> None:
    # Before `serve run` initialises Ray, whose handler for SIGTERM would replace ours.
    ray.init(namespace=SERVE_NAMESPACE)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    serve_run.main(arguments, prog_name="python -m serve_app.run")


def drain() -> None:
    """Refuse new requests and wait for those in progress, DRAIN_S at most."""
    registries = [serve.get_deployment_handle("status", name) for name in serve.status().applications]
    until = time.monotonic() + DRAIN_S
    # Repeated: a registry that was restarted meanwhile does not know that it drains.
    while time.monotonic() < until and not all(r.drain.remote().result(timeout_s=REPLY_TIMEOUT_S) for r in registries):
        time.sleep(POLL_S)


def shut_down() -> None:
    """Shut Serve down, SHUT_DOWN_S at most. `serve.shutdown` would go on waiting when Serve's controller has ended: Ray sends its
    request again to the dead actor."""
    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    ray.get(controller.graceful_shutdown.remote(wait=False))
    until = time.monotonic() + SHUT_DOWN_S
    # Raises ValueError once there is no such actor.
    with contextlib.suppress(ValueError):
        while time.monotonic() < until and ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE):
            time.sleep(POLL_S)


def _stop(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    print("Waiting for the requests in progress; a second signal aborts them.", file=sys.stderr, flush=True)
    try:
        drain()
    except Exception as error:
        print(f"Cannot wait for the requests in progress: {error!r}", file=sys.stderr, flush=True)
    shut_down()
    sys.exit()


if __name__ == "__main__":
    main()
