"""CPU time by kind of process, on the real server."""

import pytest

from testing import media
from testing.cpu_time import snapshot, spent
from testing.server import Server

pytestmark = pytest.mark.serve


def test_a_request_costs_proxy_ingress_and_replica(server: Server) -> None:
    before = snapshot(server.process_id)
    assert server.transcribe(media.wav(media.tone(600, 48_000), 48_000)).status_code == 200
    seconds = spent(before, snapshot(server.process_id))
    for kind in ("proxy", "ingress", "replica"):
        assert seconds[kind] > 0, kind
    assert min(seconds.values()) >= 0
