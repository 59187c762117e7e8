"""Large uploads are transcribed while they arrive, with the result of a complete upload."""

import asyncio
from typing import Any

import numpy as np
import pytest
from httpx2 import Response
from starlette.formparsers import MultiPartParser

from serve_app.api import create_api
from serve_app.api import limits as limits_module
from serve_app.errors import EngineError
from serve_app.settings import LimitSettings
from testing import media
from testing.fake_service import FakeService, assert_error
from testing.open_requests import FORM, FORM_TAIL, OpenRequest, cleaned_up, jobs, until

PATH = "/v1/audio/transcriptions"
PIECE_BYTES = 20_000
SPEECH = np.concatenate([np.random.default_rng(n).normal(0, 0.1, 8_000 * n).astype(np.float32) for n in (32, 19, 24, 31, 20)])
LONG = media.wav(SPEECH, 8_000)
"""126 s, five windows, 2 MB: twice what an upload keeps in memory."""


def field(name: str, value: str) -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def form(data: bytes, before: dict[str, str], after: dict[str, str] | None = None) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    fields = [b"".join(field(name, value) for name, value in values.items()) for values in (before, after or {})]
    return fields[0] + head + data + (b"\r\n" + fields[1] + b"--x--\r\n" if after else FORM_TAIL)


class Upload:
    """A request whose body is sent in pieces."""

    def __init__(self, app: Any, body: bytes, path: str = PATH, length: int | None = None) -> None:
        self.request = OpenRequest(app, path, FORM | {"content-length": str(length or len(body))})
        self._rest = body

    def send(self, up_to_bytes: int) -> None:
        """All but the last `up_to_bytes` bytes."""
        while len(self._rest) > up_to_bytes:
            size = min(PIECE_BYTES, len(self._rest) - up_to_bytes)
            self.request.send(self._rest[:size])
            self._rest = self._rest[size:]

    async def finish(self) -> Response:
        self.send(1)
        self.request.send(self._rest, more_body=False)
        return await self.request.response()


@pytest.fixture
def server() -> FakeService:
    return FakeService(limits=LimitSettings())


@pytest.fixture
def app(server: FakeService) -> Any:
    return create_api(server.service)


