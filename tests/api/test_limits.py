"""Limits of requests, each tested on a server with a low limit."""

import asyncio
import errno
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from starlette.datastructures import UploadFile

from serve_app.api import create_api
from serve_app.api import limits as limits_module
from serve_app.api.limits import MAX_BODY_BYTES
from serve_app.cluster.admission import Admission, Places
from serve_app.settings import IngressSettings, LimitSettings
from testing import media
from testing.fake_service import NOISE, FakeService, assert_error, post
from testing.open_requests import FORM, FORM_HEAD, FORM_TAIL, OpenRequest, until


class TestLimits:
    @staticmethod
    def limited(**limits: Any) -> tuple[FakeService, TestClient]:
        server = FakeService(limits=LimitSettings(**limits))
        return server, TestClient(create_api(server.service), raise_server_exceptions=False)

    @pytest.mark.slow
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

    @pytest.mark.parametrize(
        "charset",
        ["utf-8", "UTF8", '"utf-8"', "US-ASCII", "ISO-8859-1", "iso_8859-1", "latin1", "latin-1", "windows-1252", "Cp1252"],
    )
    def test_a_form_in_a_common_charset(self, charset: str) -> None:
        _, client = self.limited()
        field = b'--x\r\nContent-Disposition: form-data; name="response_format"\r\n\r\ntext\r\n'
        body = field + b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + NOISE + b"\r\n--x--\r\n"
        headers = {"Content-Type": f"multipart/form-data; charset={charset}; boundary=x"}
        with client:
            response = client.post("/v1/audio/transcriptions", content=body, headers=headers)
            assert response.text == post(client, response_format="text").text

    @pytest.mark.parametrize("max_bytes", [1_000_000, MAX_BODY_BYTES])
    def test_json_in_chunks_is_counted(self, max_bytes: int) -> None:
        """Without a Content-Length."""
        _, client = self.limited(max_upload_bytes=max_bytes)
        export = b'{"response_format": "text", "duration": 1, "segments": [{"start": 0, "end": 1, "text": "Hello."}]}'

        def chunks(size: int) -> Iterator[bytes]:
            yield export
            for _ in range(0, size - len(export), 100_000):
                yield b" " * 100_000

        path, headers = "/v1/audio/transcriptions/export", {"Content-Type": "application/json"}
        with client:
            assert client.post(path, content=chunks(500_000), headers=headers).text == "Hello.\n"
            assert_error(client.post(path, content=chunks(max_bytes + 1), headers=headers), 413, "upload_too_large")

    @pytest.mark.parametrize("length", ["9" * 20, "9" * 5000])
    def test_an_absurd_content_length(self, length: str) -> None:
        _, client = self.limited()
        with client:
            answer = client.post("/v1/audio/transcriptions", content=b"", headers={"Content-Length": length})
            assert_error(answer, 413, "upload_too_large")

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
            request = OpenRequest(client.app, "/v1/audio/transcriptions", FORM)
            request.send(FORM_HEAD)
            while not request.task.done():
                await asyncio.sleep(pause_s)
                request.send(b"abc")
            return await request.response()

        return client.portal.call(app)  # type: ignore[union-attr]


class TestUploads:
    """Uploads in progress are counted apart from requests at work, and by address."""

    PATH = "/v1/audio/transcriptions"

    @pytest.fixture
    def limits(self) -> LimitSettings:
        return LimitSettings(max_requests=1, max_uploads=3, max_uploads_per_address=2)

    @pytest.fixture
    def server(self, limits: LimitSettings) -> FakeService:
        ingress = IngressSettings.model_validate({"trusted_proxies": ["10.0.0.0/8"]})
        return FakeService(limits=limits, ingress=ingress)

    @staticmethod
    def whole(app: Any, address: str = "192.0.2.9") -> OpenRequest:
        request = OpenRequest(app, TestUploads.PATH, FORM, address)
        request.send(FORM_HEAD + NOISE + FORM_TAIL, more_body=False)
        return request

    async def test_uploads_in_progress_keep_nobody_from_working(self, server: FakeService) -> None:
        app = create_api(server.service)
        silent = [OpenRequest(app, self.PATH, FORM) for _ in range(2)]
        for request in silent:
            request.send(FORM_HEAD)
        assert (await self.whole(app).response()).status_code == 200
        for request in silent:
            request.send(NOISE + FORM_TAIL, more_body=False)
        assert [(await request.response()).status_code for request in silent] == [200, 200]

    async def test_they_are_limited_in_all_and_by_address(self, server: FakeService) -> None:
        app = create_api(server.service)
        silent = [OpenRequest(app, self.PATH, FORM) for _ in range(2)]
        await asyncio.sleep(0)
        assert_error(await self.whole(app, "192.0.2.1").response(), 429, "overloaded")
        silent.append(OpenRequest(app, self.PATH, FORM | {"x-forwarded-for": "192.0.2.1, 192.0.2.2"}, "10.0.0.1"))
        await asyncio.sleep(0)
        assert_error(await self.whole(app, "192.0.2.3").response(), 429, "overloaded")
        for request in silent:
            await request.leave()
        assert server.service.admission.requests == 0
        assert (await self.whole(app, "192.0.2.3").response()).status_code == 200

    async def test_a_complete_upload_waits_for_its_turn(self, server: FakeService) -> None:
        app = create_api(server.service)
        server.hold.clear()
        late = OpenRequest(app, self.PATH, FORM)
        await asyncio.sleep(0)
        first = self.whole(app)
        await until(lambda: bool(server.windows))
        late.send(FORM_HEAD + NOISE + FORM_TAIL, more_body=False)
        assert_error(await self.whole(app).response(), 429, "overloaded")
        assert len(server.windows) == 1
        server.hold.set()
        assert [(await request.response()).status_code for request in (first, late)] == [200, 200]

    async def test_a_silent_upload_ends_soon(self, server: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits_module, "MAX_START_S", 0.05)
        assert_error(await OpenRequest(create_api(server.service), self.PATH, FORM).response(), 408, "upload_too_slow", "file")

    async def test_a_client_that_leaves_during_its_upload_takes_no_turn(self, server: FakeService) -> None:
        app = create_api(server.service)
        for _ in range(3):
            request = OpenRequest(app, self.PATH, FORM)
            request.send(FORM_HEAD)
            request.disconnect()
            await asyncio.gather(request.task, return_exceptions=True)
        assert server.service.admission.requests == 0
        assert (await self.whole(app).response()).status_code == 200


def test_jobs_share_the_windows_in_flight_equally_with_at_least_one_each() -> None:
    admission = Admission(max_requests=10, max_windows=8, streams=Places(1, 1), waiting=Places(1, 1))
    with admission.job():
        assert admission.windows_per_job == 8
        with admission.job(), admission.job():
            assert admission.windows_per_job == 2
            with ExitStack() as more:
                for _ in range(20):
                    more.enter_context(admission.job())
                assert admission.windows_per_job == 1
        assert admission.windows_per_job == 8
