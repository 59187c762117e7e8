"""Unmodified clients of other projects, with only the address and a key set. `make clients` installs and runs them."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soxr

from testing import media
from testing.digit_strings import DigitString
from testing.paths import ROOT
from testing.server import Server, serve_run

pytestmark = [pytest.mark.serve, pytest.mark.clients]

PROGRAMS = Path(__file__).parent / "programs"
INSTALLED = ROOT / "build" / "clients"
PYTHON = INSTALLED / "venv" / "bin" / "python"
RATE = 24_000
MAX_S = 120

COMMANDS: dict[str, list[object]] = {
    "curl, offering HTTP/2": [
        "curl",
        "-s",
        "--http2",
        "-F",
        "file=@{path}",
        "-F",
        "response_format=text",
        "{url}/v1/audio/transcriptions",
    ],
    "JDK": ["java", PROGRAMS / "Jdk.java", "{url}", "{path}"],
    "AI SDK": ["node", INSTALLED / "ai_sdk.mjs", "{url}", "{path}"],
    "openai-node": ["node", INSTALLED / "openai_node.mjs", "{url}", "{path}"],
    "openai-agents": [PYTHON, PROGRAMS / "openai_agents_realtime.py", "{url}", "{path}"],
    "livekit, a file": [PYTHON, PROGRAMS / "livekit_stt.py", "{url}", "{path}", "gpt-4o-mini-transcribe", "file"],
    "livekit, the VAD of the server": [PYTHON, PROGRAMS / "livekit_stt.py", "{url}", "{path}", "gpt-4o-transcribe", "live"],
    "livekit, its own VAD": [PYTHON, PROGRAMS / "livekit_stt.py", "{url}", "{path}", "gpt-realtime-whisper", "live"],
    "pipecat": [PYTHON, PROGRAMS / "pipecat_realtime.py", "{url}", "{path}"],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve_run(ROOT / "configs" / "demo.yaml", tmp_path_factory.mktemp("clients")) as server:
        server.wait_for_state("digits", "ready")
        yield server


@pytest.mark.parametrize("name", COMMANDS)
def test_it_gets_the_text(server: Server, strings: list[DigitString], tmp_path: Path, name: str) -> None:
    string, path = strings[6], tmp_path / "speech.wav"
    # Digital zeros behind the speech, as from a microphone that was muted.
    samples = np.concatenate([soxr.resample(string.samples, 16_000, RATE), np.zeros(RATE)])
    path.write_bytes(media.wav(samples, RATE))
    for program in PROGRAMS.glob("*.mjs"):
        # Node looks for packages beside the program.
        (INSTALLED / program.name).write_bytes(program.read_bytes())
    command = [str(part).format(url=server.url, path=path) for part in COMMANDS[name]]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=MAX_S, env=os.environ | {"OPENAI_API_KEY": "any"}, check=False
    )
    assert words(done.stdout) == words(string.text), done.stderr


def words(text: str) -> list[str]:
    """Live clients end sentences where the speech pauses."""
    return text.lower().replace(".", "").split()
