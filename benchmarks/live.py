"""Delay and accuracy of live transcription with several streams at once.

    python -m benchmarks.live RECORDINGS [--minutes 2] [--streams 1 4 8 16]

Starts its own server with configs/demo.yaml. RECORDINGS is the folder of the Free Spoken Digit Dataset; recordings that the model
was not trained on are used. For every number of streams, each stream sends digit strings of its own at the pace of speech. The
delays of a word are measured from its end, as the decoder places it, to its first appearance and to its final form. Word errors
are given for the live text and for the same audio sent as a file.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import websockets

from serve_app.api.websocket import PATH
from serve_app.window import SAMPLE_RATE, Samples
from testing import media
from testing.accuracy import HELD_OUT_INDEXES, held_out_strings
from testing.digit_strings import Bank, load_bank, to_int16
from testing.paths import ROOT
from testing.server import Server, serve_run

FRAME_S = 0.1
"""Audio per WebSocket frame, seconds."""

MAX_PAUSE_S = 2.0
"""Longest pause between two digit strings, seconds."""

SAME_WORD_S = 0.3
"""Words of two hypotheses that start within this time of each other are the same word, seconds."""


@dataclass(frozen=True, slots=True)
class Speech:
    """The audio of one stream, int16 [samples] at 16 kHz, and its true text."""

    samples: Samples
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one stream. Delays in seconds, one for every word."""

    text: str
    first_s: list[float]
    final_s: list[float]
    changed_finals: int


def speech(bank: Bank, minutes: float, seed: int) -> Speech:
    """Digit strings with pauses between them."""
    rng = np.random.default_rng(seed)
    parts, words, samples = list[np.ndarray](), list[str](), 0
    for string in held_out_strings(bank, round(minutes * 60), seed):
        if samples >= minutes * 60 * SAMPLE_RATE:
            break
        pause = np.zeros(round(rng.uniform(0.3, MAX_PAUSE_S) * SAMPLE_RATE), np.float32)
        parts += [string.samples, pause]
        samples += len(string.samples) + len(pause)
        words.append(string.text)
    return Speech(to_int16(np.concatenate(parts)), " ".join(words))


async def stream(server: Server, spoken: Speech) -> Outcome:
    """Send one stream at the pace of speech, and collect the delays and the final words."""
    first: list[tuple[float, float]] = []
    finals: list[tuple[str, float]] = []
    final_s, changed = list[float](), 0
    async with websockets.connect(server.url.replace("http", "ws") + PATH, max_size=None) as socket:
        await socket.send(json.dumps({"encoding": "pcm_s16le", "interim_results": True}))
        began_s = time.monotonic()

        async def speak() -> None:
            step = round(FRAME_S * SAMPLE_RATE)
            for number, start in enumerate(range(0, len(spoken.samples), step), 1):
                await asyncio.sleep(max(0.0, began_s + number * FRAME_S - time.monotonic()))
                await socket.send(spoken.samples[start : start + step].tobytes())
            await socket.send("END")

        speaking = asyncio.create_task(speak())
        done = 0
        async for data in socket:
            now_s, message = time.monotonic() - began_s, json.loads(data)
            if message["type"] == "error":
                raise RuntimeError(message["error"])
            words: list[dict[str, Any]] = message.get("words", [])
            for word in words:
                if not any(abs(start_s - word["start"]) < SAME_WORD_S for start_s, _ in first[-40:]):
                    first.append((word["start"], now_s - word["end"]))
            known = [w for w in words if message["type"] == "segment" or w.get("is_final")]
            for place, word in enumerate(known, done):
                if place == len(finals):
                    finals.append((word["word"], word["start"]))
                    final_s.append(now_s - word["end"])
                elif finals[place] != (word["word"], word["start"]):
                    changed += 1
            if message["type"] == "segment":
                done += len(known)
        await speaking
    return Outcome(" ".join(word for word, _ in finals), [delay for _, delay in first], final_s, changed)


@dataclass(frozen=True, slots=True)
class Figures:
    """Results of several streams at once. Delays in seconds, one for every word."""

    streams: int
    first_s: list[float]
    final_s: list[float]
    changed_finals: int
    live: jiwer.WordOutput
    """Errors of the live text."""
    files: jiwer.WordOutput
    """Errors of the same audio sent as files."""

    def __str__(self) -> str:
        return (
            f"{self.streams} streams: first partial {percentiles(self.first_s)}; final {percentiles(self.final_s)}; "
            f"word errors {errors(self.live)}, as files {errors(self.files)}; finals changed: {self.changed_finals}"
        )


def word_errors(true_texts: Sequence[str], texts: Sequence[str]) -> jiwer.WordOutput:
    reference, hypothesis = ([text.lower().replace(".", "") for text in each] for each in (true_texts, texts))
    return jiwer.process_words(reference, hypothesis)


def errors(words: jiwer.WordOutput) -> str:
    return f"{100 * words.wer:.2f} % ({words.insertions} inserted, {words.deletions} deleted)"


def percentiles(seconds: Sequence[float]) -> str:
    return f"p50 {np.percentile(seconds, 50):.2f} s, p95 {np.percentile(seconds, 95):.2f} s"


async def measure(server: Server, bank: Bank, minutes: float, streams: int) -> Figures:
    """Figures of `streams` streams at once, each `minutes` long."""
    spoken = [speech(bank, minutes, seed) for seed in range(streams)]
    outcomes = await asyncio.gather(*(stream(server, each) for each in spoken))
    files = [server.transcribe(media.wav(each.samples)).json()["text"] for each in spoken]
    true_texts = [each.text for each in spoken]
    return Figures(
        streams,
        [seconds for outcome in outcomes for seconds in outcome.first_s],
        [seconds for outcome in outcomes for seconds in outcome.final_s],
        sum(outcome.changed_finals for outcome in outcomes),
        word_errors(true_texts, [outcome.text for outcome in outcomes]),
        word_errors(true_texts, files),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16])
    options = parser.parse_args()
    bank = load_bank(options.recordings, HELD_OUT_INDEXES)
    with (
        tempfile.TemporaryDirectory() as folder,
        serve_run(ROOT / "configs" / "demo.yaml", Path(folder), env={"RAY_worker_niceness": "0"}) as server,
    ):
        server.wait_for_state("digits", "ready")
        for streams in options.streams:
            print(asyncio.run(measure(server, bank, options.minutes, streams)), flush=True)


if __name__ == "__main__":
    main()
