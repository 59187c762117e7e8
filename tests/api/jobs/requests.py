"""Requests of clients that have jobs."""

import json
from typing import Any

import httpx2

from testing.fake_service import NOISE

PATH = "/v1/jobs"
ALICE, BOB = {"Authorization": "Bearer alice-secret"}, {"Authorization": "Bearer bob-secret"}


async def post(client: httpx2.AsyncClient, data: bytes = NOISE, *, wait: float = 0, headers: Any = None, **fields: Any) -> Any:
    return await client.post(
        PATH, params={"wait": wait}, files={"file": ("call.wav", data)}, data=fields, headers=headers, timeout=60
    )


async def completed(client: httpx2.AsyncClient, data: bytes = NOISE, **options: Any) -> dict[str, Any]:
    answer = await post(client, data, wait=30, **options)
    assert answer.json()["state"] == "completed", answer.text
    return dict(answer.json())


def sent_events(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, id and data of every event."""
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if "data: " in block]
    return [(block["event"], block["id"], json.loads(block["data"])) for block in blocks]
