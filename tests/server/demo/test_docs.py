"""The commands and programs on the pages do what the pages show, on the running server.

A block in `console` or `bash` is a program for bash, one in `python` for Python. A page has a folder of its own, in which its
blocks run one after the other, with the recordings that the pages name: all of them are tests/data/two-four-seven.flac. Blocks
with the program FFmpeg, which the server does not need, are left out where there is none.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from serve_app.audio.decoding import AudioFile
from testing import media
from testing.pages import Block, blocks, is_shown
from testing.paths import DATA, ROOT
from testing.server import Server

pytestmark = [pytest.mark.serve]

SPEECH = DATA / "two-four-seven.flac"
COPIES = ["talk.mp3", "meeting.mp3", "talks/one.mp3", "talks/two.mp3"]
"""FFmpeg goes by the content, not by the name."""

ADDRESS = "127.0.0.1:8000"
LIMIT_S = 120
END = "\x01"
"""Between the outputs of two commands."""

RUN = [block for block in blocks("console", "bash", "python") if not block.not_run]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "talks").mkdir()
    for name in COPIES:
        shutil.copy(SPEECH, tmp_path / name)
    with SPEECH.open("rb") as file:
        samples = np.concatenate(list(AudioFile(file).blocks()))
    (tmp_path / "speech.pcm").write_bytes(samples.tobytes())
    (tmp_path / "speech.wav").write_bytes(media.wav(samples))
    (tmp_path / "video.mp4").write_bytes(media.make("mp4", (samples / 2**15).astype(np.float32)))
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def commands(block: Block) -> list[tuple[str, str]]:
    """Each command of a `console` block, and what the page shows of its output."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    return [(command, shown) for command, _, shown in (part.partition("\n") for part in parts)]


def run(program: list[str], folder: Path, server: Server) -> str:
    """Standard output of a program, which must succeed."""
    environment = {**os.environ, "PARAKEET_URL": server.url, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    program = [part.replace(ADDRESS, server.url.partition("://")[2]) for part in program]
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("page", sorted({block.page for block in RUN}))
def test_what_a_page_shows_is_what_happens(page: str, folder: Path, server: Server) -> None:
    for block in (block for block in RUN if block.page == page):
        if "ffmpeg -" in block.text and not shutil.which("ffmpeg"):
            continue
        if block.language == "python":
            assert "four" in run([sys.executable, "-c", block.text], folder, server), str(block)
        elif block.language == "bash":
            run(["bash", "-euo", "pipefail", "-c", block.text], folder, server)
        else:
            script = "".join(f"{command}\nprintf '{END}'\n" for command, _ in commands(block))
            outputs = run(["bash", "-euo", "pipefail", "-c", script], folder, server).split(END)
            for (command, shown), output in zip(commands(block), outputs, strict=False):
                assert is_shown(shown, output), f"{block}: {command} printed\n{output}"


def test_the_log_has_neither_text_nor_names_of_files(server: Server) -> None:
    """docs/security.md says so."""
    files, headers = {"file": ("of-my-client.flac", SPEECH.read_bytes())}, {"x-request-id": "a-private-file"}
    answers = [server.client.post("/v1/audio/transcriptions", files=files, headers=headers)]
    answers.append(
        server.client.post("/v1/audio/transcriptions", files={"file": ("of-my-client.flac", b"no media")}, headers=headers)
    )
    assert [answer.status_code for answer in answers] == [200, 400]
    assert answers[0].json()["text"] == "Two four seven."
    until = time.monotonic() + LIMIT_S
    while server.log.count("a-private-file") < 2:
        assert time.monotonic() < until, "Ray passes log lines on with a delay, but not with these"
        time.sleep(0.1)
    assert "of-my-client" not in server.log
    assert "four seven" not in server.log.lower()
