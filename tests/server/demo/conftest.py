"""One running server for every test of this folder: configs/demo.yaml, the bundled model loaded at the start."""

import json
from collections.abc import Iterator

import pytest
import websockets.sync.client

from serve_app.api.websocket import PATH
from serve_app.window import SAMPLE_RATE
from testing.paths import ROOT
from testing.server import START_S, Server, serve_run

IDLE_STREAMS = 200
"""Streams that test_live.py opens at once without sending anything."""


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    args = {"live": {"config_s": 5, "max_waiting_per_address": IDLE_STREAMS + 20}}
    with serve_run(ROOT / "configs" / "demo.yaml", tmp_path_factory.mktemp("demo"), args=args) as server:
        server.wait_for_state("digits", "ready")
        load_vad(server)
        yield server


def load_vad(server: Server) -> None:
    """The first live stream of a server loads the VAD, for which the tests of what people see in time should not wait."""
    with websockets.sync.client.connect(server.url.replace("http", "ws") + PATH) as socket:
        socket.send(bytes(2 * SAMPLE_RATE))
        socket.send("END")
        assert json.loads(socket.recv(timeout=START_S))["type"] == "final_transcription"
