"""`parakeet-serve transcribe` over real HTTP: against the API, and against a fake server with failures on demand."""

import asyncio
import errno
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner, Result
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from serve_app.api import create_api
from serve_app.command_line import client, main
from serve_app.settings import AuthSettings
from testing.fake_service import NOISE, FakeService, serving
from testing.paths import ROOT

EXTENSIONS = {"text": "txt", "verbose_json": "json"} | {name: name for name in ("json", "srt", "vtt", "csv", "tsv")}
LARGE_BYTES = 300_000_000
COMMAND = [sys.executable, "-m", "serve_app.command_line", "transcribe", "--url"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "99", "TMPDIR": "tmp"}


def event(**fields: Any) -> str:
    return f"data: {json.dumps(fields)}\n\n"


class FakeServer:
    """Behaves as the name of the uploaded file says; under /large it counts the bytes of the upload."""

    url = ""

    def __init__(self) -> None:
        self.gate, self.asked, self.app = threading.Event(), Counter[str](), Starlette()
        self.app.add_route("/v1/audio/transcriptions", self.answer, ["POST"])
        self.app.add_route("/large/v1/audio/transcriptions", self.count, ["POST"])

    async def answer(self, request: Request) -> Response:
        async with request.form() as form:
            file: Any = form["file"]
            self.form = {key: [str(value) for value in form.getlist(key)] for key in form if key != "file"}
        name, self.received_bytes = Path(file.filename).stem, file.size
        self.asked[name] += 1
        if "busy" in (name, *self.form.get("model", [])) and self.asked[name] <= 2:
            wait = "0" if self.asked[name] == 1 else "a date"
            return JSONResponse({"error": {"message": "The server\nis full."}}, 429, {"Retry-After": wait})
        if name == "starts" and self.asked[name] == 1:
            return Response("Path '/v1/x' not found. Ping http://.../-/routes for available routes.", 404)
        if name == "down":
            return Response("<h1>Down</h1>", 503)
        return StreamingResponse(self.events(name), media_type="text/plain" if name == "other" else "text/event-stream")

    async def events(self, name: str) -> AsyncIterator[str]:
        yield event(type="transcript.progress", audio_s=120.0, total_s=3600.0) + ": ping\n\n"
        match name:
            case "ends":
                return
            case "breaks":
                raise ConnectionResetError
            case "junk":
                yield event()
            case "fails":
                yield 'event: error\ndata: {"error": {"message": "It failed on the way."}}\n\n'
            case "waits":
                await asyncio.to_thread(self.gate.wait)
        yield event(type="transcript.text.delta", delta=name)
        yield event(type="transcript.text.done", text=name, content=name)
        if name == "opens":
            self.gate.set()

    async def count(self, request: Request) -> Response:
        self.received_bytes = sum([len(part) async for part in request.stream()])
        return StreamingResponse(self.events("large"), media_type="text/event-stream")


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    with serving(create_api(FakeService().service)) as url:
        yield url


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    fake = FakeServer()
    with serving(fake.app) as fake.url:
        yield fake
        fake.gate.set()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(url: str, *arguments: str, input: bytes | None = None, **env: str) -> Result:
    return CliRunner().invoke(main, ["transcribe", *arguments], input=input, env={"PARAKEET_URL": url, **env})


def files(*names: str, data: bytes = NOISE) -> list[str]:
    for path in map(Path, names):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return [*names]