@pytest.fixture
def opened(server: FakeService, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every file whose decoding was begun."""
    files, begin = list[Any](), server.service.decoders.open

    def spy(file: Any, **options: Any) -> Any:
        files.append(file)
        return begin(file, **options)

    monkeypatch.setattr(server.service.decoders, "open", spy)
    return files


@pytest.fixture
def small_files_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MultiPartParser, "spool_max_size", 1000)


async def at_once(app: Any, body: bytes, path: str = PATH) -> Response:
    request = OpenRequest(app, path, FORM | {"content-length": str(len(body))})
    request.send(body, more_body=False)
    return await request.response()


async def test_windows_are_recognised_before_the_last_byte_arrives(app: Any, server: FakeService) -> None:
    body = form(LONG, {"response_format": "verbose_json"})
    upload = Upload(app, body)
    upload.send(500_000)
    await until(lambda: len(server.windows) >= 2)
    assert upload.request.sent == []
    answer = await upload.finish()
    windows = len(server.windows)
    assert answer.json() == (await at_once(app, body)).json()
    assert answer.json()["duration"] == pytest.approx(126)
    assert len(server.windows) == 2 * windows


async def test_channels_are_transcribed_while_they_arrive(app: Any, server: FakeService) -> None:
    stereo = media.wav(np.stack([SPEECH, SPEECH[::-1]], axis=1), 8_000)
    body = form(stereo, {"response_format": "verbose_json", "multichannel": "true"})
    upload = Upload(app, body)
    upload.send(1_000_000)
    await until(lambda: {(0, 1), (1, 1)} <= {(window.channel, window.index) for window in server.windows})
    answer = await upload.finish()
    windows = len(server.windows)
    assert answer.json() == (await at_once(app, body)).json()
    assert [channel["channel"] for channel in answer.json()["channels"]] == [0, 1]
    assert len(server.windows) == 2 * windows


async def test_channels_that_are_asked_for_after_the_file(app: Any) -> None:
    stereo = media.wav(np.stack([SPEECH, SPEECH[::-1]], axis=1), 8_000)
    before, after = {"response_format": "verbose_json"}, {"multichannel": "true"}
    upload = Upload(app, form(stereo, before, after))
    upload.send(1_000_000)
    late = (await upload.finish()).json()
    assert late == (await at_once(app, form(stereo, before | after))).json()
    assert len(late["channels"]) == 2


SAME = ["wav", "flac", "mp3", "mp3 without a header", "m4a", "mp4, header first", "opus", "webm", "mkv", "aac", "avi", "mpeg-ts"]


@pytest.mark.parametrize("share", [1.0, 0.6], ids=["whole", "cut off"])
@pytest.mark.parametrize("name", SAME)
@pytest.mark.usefixtures("small_files_are_large")
async def test_every_format_has_the_same_result(app: Any, opened: list[Any], name: str, share: float) -> None:
    data = media.wav(SPEECH[: 40 * 8_000], 8_000) if name == "wav" else media.make(name, media.chirp(40.0))
    body = form(data[: int(share * len(data))], {"response_format": "verbose_json"})
    upload = Upload(app, body)
    upload.send(len(body) // 3)
    await until(lambda: bool(opened))
    early = await upload.finish()
    assert len(opened) == 1
    complete = await at_once(app, body)
    assert (early.status_code, early.json()) == (complete.status_code, complete.json())


async def test_a_stream_begins_when_the_upload_is_complete(app: Any, server: FakeService) -> None:
    body = form(LONG, {"stream": "true"})
    upload = Upload(app, body)
    upload.send(1)
    await until(lambda: len(server.windows) >= 4)
    assert upload.request.sent == []
    assert (await upload.finish()).text == (await at_once(app, body)).text


@pytest.mark.parametrize("after", [{"response_format": "text"}, {"stream": "true"}, {"track": "3"}, {"model": "third"}])
async def test_fields_after_the_file_count(app: Any, opened: list[Any], after: dict[str, str]) -> None:
    body = form(LONG, {"response_format": "verbose_json"}, after)
    upload = Upload(app, body)
    upload.send(500_000)
    await until(lambda: bool(opened))
    answer = await upload.finish()
    complete = await at_once(app, body)
    assert (answer.status_code, answer.text) == (complete.status_code, complete.text)


@pytest.mark.parametrize("ending", [b"\r\n--x--", b"\r\n--x--\r\n\r\nepilogue"])
async def test_a_form_that_ends_unusually(app: Any, opened: list[Any], ending: bytes) -> None:
    """The size of the file is not what it was taken for."""
    body = form(LONG, {"response_format": "verbose_json"}).removesuffix(FORM_TAIL) + ending
    upload = Upload(app, body)
    upload.send(500_000)
    await until(lambda: bool(opened))
    answer = await upload.finish()
    assert len(opened) == 2
    assert answer.json() == (await at_once(app, body)).json()


@pytest.mark.parametrize("path", [PATH, "/v1/audio/translations"])
@pytest.mark.parametrize("fields", [{"model": "third"}, {"response_format": "pdf"}, {"track": "3"}, {"language": "fr"}])
async def test_errors_wait_for_the_end_of_the_upload(app: Any, path: str, fields: dict[str, str]) -> None:
    body = form(LONG, fields)
    upload = Upload(app, body, path)
    upload.send(1)
    await asyncio.sleep(0.2)
    assert upload.request.sent == []
    answer, complete = await upload.finish(), await at_once(app, body, path)
    assert (answer.status_code, answer.text) == (complete.status_code, complete.text)


async def test_a_file_before_the_fields_waits_for_them(app: Any, server: FakeService) -> None:
    upload = Upload(app, form(LONG, {}, {"response_format": "text"}))
    upload.send(200_000)
    await asyncio.sleep(0.2)
    assert jobs(server) == 0
    assert (await upload.finish()).status_code == 200


class TestPlaces:
    @pytest.fixture
    def server(self) -> FakeService:
        return FakeService(limits=LimitSettings(max_requests=1))

    async def test_without_a_free_place_it_waits_as_before(self, app: Any, server: FakeService) -> None:
        server.hold.clear()
        upload = Upload(app, form(LONG, {"response_format": "text"}))
        first = asyncio.ensure_future(at_once(app, form(media.wav(SPEECH[:8_000], 8_000), {})))
        await until(lambda: len(server.windows) == 1)
        upload.send(1)
        await until(lambda: server.service.admission.spooled_bytes > len(LONG))
        assert len(server.windows) == 1
        server.hold.set()
        assert (await first).status_code == 200
        assert (await upload.finish()).status_code == 200

    async def test_slow_uploads_keep_nobody_from_working(self, app: Any, server: FakeService) -> None:
        slow = [Upload(app, form(LONG, {"response_format": "text"})) for _ in range(3)]
        for upload in slow:
            upload.send(500_000)
        await until(lambda: len(server.windows) >= 6)
        assert (await at_once(app, form(LONG, {}))).status_code == 200
        assert [(await upload.finish()).status_code for upload in slow] == [200] * 3

    async def test_early_ones_are_limited_by_address(
        self, app: Any, server: FakeService, opened: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits_module, "MAX_EARLY_PER_ADDRESS", 1)
        uploads = [Upload(app, form(LONG, {"response_format": "text"})) for _ in range(2)]
        uploads[0].send(500_000)
        await until(lambda: len(server.windows) >= 2)
        uploads[1].send(1)
        await until(lambda: server.service.admission.spooled_bytes > 1.5 * len(LONG))
        assert len(opened) == 1
        for upload in uploads:
            assert (await upload.finish()).status_code == 200


class TestUploadsThatFail:
    """Nothing is left of what was begun, and the answer is that of an upload without it."""

    @pytest.fixture
    def server(self) -> FakeService:
        return FakeService(limits=LimitSettings(max_upload_bytes=2_100_000))

    @staticmethod
    async def begun(app: Any, server: FakeService, body: bytes, **fields: Any) -> Upload:
        upload = Upload(app, body, **fields)
        upload.send(len(body) - 1_600_000)
        await until(lambda: jobs(server) == 1)
        return upload

    @pytest.mark.parametrize("fields", [{}, {"stream": "true"}], ids=["transcript", "stream"])
    async def test_the_client_leaves(self, app: Any, server: FakeService, fields: dict[str, str]) -> None:
        async with cleaned_up(server):
            upload = await self.begun(app, server, form(LONG, {"response_format": "json"} | fields))
            await upload.request.leave()

    @pytest.mark.parametrize("fields", [{}, {"stream": "true"}], ids=["transcript", "stream"])
    async def test_the_connection_is_lost(self, app: Any, server: FakeService, fields: dict[str, str]) -> None:
        async with cleaned_up(server):
            upload = await self.begun(app, server, form(LONG, {"response_format": "json"} | fields))
            upload.request.disconnect()
            await asyncio.wait([upload.request.task])

    @pytest.mark.parametrize("steps", range(6))
    async def test_serve_cancels_the_clean_up(self, app: Any, server: FakeService, steps: int) -> None:
        server.hold.clear()
        async with cleaned_up(server):
            upload = Upload(app, form(LONG, {"response_format": "json"}))
            upload.send(1)
            await until(lambda: len(server.windows) == server.target_windows_in_flight(0))
            upload.request.disconnect()
            for _ in range(steps):
                await asyncio.sleep(0)
            await upload.request.leave()

    async def test_it_is_too_large(self, app: Any, server: FakeService) -> None:
        async with cleaned_up(server):
            body = form(LONG + bytes(200_000), {"response_format": "json"})
            upload = await self.begun(app, server, body, length=2_000_000)
            upload.send(1)
            assert_error(await upload.request.response(), 413, "upload_too_large", "file")

    @pytest.mark.parametrize("ending", [b"", b"\r\n--x", b'\r\n--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nfi'])
    async def test_the_form_is_cut_off(self, app: Any, server: FakeService, ending: bytes) -> None:
        body = form(LONG, {"response_format": "json"}).removesuffix(FORM_TAIL) + ending
        async with cleaned_up(server):
            answer = await (await self.begun(app, server, body)).finish()
        assert "boundary" in assert_error(answer, 400, "invalid_request")
        assert answer.text == (await at_once(app, body)).text

    async def test_a_second_file_follows(self, app: Any, server: FakeService) -> None:
        second = b'\r\n--x\r\nContent-Disposition: form-data; name="file"; filename="b"\r\n\r\nb'
        body = form(LONG, {"response_format": "json"}).removesuffix(FORM_TAIL) + second + FORM_TAIL
        async with cleaned_up(server):
            answer = await (await self.begun(app, server, body)).finish()
        assert answer.status_code == 400
        assert answer.text == (await at_once(app, body)).text

    async def test_a_window_fails(self, app: Any, server: FakeService) -> None:
        server.failure = EngineError("It failed.")
        async with cleaned_up(server):
            upload = Upload(app, form(LONG, {"response_format": "json"}))
            upload.send(1)
            await until(lambda: len(server.windows) >= 1)
            assert_error(await upload.finish(), 500, "engine_error")
