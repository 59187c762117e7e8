"""The clients of benchmarks/live.py: streams at the pace of speech, all in one process, which is not the one that measures."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import websockets

from serve_app.api.websocket import PATH
from serve_app.window import SAMPLE_RATE, Samples

FRAME_S = 0.1
"""Audio per WebSocket frame, seconds."""

STAGGER_S = 1.0
"""The streams start at even distances within this time, seconds: speakers do not keep step with one another."""

SAME_WORD_S = 0.3
"""Words of two hypotheses that start within this time of each other are the same word, seconds."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one stream. Delays in seconds, one for every word."""

    words: list[tuple[str, float]]
    """The final words and their starts, seconds."""
    first_s: list[float]
    final_s: list[float]
    changed_finals: int

    @property
    def text(self) -> str:
        return " ".join(word for word, _ in self.words)


def run_streams(url: str, speeches: Sequence[Samples]) -> tuple[list[Outcome], float]:
    """Send every speech, int16 [samples], in a stream of its own, at the same time. The outcomes, and this process's CPU seconds.

    Raises RuntimeError if a stream fails.
    """
    began_s = time.process_time()
    return asyncio.run(_all(url, speeches)), time.process_time() - began_s


async def _all(url: str, speeches: Sequence[Samples]) -> list[Outcome]:
    async def later(number: int, samples: Samples) -> Outcome:
        await asyncio.sleep(STAGGER_S * number / len(speeches))
        return await _stream(url, samples)

    return await asyncio.gather(*(later(number, samples) for number, samples in enumerate(speeches)))


async def _stream(url: str, samples: Samples) -> Outcome:
    """Send one stream, and collect the delays and the final words."""
    first, words = list[float](), list[tuple[str, float]]()
    first_s, final_s, changed = list[float](), list[float](), 0
    # Compression would cost the client more than everything else.
    async with websockets.connect(url.replace("http", "ws") + PATH, max_size=None, compression=None) as socket:
        await socket.send(json.dumps({"encoding": "pcm_s16le", "interim_results": True}))
        began_s = time.monotonic()

        async def speak() -> None:
            step = round(FRAME_S * SAMPLE_RATE)
            for number, start in enumerate(range(0, len(samples), step), 1):
                # A frame can be sent once all of it has been said.
                await asyncio.sleep(max(0.0, began_s + number * FRAME_S - time.monotonic()))
                await socket.send(samples[start : start + step].tobytes())
            await socket.send("END")

        speaking = asyncio.create_task(speak())
        done = 0
        async for data in socket:
            now_s, message = time.monotonic() - began_s, json.loads(data)
            if message["type"] == "error":
                raise RuntimeError(message["error"])
            received: list[dict[str, Any]] = message.get("words", [])
            for word in received:
                if not any(abs(start_s - word["start"]) < SAME_WORD_S for start_s in first[-40:]):
                    first.append(word["start"])
                    first_s.append(now_s - word["end"])
            known = [w for w in received if message["type"] == "segment" or w.get("is_final")]
            for place, word in enumerate(known, done):
                if place == len(words):
                    words.append((word["word"], word["start"]))
                    final_s.append(now_s - word["end"])
                elif words[place] != (word["word"], word["start"]):
                    changed += 1
            if message["type"] == "segment":
                done += len(known)
        await speaking
    return Outcome(words, first_s, final_s, changed)
