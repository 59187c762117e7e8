"""Clients that send files: a good one, and what misbehaves. Attempts tell what they got, if that is not what they deserve."""

import asyncio
import json
import random
from collections.abc import Mapping

from benchmarks.load import transcription
from testing.fuzz_media import SPOKEN
from testing.soak.target import (
    DEAF_S,
    MAX_UPLOAD_BYTES,
    PATH,
    SIMULATED,
    Attempt,
    Target,
    answer_to,
    connect,
    connect_deaf,
    pieces,
    refused,
    told,
)

SLOW_S = 12.0
"""Time that a slow upload takes, seconds."""


async def good_file(target: Target, rng: random.Random) -> str:
    answer = await target.http.post(PATH, files={"file": ("audio", rng.choice(target.intact))})
    return "" if answer.status_code == 200 and answer.json()["text"] == SPOKEN else told(answer)


async def wrong_request(target: Target, rng: random.Random) -> str:
    case = rng.choice(target.cases)
    if case.body is not None:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        answer = await target.http.post(PATH, content=case.body, headers=headers)
    else:
        files = {"file": ("audio", case.file)} if case.file is not None else None
        answer = await target.http.post(PATH, files=files, data=dict(case.fields or {}))
    is_right = answer.status_code == case.status and answer.json()["error"]["code"] == case.code
    return "" if is_right else f"{told(answer)}, not {case.status} {case.code}"


async def slow_upload(target: Target, rng: random.Random) -> str:
    """All of the file comes, a piece now and then."""
    request = transcription(rng.choice(target.intact), SPOKEN).data
    parts = pieces(request, 10)
    reader, writer = await connect(target)
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(SLOW_S / len(parts))
        status, body = await answer_to(reader)
        return "" if status == 200 and json.loads(body)["text"] == SPOKEN else f"{status} {body[:200]!r}"
    finally:
        writer.close()


async def stalled_upload(target: Target, rng: random.Random) -> str:
    """The rest of the file never comes."""
    request = transcription(rng.choice(target.intact), None).data
    return await refused(target, request[: len(request) // 2], 408, "upload_too_slow")


async def oversized_upload(target: Target, rng: random.Random) -> str:
    """It says how large it is."""
    request = transcription(bytes(MAX_UPLOAD_BYTES + 1), None).data
    return await refused(target, request[:100_000], 413, "upload_too_large")


async def endless_upload(target: Target, rng: random.Random) -> str:
    """It does not say how large it is."""
    head, _, body = transcription(bytes(2 * MAX_UPLOAD_BYTES), None).data.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    start = b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b""])
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces(body, len(body) // 65_536))
    return await refused(target, start + chunks, 413, "upload_too_large")


async def dies_in_upload(target: Target, rng: random.Random) -> str:
    request = transcription(target.long, None).data
    _, writer = await connect(target)
    writer.write(request[: rng.randrange(200, len(request))])
    await asyncio.sleep(rng.uniform(0.0, 1.0))
    writer.transport.abort()
    return ""


async def dies_in_answer(target: Target, rng: random.Random) -> str:
    fields = {"model": SIMULATED, "stream": "true"}
    async with target.http.stream("POST", PATH, files={"file": ("audio", target.long)}, data=fields) as response:
        if response.status_code != 200:
            await response.aread()
            return told(response)
        async for line in response.aiter_lines():
            if line.startswith("data: ") and rng.random() < 0.3:
                return ""
    return ""


async def deaf_to_events(target: Target, rng: random.Random) -> str:
    """It does not read the answer, and leaves after a while."""
    fields = {"model": SIMULATED, "stream": "true", "response_format": "verbose_json", "timestamp_granularities[]": "word"}
    request = target.http.build_request("POST", PATH, files={"file": ("audio", target.long)}, data=fields)
    head = f"POST {PATH} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in request.headers.items()) + "\r\n"
    writer = await connect_deaf(target)
    writer.write(head.encode() + await request.aread())
    await asyncio.sleep(DEAF_S)
    writer.transport.abort()
    return ""


FILES: Mapping[str, Attempt] = {
    "a wrong file, field or form": wrong_request,
    "a slow upload": slow_upload,
    "an upload that stalls": stalled_upload,
    "an oversized upload": oversized_upload,
    "the same without a length": endless_upload,
    "leaves in mid-upload": dies_in_upload,
    "leaves in mid-answer": dies_in_answer,
    "does not read its answer": deaf_to_events,
}
"""All but the good ones, by name."""
