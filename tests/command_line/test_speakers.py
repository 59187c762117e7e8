"""`--diarize` and `--speakers`, over real HTTP, with a simulated diarizer."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.errors import ModelUnavailable
from serve_app.settings import DiarizerSettings
from testing import media
from testing.job_service import JobServer
from testing.voices import conversation, tone
from tests.command_line.commands import run, submit

TALK = "talk.wav"


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"diarizers": (DiarizerSettings(name="speakers", source="simulated"),)}


@pytest.fixture(autouse=True)
def recordings(server: JobServer) -> None:
    """In the folder in which the commands run."""
    Path(TALK).write_bytes(media.wav((conversation([(2, 6.0), (0, 5.0)]) / 32768).astype(np.float32)))
    Path("ann.wav").write_bytes(media.wav((tone(0, 3.0) / 32768).astype(np.float32)))


def names(text: str) -> list[str]:
    return [name for name, _ in groupby(segment["speaker"] for segment in json.loads(text)["segments"])]


@pytest.mark.parametrize("way", [[], ["--jobs"]])
def test_who_speaks(server: JobServer, way: list[str]) -> None:
    named = run(server, "transcribe", *way, TALK, "--speakers", "Ann=ann.wav", "--format", "verbose_json")
    assert names(named.stdout) == ["A", "Ann"]
    assert "\nB: " in run(server, "transcribe", *way, TALK, "--diarize", "--format", "srt").stdout
    assert names(run(server, "transcribe", *way, TALK, "--format", "diarized_json").stdout) == ["A", "B"]


def test_of_jobs(server: JobServer) -> None:
    (job,) = submit(server, TALK, "--diarize", "--speakers", "Ann=ann.wav", "--wait")
    assert "<v Ann>" in run(server, "jobs", "result", job, "--format", "vtt").stdout


def test_optional(server: JobServer) -> None:
    server.fake.diarizer.unavailable = ModelUnavailable("It is away.")
    done = run(server, "transcribe", TALK, "--diarize-optional", "--format", "verbose_json")
    assert json.loads(done.stdout)["warnings"] == ["The speakers are unknown: It is away."]


@pytest.mark.parametrize("value", ["ann.wav", "=ann.wav", "Ann=", "Ann=missing.wav"])
def test_a_reference_has_a_name_and_a_file(server: JobServer, value: str) -> None:
    done = run(server, "transcribe", TALK, "--speakers", value)
    assert done.exit_code == 2
    assert "--speakers" in done.stderr


def test_a_reference_that_the_server_refuses(server: JobServer) -> None:
    Path("ann.wav").write_bytes(b"no audio")
    done = run(server, "transcribe", TALK, "--speakers", "Ann=ann.wav")
    assert done.exit_code == 1
    assert "The reference of the speaker `Ann`" in done.stderr