def written(folder: str = "out") -> dict[str, str]:
    return {path.name: path.read_bytes().decode() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("response_format", EXTENSIONS)
def test_every_format_is_the_same_as_without_streaming(api: str, response_format: str) -> None:
    plain = httpx2.post(f"{api}/v1/audio/transcriptions", files={"file": NOISE}, data={"response_format": response_format})
    arguments = [*files("a.wav"), "--format", response_format]
    shown, kept = run(api, *arguments), run(f"{api}/v1/", *arguments, "--output-dir", "deep/out")
    name = f"a.{EXTENSIONS[response_format]}"
    assert written("deep/out") == {name: shown.stdout_bytes.decode()}
    as_text = json.dumps(plain.json(), ensure_ascii=False, indent=2) + "\n" if "json" in response_format else plain.text
    assert shown.stdout_bytes.decode() == as_text
    assert (shown.stderr, kept.stderr) == ("a.wav: done\n", f"a.wav: deep/out/{name}\n")
    assert (shown.exit_code, kept.exit_code, kept.stdout) == (0, 0, "")


def test_options_are_sent_as_form_fields(api: str, fake: FakeServer) -> None:
    options = ["--model", "m", "--language", "de", "--track", "0", "--keyword", "Zürich", "--keyword", "Ray Serve"]
    assert run("http://ignored", *files("a.wav"), *options, "--url", fake.url).exit_code == 0
    streamed = {"stream": ["true"], "include[]": ["progress"], "response_format": ["text"]}
    assert fake.form == {"model": ["m"], "language": ["de"], "track": ["0"], "keywords[]": ["Zürich", "Ray Serve"], **streamed}
    assert json.loads(run(api, "a.wav", "--format", "verbose_json", "--words").stdout)["words"]


def test_standard_output_is_in_the_order_of_the_files(fake: FakeServer) -> None:
    done = run(fake.url, *files("waits.wav", "b.wav", "opens.wav"), "--parallel", "2")
    assert (done.exit_code, done.stdout) == (0, "waits\nb\nopens\n")


def test_finished_files_are_skipped_without_overwrite(fake: FakeServer) -> None:
    Path("out").mkdir()
    Path("out/a.txt").write_text("before")
    again = run(fake.url, *files("a.wav", "b.c.wav"), "--output-dir", "out")
    assert (again.exit_code, again.stdout, fake.asked) == (0, "", {"b.c": 1})
    assert written() == {"a.txt": "before", "b.c.txt": "b.c\n"}
    assert again.stderr == "a.wav: skipped, out/a.txt is there\nb.c.wav: out/b.c.txt\n"
    assert run(fake.url, "a.wav", "--output-dir", "out", "--overwrite").stderr == "a.wav: out/a.txt\n"
    assert written()["a.txt"] == "a\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x/a.wav", "b.wav", "a.mp3", "--output-dir", "out"], "x/a.wav and a.mp3 would both be written to out/a.txt"),
        (["b.wav", "no/*.mp3"], "no/*.mp3"),
        (["x"], "x/*"),
        (["b.wav", "--words"], "verbose_json"),
        (["b.wav", "--output-dir", "a.mp3/out"], "a.mp3/out"),
        (["b.wav", "--url", "localhost:8000"], "http://"),
        (["b.wav", "--url", "http://h:x"], "Invalid port"),
    ],
)
def test_a_wrong_command_line_is_rejected_before_anything_is_sent(fake: FakeServer, arguments: list[str], message: str) -> None:
    files("x/a.wav", "a.mp3", "b.wav")
    wrong = run(fake.url, *arguments)
    assert (wrong.exit_code, wrong.stdout, fake.asked) == (2, "", {})
    assert message in wrong.stderr
    assert not Path("out").exists()


def test_patterns_name_each_file_once(fake: FakeServer) -> None:
    files("talks/b.mp3", "talks/deep/c.mp3", "talks/d.txt", "talk [1].mp3", os.fsdecode(b"\xff.mp3"))
    found = run(fake.url, "talks/b.mp3", "talks/**/*.mp3", "talk [1].mp3", "*.mp3")
    assert found.stdout == "b\nc\ntalk [1]\n\N{REPLACEMENT CHARACTER}\n"


def test_standard_input(api: str) -> None:
    assert run(api, "-", "--output-dir", "out", input=NOISE).exit_code == 0
    assert written() == {"stdin.txt": run(api, *files("a.wav")).stdout}
    assert run(api, "-", "--output-dir", "out", input=b"no media").stderr == "stdin: skipped, out/stdin.txt is there\n"


def test_a_failure_is_reported_and_does_not_stop_other_files(fake: FakeServer) -> None:
    names = ["ends", "breaks", "fails", "down", "junk", "other", "a"]
    done = run(fake.url, *files(*(f"{name}.wav" for name in names)), "--output-dir", "out", "--parallel", "3")
    assert (done.exit_code, done.stdout, written()) == (1, "", {"a.txt": "a\n"})
    lines = dict(line.split(": ", 1) for line in done.stderr.splitlines())
    assert lines["a.wav"] == "out/a.txt"
    assert lines["ends.wav"] == "failed: the response ended before the transcript"
    assert lines["breaks.wav"].startswith("failed: the request failed: ")
    assert lines["fails.wav"] == "failed: It failed on the way."
    assert lines["down.wav"] == "failed: HTTP 503 Service Unavailable"
    assert lines["junk.wav"].startswith("failed: the response is not valid: ")
    assert "text/plain" in lines["other.wav"]
    assert set(fake.asked.values()) == {1}


