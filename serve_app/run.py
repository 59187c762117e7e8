"""`python -m serve_app.run CONFIG.yaml`: `serve run` that lets requests finish when it is told to end.

On SIGTERM or SIGINT every ingress refuses new requests (503), and once those at work are done the server ends. A second signal
ends it at once. `serve run` itself breaks requests off.
"""

import signal
import sys
import time
from types import FrameType

import ray
from ray import serve
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.scripts import run as serve_run

from serve_app.app import DRAIN_S

POLL_S = 0.5
APPLICATION = "parakeet"
"""Its name in every configuration of this project."""


def main() -> None:
    # Before `serve run` does it, whose handler for SIGTERM would stay.
    ray.init(namespace=SERVE_NAMESPACE)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    serve_run.main(sys.argv[1:], prog_name="python -m serve_app.run")


def drain() -> None:
    """Refuse new requests and wait for those at work, DRAIN_S at most."""
    board = serve.get_deployment_handle("board", APPLICATION)
    board.drain.remote().result()
    until = time.monotonic() + DRAIN_S
    while not board.is_drained.remote().result() and time.monotonic() < until:
        time.sleep(POLL_S)


def _end(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    try:
        print("Waiting for the requests at work; a second signal ends them.", file=sys.stderr, flush=True)
        drain()
    finally:
        # What `serve run` waits for.
        raise KeyboardInterrupt


if __name__ == "__main__":
    main()
