"""`parakeet-serve listen` over a real WebSocket, against the API on the bundled model."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from starlette.types import Receive, Scope, Send

from serve_app.api import create_api
from serve_app.command_line import main
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.errors import EngineError
from serve_app.settings import AuthSettings
from serve_app.window import SAMPLE_RATE, Samples
from testing import media
from testing.calls import compose_call
from testing.digit_strings import Bank, DigitString, to_int16
from testing.fake_service import EngineService, serving
from tests.command_line.test_transcribe import ENVIRONMENT

COMMAND = [sys.executable, "-m", "serve_app.command_line", "listen"]


@pytest.fixture
def server(engine: ParakeetEngine) -> EngineService:
    return EngineService(engine)


@pytest.fixture
def url(server: EngineService) -> Iterator[str]:
    with serving(create_api(server.service)) as url:
        yield url


@pytest.fixture
def said(strings: list[DigitString]) -> DigitString:
    return strings[2]


@pytest.fixture
def samples(said: DigitString) -> Samples:
    return to_int16(said.samples)


@pytest.fixture
def recording(samples: Samples, tmp_path: Path) -> str:
    path = tmp_path / "said.wav"
    path.write_bytes(media.wav(samples))
    return str(path)


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["listen", *arguments], env={"PARAKEET_URL": url})


def test_a_file_in_real_time(url: str, recording: str, said: DigitString, server: EngineService) -> None:
    done = run(url, recording, "--times", "--keyword", "seven")
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    time, _, text = line.partition("] ")
    assert text == said.text
    assert float(time.rpartition(":")[2]) == pytest.approx(said.words[0].start_sample / SAMPLE_RATE, abs=0.2)
    assert server.jobs[-1].keywords == ("seven",)


@pytest.mark.parametrize(
    ("form", "arguments"),
    [
        (lambda samples: samples.tobytes(), []),
        (lambda samples: media.wav(samples), []),
        (lambda samples: (samples / 32768).astype("<f4").repeat(2).tobytes(), ["--encoding", "pcm_f32le", "--channels", "2"]),
    ],
    ids=["samples", "media", "floats"],
)
def test_standard_input(
    url: str, samples: Samples, said: DigitString, form: Callable[[Samples], bytes], arguments: list[str]
) -> None:
    done = subprocess.run(
        [*COMMAND, "-", "--url", url, *arguments], input=form(samples), stdout=PIPE, env=ENVIRONMENT, timeout=60, check=True
    )
    assert done.stdout.decode() == f"{said.text}\n"


@pytest.mark.parametrize("form", ["file", "samples"])
def test_separate_channels(url: str, bank: Bank, tmp_path: Path, form: str) -> None:
    call, path = compose_call(bank, 2, 5, gap_s=(0.5, 0.6)), tmp_path / "call.wav"
    path.write_bytes(media.wav(call.samples))
    given = ([str(path)], b"") if form == "file" else (["-", "--channels", "2"], media.pcm(call.samples, "pcm_s16le"))
    arguments = [*COMMAND, *given[0], "--url", url, "--separate"]
    done = subprocess.run(arguments, input=given[1], stdout=PIPE, env=ENVIRONMENT, timeout=60, check=True)
    lines = done.stdout.decode().casefold().replace(".", "").splitlines()
    for channel in (0, 1):
        prefix = f"channel {channel}: "
        said = " ".join(line.removeprefix(prefix) for line in lines if line.startswith(prefix))
        assert said == " ".join(call.texts(channel)).casefold().replace(".", "")
    assert all(line.startswith("channel ") for line in lines)


def test_partial_words_are_shown_on_a_terminal(url: str, recording: str, said: DigitString) -> None:
    terminal, its_side = pty.openpty()
    with subprocess.Popen([*COMMAND, recording, "--url", url], env=ENVIRONMENT, stdout=its_side) as process:
        os.close(its_side)
        shown = b""
        with open(terminal, "rb", 0) as screen, contextlib.suppress(OSError):
            # Reading a terminal whose other side is closed raises an error.
            while data := screen.read(65_536):
                shown += data
    assert process.returncode == 0
    assert f"{said.text}\r\n".encode() in shown
    first = said.text.split()[0].encode()
    assert shown.count(first) > 2
    assert b"\x1b[2m" in shown


def test_ctrl_c_stops_the_audio_and_the_rest_is_transcribed(
    url: str, samples: Samples, said: DigitString, tmp_path: Path
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    path = tmp_path / "long.wav"
    path.write_bytes(media.wav(np.concatenate([samples, np.zeros(60 * SAMPLE_RATE, np.int16)])))
    with subprocess.Popen([*COMMAND, str(path), "--url", url], env=ENVIRONMENT, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().decode() == f"{said.text}\n"
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=20)
    assert (process.returncode, out, errors) == (0, b"", b"")


class Microphone:
    """Replaces the module sounddevice, as test machines have no microphone."""

    PortAudioError = type("PortAudioError", (Exception,), {})

    def __init__(self, samples: Samples, rate: int) -> None:
        self.samples, self.rate = samples, rate

    def query_devices(self, kind: str) -> dict[str, Any]:
        if not len(self.samples):
            raise self.PortAudioError("No Default Input Device Available")
        return {"default_samplerate": float(self.rate)}

    def RawInputStream(self, *, samplerate: int, callback: Any, **_form: Any) -> "Microphone":
        assert samplerate == self.rate
        self.callback = callback
        return self

    def __enter__(self) -> None:
        for start in range(0, len(self.samples), 1_600):
            self.callback(self.samples[start : start + 1_600].tobytes(), 1_600, None, None)
        os.kill(os.getpid(), signal.SIGINT)

    def __exit__(self, *_error: Any) -> None:
        pass


def test_a_microphone(url: str, samples: Samples, said: DigitString, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = np.concatenate([samples, np.zeros(2 * SAMPLE_RATE, np.int16)])
    monkeypatch.setitem(sys.modules, "sounddevice", Microphone(recorded, SAMPLE_RATE))
    done = run(url)
    assert (done.exit_code, done.stdout) == (0, f"{said.text}\n"), done.output


@pytest.mark.parametrize("module", [None, Microphone(np.zeros(0, np.int16), 1)])
def test_no_microphone(url: str, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    done = run(url)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: no microphone is available: ")


def test_failures(server: EngineService, url: str, recording: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no media")
    server.failure = EngineError("It broke.")
    failures = {
        "It broke.": [url, recording],
        "text.txt: The file is not an audio or video file": [url, str(tmp_path / "text.txt")],
        "none.wav cannot be read: No such file": [url, str(tmp_path / "none.wav")],
        "cannot be reached": ["http://127.0.0.1:1", recording],
        "does not accept live speech": [f"{url}/elsewhere", recording],
        "The model `none` does not exist": [url, recording, "--model", "none"],
    }
    for message, arguments in failures.items():
        done = run(*arguments)
        assert (done.exit_code, done.stdout) == (1, "")
        assert message in done.stderr


def test_a_server_that_is_still_starting(recording: str) -> None:
    async def starting(_scope: Scope, _receive: Receive, send: Send) -> None:
        """Answers a WebSocket as Serve's proxy does before it knows the application."""
        await send({"type": "http.response.start", "status": 404, "headers": []})

    with serving(starting) as url:
        done = run(url, recording)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {url} does not accept live speech, or is still starting: ")


def test_keys(engine: ParakeetEngine, recording: str) -> None:
    with serving(create_api(EngineService(engine, auth=AuthSettings(keys=("one",))).service)) as url:
        assert run(url, recording, "--api-key", "one").exit_code == 0
        assert "A valid API key is needed" in run(url, recording).stderr
