"""Limits of requests, each tested on a server with a low limit."""

import asyncio
import errno
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from starlette.datastructures import UploadFile

from serve_app.api import create_api
from serve_app.cluster.admission import Admission, Places
from serve_app.settings import LimitSettings
from testing import media
from testing.fake_service import FakeService, assert_error, post


class TestLimits:
    @staticmethod
    def limited(**limits: Any) -> tuple[FakeService, TestClient]:
        server = FakeService(limits=LimitSettings(**limits))
        return server, TestClient(create_api(server.service), raise_server_exceptions=False)

    def test_audio_that_is_too_long_in_a_small_file(self) -> None:
        _, client = self.limited(max_audio_s=3600)
        silence = media.encode(np.zeros(48_000 * 4000, np.float32), 48_000, "flac", "flac")
        assert len(silence) < 1_000_000
        with client:
            assert_error(post(client, silence), 413, "audio_too_long", "file")
            assert post(client).status_code == 200

    def test_requests_beyond_the_maximum_are_rejected(self) -> None:
        server, client = self.limited(max_requests=2)
        server.hold.clear()
        with client, ThreadPoolExecutor(3) as clients:
            answers = [clients.submit(post, client) for _ in range(2)]
            while len(server.windows) < 2:
                time.sleep(0.01)
            refused = post(client)
            assert_error(refused, 429, "overloaded")
            assert int(refused.headers["retry-after"]) > 0
            assert client.get("/health").status_code == 200
            client.portal.call(server.hold.set)  # type: ignore[union-attr]
            assert [answer.result().status_code for answer in answers] == [200, 200]
            assert post(client).status_code == 200

    def test_an_upload_that_pauses_times_out(self) -> None:
        _, client = self.limited(upload_pause_s=0.05)
        with client:
            assert_error(self._slow_post(client, pause_s=0.5), 408, "upload_too_slow", "file")

    def test_an_upload_that_takes_too_long_times_out(self) -> None:
        _, client = self.limited(request_timeout_s=0.2)
        with client:
            assert_error(self._slow_post(client, pause_s=0.05), 408, "upload_too_slow", "file")

    def test_an_upload_below_the_minimum_rate_times_out(self) -> None:
        """No single pause is too long."""
        _, client = self.limited(upload_pause_s=0.3)
        with client:
            assert_error(self._slow_post(client, pause_s=0.02), 408, "upload_too_slow", "file")

    @pytest.mark.parametrize("charset", ["punycode", "utf-7", "idna"])
    def test_a_form_in_a_codec_that_takes_minutes_is_not_decoded(self, charset: str) -> None:
        _, client = self.limited()
        body = b'--x\r\nContent-Disposition: form-data; name="ab-' + b"b" * 30_000 + b'"\r\n\r\nc\r\n--x--\r\n'
        headers = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
        with client:
            response = client.post("/v1/audio/transcriptions", content=body, headers=headers)
            assert_error(response, 400, "invalid_request")

    @pytest.mark.parametrize("kind", ["file", "field"])
    def test_a_form_of_a_thousand_parts_is_rejected(self, kind: str) -> None:
        _, client = self.limited()
        with client:
            if kind == "file":
                response = client.post("/v1/audio/transcriptions", files=[("file", ("a", b"x"))] * 1000)
            else:
                response = client.post("/v1/audio/transcriptions", files={"file": b"x"}, data={"include[]": ["x"] * 1000})
            assert response.status_code == 400

    def test_a_full_disk_is_not_the_clients_fault(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(UploadFile, "write", full)
        _, client = self.limited()
        with client:
            assert_error(post(client), 503, "storage_full")

    def test_a_transcription_that_takes_too_long_times_out(self) -> None:
        server, client = self.limited(request_timeout_s=0.2)
        server.hold.clear()
        with client:
            assert_error(post(client), 504, "deadline_exceeded")

    def test_a_server_that_shuts_down_rejects_requests_and_is_not_ready(self) -> None:
        server, client = self.limited()
        with client:
            server.service.admission.close()
            refused = post(client)
            assert_error(refused, 503, "shutting_down")
            assert int(refused.headers["retry-after"]) > 0
            assert client.get("/ready").status_code == 503
            assert client.get("/health").status_code == 200

    @staticmethod
    def _slow_post(client: TestClient, pause_s: float) -> Response:
        """An upload in chunks, with a pause before each."""

        async def app() -> Response:
            sent: list[Any] = []
            scope = {"type": "http", "method": "POST", "path": "/v1/audio/transcriptions", "query_string": b""}
            scope |= {"headers": [(b"content-type", b"multipart/form-data; boundary=x")]}
            chunks = 0

            async def receive() -> Any:
                nonlocal chunks
                chunks += 1
                await asyncio.sleep(0 if chunks == 1 else pause_s)
                head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
                return {"type": "http.request", "body": head if chunks == 1 else b"abc", "more_body": True}

            async def send(message: Any) -> None:
                sent.append(message)

            await client.app(scope, receive, send)
            headers = [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]
            return Response(sent[0]["status"], headers=headers, content=sent[1]["body"])

        return client.portal.call(app)  # type: ignore[union-attr]


def test_jobs_share_the_windows_in_flight_equally_with_at_least_one_each() -> None:
    admission = Admission(max_requests=10, max_windows=8, max_streams=1, waiting=Places(1, 1))
    with admission.job():
        assert admission.windows_per_job == 8
        with admission.job(), admission.job():
            assert admission.windows_per_job == 2
            with ExitStack() as more:
                for _ in range(20):
                    more.enter_context(admission.job())
                assert admission.windows_per_job == 1
        assert admission.windows_per_job == 8
