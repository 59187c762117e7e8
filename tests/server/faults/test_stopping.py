"""SIGTERM. The server of this folder has ended after it, so this file is the last one."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from benchmarks.speech import hoarse
from serve_app.window import Samples
from testing import media
from testing.checked_load import as_words, words_of
from testing.server import Server
from testing.streams import REALTIME, connect, until_closed
from tests.server.faults.conftest import BATCH_ITEMS, WAIT_S, noise_of, transcript, wait_for_windows, wait_until

pytestmark = [pytest.mark.serve]

FILE_S = 600
"""Length of the file that is in progress."""


async def test_what_is_in_progress_is_finished(server: Server, speech: Samples) -> None:
    """A file, a live stream and a Realtime session."""
    log_before, said = len(server.log), hoarse(speech, seed=0)
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(transcript, server, noise_of(FILE_S), "single")
        wait_for_windows(server, "single", BATCH_ITEMS, answer)
        async with connect(server) as stream, connect(server, REALTIME) as realtime:
            await stream.send(json.dumps({"encoding": "pcm_s16le", "model": "pair"}))
            await stream.send(said.tobytes())
            process = psutil.Process(server.process_id)
            process.terminate()
            wait_until(lambda: server.client.get("/ready").status_code == 503)
            refused = server.transcribe(media.wav(media.tone(1)), model="single")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert not answer.done()
            segments = [message for message in await until_closed(stream, 1012) if message["type"] == "segment"]
            assert sum((as_words(segment["words"], 0) for segment in segments), Counter()) == words_of(said)
            assert [event["type"] for event in await until_closed(realtime, 1012)] == ["session.created"]
        assert len(answer.result()["words"]) > FILE_S
        assert process.wait(WAIT_S) == 0
        assert "Traceback" not in server.log[log_before:]
