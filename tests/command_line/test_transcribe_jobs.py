"""`parakeet-serve transcribe --jobs` over real HTTP, against the API with its real jobs."""

import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import httpx2
import numpy as np
import pytest

from testing import media
from testing.fake_service import LONG
from testing.job_service import JobServer
from tests.command_line.commands import Breaking, listed, run, until
from tests.command_line.test_transcribe import ENVIRONMENT, files, written

COMMAND = [sys.executable, "-m", "serve_app.command_line", "transcribe", "--jobs"]
OUT = ["--output-dir", "out"]


def test_writes_what_transcribe_writes(server: JobServer) -> None:
    files("talks/b.mp3", "talks/.hidden", "talks/deep/c.wav", "talks/notes.txt", data=b"no media")
    files("talks/b.mp3", "talks/a.wav", data=LONG)
    for options in (["--format", "srt"], ["--format", "verbose_json", "--words", "--language", "en", "--keyword", "one"]):
        plain = run(server, "transcribe", "talks/*.*", *options, "--output-dir", f"plain{len(options)}")
        by_jobs = run(server, "transcribe", "--jobs", "talks", *options, "--output-dir", f"jobs{len(options)}")
        assert (plain.exit_code, by_jobs.exit_code, by_jobs.stdout) == (1, 1, "")
        assert len(written(f"jobs{len(options)}")) == 2
        assert written(f"jobs{len(options)}") == written(f"plain{len(options)}")
        assert set(by_jobs.stderr.replace("jobs", "plain").splitlines()) == set(plain.stderr.splitlines())
    shown = run(server, "transcribe", "--jobs", "talks/b.mp3", "-", "talks/a.wav", "--parallel", "3", input=LONG)
    assert shown.stdout == run(server, "transcribe", "talks/b.mp3", "-", "talks/a.wav", input=LONG).stdout


def test_the_same_command_goes_on_after_ctrl_c(server: JobServer) -> None:
    # A child process inherits an ignored SIGINT: set a handler, which it resets to the default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run(server, "transcribe", "--jobs", *files("a.wav"), *OUT)
    server.fake.hold.clear()
    command = [*COMMAND, *files("b.wav", "c.wav", data=LONG), "a.wav", *OUT, "--url", server.url]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=PIPE, text=True) as process:
        until(lambda: len(listed(server)) == 3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.splitlines() == [
        "a.wav: skipped, out/a.txt is there",
        "Interrupted. The jobs go on on the server; the same command fetches their transcripts and sends what is missing.",
    ]
    until(lambda: {job["state"] for job in listed(server)} == {"running", "completed"})
    jobs = {job["id"] for job in listed(server)}
    server.resume()
    again = run(server, "transcribe", "--jobs", "b.wav", "c.wav", *files("d.wav"), "a.wav", *OUT)
    assert again.exit_code == 0, again.stderr
    assert sorted(written()) == ["a.txt", "b.txt", "c.txt", "d.txt"]
    assert jobs < {job["id"] for job in listed(server)}
    assert len(listed(server)) == 4


uploads = Breaking("POST", "/jobs", 1000)


@pytest.mark.parametrize("settings", [{"around": uploads}])
def test_transcripts_of_jobs_that_are_done_are_fetched_without_an_upload(server: JobServer) -> None:
    run(server, "transcribe", "--jobs", *files("a.wav"), *OUT)
    again = run(server, "transcribe", "--jobs", "a.wav", "--format", "vtt", *OUT)
    assert (again.exit_code, again.stderr) == (0, "a.wav: out/a.vtt\n")
    Path("out/a.txt").write_text("before")
    assert run(server, "transcribe", "--jobs", "a.wav", "--overwrite", *OUT).exit_code == 0
    assert written()["a.txt"] != "before"
    assert (len(listed(server)), len(uploads.headers)) == (1, 1)
    run(server, "transcribe", "--jobs", "a.wav", "--overwrite", "--model", "second", *OUT)
    run(server, "transcribe", "--jobs", *files("a.wav", data=LONG), "--overwrite", *OUT)
    assert len(listed(server)) == 3


@pytest.mark.usefixtures("soon")
def test_a_file_whose_job_failed_or_was_cancelled_is_sent_again(server: JobServer) -> None:
    files("a.wav")
    server.fake.failure = ValueError()
    for count in (1, 2):
        failed = run(server, "transcribe", "--jobs", "a.wav", *OUT)
        assert (failed.exit_code, len(listed(server)), written()) == (1, count, {})
        assert failed.stderr.startswith("a.wav: failed: ")
    server.fake.failure = None
    assert run(server, "transcribe", "--jobs", "a.wav", *OUT).exit_code == 0
    assert [job["state"] for job in listed(server)] == ["completed", "failed", "failed"]


lost = Breaking("POST", "/jobs", 0)


@pytest.mark.parametrize("settings", [{"around": lost}])
def test_a_lost_answer_makes_no_second_job(server: JobServer) -> None:
    assert run(server, "transcribe", "--jobs", *files("a.wav"), *OUT).exit_code == 0
    assert (len(lost.headers), len(listed(server))) == (2, 1)


def test_a_job_is_deleted_only_if_asked(server: JobServer) -> None:
    options = [*OUT, "--overwrite"]
    run(server, "transcribe", "--jobs", *files("a.wav", "b.wav"), *options)
    assert len(listed(server)) == 2
    done = run(server, "transcribe", "--jobs", "a.wav", *options, "--forget")
    assert (done.exit_code, done.stderr) == (0, "a.wav: out/a.txt\n")
    assert [job["filename"] for job in listed(server)] == ["b.wav"]
    assert run(server, "transcribe", "a.wav", *options, "--forget").exit_code == 2
    assert run(server, "transcribe", "--jobs", "a.wav", "--forget").exit_code == 2


def test_a_job_that_is_cancelled_meanwhile_is_a_failure(server: JobServer) -> None:
    server.fake.hold.clear()
    command = [*COMMAND, *files("a.wav"), *OUT, "--url", server.url]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=PIPE, text=True) as process:
        until(lambda: bool(server.fake.windows))
        httpx2.delete(f"{server.url}/v1/jobs/{listed(server)[0]['id']}")
        assert process.communicate(timeout=60)[1] == "a.wav: failed: the job was cancelled\n"
    assert process.returncode == 1


def test_every_channel_by_itself(server: JobServer) -> None:
    files("call.wav", data=media.wav(np.random.default_rng(2).normal(0, 0.1, (3 * 16_000, 2))))
    plain, by_jobs = (run(server, "transcribe", *way, "call.wav", "--channels") for way in ([], ["--jobs"]))
    assert (plain.exit_code, by_jobs.stdout) == (0, plain.stdout)
    assert {line.partition(":")[0] for line in plain.stdout.splitlines()} == {"Channel 0", "Channel 1"}