@pytest.mark.parametrize(("max_attempts", "end"), [(3, "done"), (2, "failed: The server is full. (asked 2 times)")])
def test_a_request_is_retried_while_the_server_is_busy(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, max_attempts: int, end: str
) -> None:
    monkeypatch.setattr(client, "UNKNOWN_WAIT_S", 0)
    monkeypatch.setattr(client, "MAX_ATTEMPTS", max_attempts)
    done = run(fake.url, *files("busy.wav"))
    assert done.stderr == "busy.wav: again in 0 s: The server is full.\n" * (max_attempts - 1) + f"busy.wav: {end}\n"
    assert (done.exit_code, done.stdout) == ((0, "busy\n") if end == "done" else (1, ""))
    again = run(fake.url, "-", "--model", "busy", input=NOISE)
    assert (again.exit_code, fake.received_bytes) == (done.exit_code, len(NOISE))


def test_a_server_that_is_still_starting_is_asked_again(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "UNKNOWN_WAIT_S", 0)
    done = run(fake.url, *files("starts.wav"))
    assert done.stderr == "starts.wav: again in 0 s: the server is still starting\nstarts.wav: done\n"


def test_keys() -> None:
    with serving(create_api(FakeService(auth=AuthSettings(keys=("first", "second"))).service)) as url:
        assert run(url, *files("a.wav"), "--api-key", "second").exit_code == 0
        assert run(url, "a.wav", API_KEY="first,second").exit_code == 0
        for key in ("wrong-é", ""):
            assert "failed: A valid API key is needed" in run(url, "a.wav", "--api-key", key).stderr


def test_an_unreachable_server() -> None:
    gone = run("http://127.0.0.1:1", *files("a.wav"))
    assert (gone.exit_code, gone.stderr.partition(" reached: ")[0]) == (1, "a.wav: failed: http://127.0.0.1:1 cannot be")


@pytest.mark.parametrize(("fault", "code"), [(OSError(errno.ENOSPC, "No space"), 1), (KeyboardInterrupt(), 130)])
def test_an_interrupted_write_leaves_no_file(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, fault: BaseException, code: int
) -> None:
    def fail(_descriptor: int) -> None:
        raise fault

    monkeypatch.setattr(os, "fsync", fail)
    done = run(fake.url, *files("a.wav"), "--output-dir", "out")
    assert (done.exit_code, written()) == (code, {})
    assert done.stderr == ("a.wav: failed: out/a.txt cannot be written: No space\n" if code == 1 else "")


def test_the_file_is_not_read_into_memory(api: str, fake: FakeServer) -> None:
    files("large.wav", data=b"")
    os.truncate("large.wav", LARGE_BYTES)
    tracemalloc.start()
    sent, refused = run(f"{fake.url}/large", "large.wav"), run(api, "large.wav")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (sent.stdout, fake.received_bytes > LARGE_BYTES) == ("large\n", True)
    assert refused.stderr == "large.wav: failed: The upload is larger than the 1 MB that this server accepts.\n"
    assert peak_bytes < LARGE_BYTES / 10


def test_progress_rows_go_to_the_terminal_and_results_to_standard_output(fake: FakeServer) -> None:
    terminal, its_side = pty.openpty()
    command = [*COMMAND, fake.url, *files("waits.wav")]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=PIPE, stderr=its_side) as process, open(terminal, "rb", 0) as screen:
        os.close(its_side)
        shown = b""
        while b"waits.wav: done" not in shown:
            shown += screen.read(65_536)
            if b"transcribed 0:02:00 of 1:00:00" in shown:
                fake.gate.set()
        assert process.communicate()[0] == b"waits\n"
    assert process.returncode == 0


def test_ctrl_c_leaves_no_incomplete_file(fake: FakeServer) -> None:
    # A child process inherits an ignored SIGINT: set a handler, which it resets to the default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Path("tmp").mkdir()
    command = [*COMMAND, fake.url, *files("a.wav", "waits.wav"), "--output-dir", "out", "-"]
    with Path("a.wav").open("rb") as audio, subprocess.Popen(command, env=ENVIRONMENT, stdin=audio, stderr=PIPE) as process:
        assert process.stderr is not None
        assert [process.stderr.readline() for _ in "12"] == [b"a.wav: out/a.txt\n", b"stdin: out/stdin.txt\n"]
        process.send_signal(signal.SIGINT)
        assert (process.wait(), process.stderr.read()) == (130, b"")
    assert written() == {"a.txt": "a\n", "stdin.txt": "stdin\n"}
    assert not list(Path("tmp").iterdir())


def test_the_client_does_not_import_the_server() -> None:
    code = "import sys, serve_app.command_line as _; print(*sys.modules)"
    names = subprocess.check_output([sys.executable, "-c", code], env=ENVIRONMENT, text=True).split()
    assert not {"ray", "torch", "nemo", "numpy", "fastapi", "starlette", "pydantic", "av"}.intersection(names)
