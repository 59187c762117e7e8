"""The worst that a client can send, through the real application: what it costs the event loop, and what it leaves behind.

docs/security.md lists the bounds. Those of WebSockets are tested in tests/api/sockets/.
"""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr

from serve_app.api import create_api, exports
from serve_app.api.limits import MAX_BODY_BYTES
from serve_app.settings import AuthSettings, IngressSettings, LimitSettings
from testing.fake_service import FakeService
from testing.open_requests import FORM, FORM_HEAD, FORM_TAIL, LoopTime, OpenRequest, garbage_of_its_own

MAX_CALLBACK_S = 0.25
"""CPU time of a callback on the event loop, seconds. While it lasts, no other client is answered."""

TRANSCRIPTIONS = "/v1/audio/transcriptions"
CHUNK_BYTES = 65_536


def padded(body: bytes) -> bytes:
    """JSON of the maximum size."""
    return body + b" " * (MAX_BODY_BYTES - len(body))


def export_of(segments: str, **fields: Any) -> bytes:
    """An export whose `segments` are that JSON."""
    head = json.dumps({"response_format": "json", "duration": 1, **fields})[:-1]
    return padded(f'{head}, "segments": [{segments}]}}'.encode())


SEGMENT = '{"start":0,"end":0,"text":""}'
WORD = '{"word":"a","start":0,"end":0,"probability":1}'


def segment_with(text: str, words: int) -> str:
    return f'{{"start":0,"end":0,"text":"{text}","words":[{",".join([WORD] * words)}]}}'


EXPORTS: dict[str, tuple[Callable[[], bytes], int]] = {
    "as many segments as fit": (lambda: export_of(",".join([SEGMENT] * (MAX_BODY_BYTES // 31))), 400),
    "the most segments": (lambda: export_of(",".join([SEGMENT] * exports.MAX_SEGMENTS)), 200),
    "as many words in a segment as fit": (lambda: export_of(segment_with("a", 170_000)), 400),
    "the most words": (lambda: export_of(",".join([segment_with("a", exports.MAX_SEGMENT_WORDS)] * 10)), 200),
    "more words than that": (lambda: export_of(",".join([segment_with("a", exports.MAX_SEGMENT_WORDS)] * 11)), 400),
    "an error in every segment": (lambda: export_of(",".join(['{"start":-1}'] * exports.MAX_SEGMENTS)), 400),
    "a single word": (lambda: export_of(f'{{"start":0,"end":0,"text":"{"a" * 8_000_000}"}}'), 200),
    "as many tokens as fit": (lambda: export_of(f'{{"start":0,"end":0,"text":"","tokens":[{"1," * 4_000_000}1]}}'), 200),
    "the deepest nesting": (lambda: padded(b"[" * 4_000_000), 400),
    "the longest number": (lambda: padded(b'{"duration":' + b"9" * 8_000_000 + b"}"), 400),
}
"""Bodies, and the status of their responses."""

FORMS: dict[str, Callable[[], bytes]] = {
    "200 fields of 64 kB": lambda: (
        (b'--x\r\nContent-Disposition: form-data; name="keywords[]"\r\n\r\n' + b"a," * 32_000 + b"\r\n") * 200
    ),
    "as many fields as fit": lambda: b'--x\r\nContent-Disposition: form-data; name="include[]"\r\n\r\nx\r\n' * 100_000,
    "a header of a part without an end": lambda: b"--x\r\nContent-Disposition: form-data; name=" + b"a" * 8_000_000,
    "empty lines": lambda: FORM_HEAD + b"\r\n" * 2_000_000,
    "almost boundaries": lambda: FORM_HEAD + b"\r\n--" * 2_000_000,
}
"""Bodies without their end."""


@pytest.fixture
def app() -> Any:
    return create_api(FakeService(limits=LimitSettings()).service)


async def cost(app: Any, path: str, headers: dict[str, str], body: bytes) -> tuple[int, float]:
    """The status of a request, and the CPU time of the longest callback in seconds. Asserts that nothing of it is left."""
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    loop_time = LoopTime()
    with garbage_of_its_own(), loop_time.measured():
        request = OpenRequest(app, path, headers)
        for at in range(0, len(body), CHUNK_BYTES):
            request.send(body[at : at + CHUNK_BYTES], more_body=at + CHUNK_BYTES < len(body))
        response = await request.response()
    assert asyncio.all_tasks() == tasks
    pools = ("asyncio_", "AnyIO worker")
    assert [thread for thread in set(threading.enumerate()) - threads if not thread.name.startswith(pools)] == []
    return response.status_code, loop_time.longest_s


@pytest.mark.parametrize("name", EXPORTS)
async def test_an_export(app: Any, name: str) -> None:
    make_body, expected = EXPORTS[name]
    body = make_body()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    status, longest_s = await cost(app, exports.PATH, headers, body)
    assert status == expected
    assert longest_s < MAX_CALLBACK_S


@pytest.mark.parametrize("name", FORMS)
async def test_a_form(app: Any, name: str) -> None:
    status, longest_s = await cost(app, TRANSCRIPTIONS, FORM, FORMS[name]() + FORM_TAIL)
    assert status == 400
    assert longest_s < MAX_CALLBACK_S


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer " + "x" * 60_000},
        {"x-forwarded-for": "10.0.0.1," * 7_000},
        {"content-length": "9" * 60_000},
        {"content-type": "multipart/form-data; " + "a=b;" * 15_000},
    ],
    ids=lambda headers: next(iter(headers)),
)
async def test_the_longest_headers(headers: dict[str, str]) -> None:
    """HTTP servers accept 64 kB."""
    ingress = IngressSettings.model_validate({"trusted_proxies": ["10.0.0.0/8", "192.0.2.0/24"]})
    auth = AuthSettings(keys=tuple(SecretStr(f"key-{n}") for n in range(1000)))
    app = create_api(FakeService(ingress=ingress, auth=auth).service)
    status, longest_s = await cost(
        app, TRANSCRIPTIONS, FORM | {"authorization": "Bearer key-999"} | headers, FORM_HEAD + FORM_TAIL
    )
    assert 400 <= status < 500
    assert longest_s < MAX_CALLBACK_S
