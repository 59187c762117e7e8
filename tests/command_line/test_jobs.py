"""`parakeet-serve submit`, `jobs` and `transcribe --as-jobs`, on the real API, store and worker."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import httpx2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from serve_app.command_line import job_client, main
from serve_app.settings import JobSettings, LimitSettings
from testing import media
from testing.fake_service import NOISE, FakeService
from testing.fake_service import serving as serving_api
from testing.job_service import Serving, serving
from testing.paths import ROOT

WITHIN_S = 30.0


@pytest.fixture
def fake(tmp_path: Path) -> FakeService:
    return FakeService(jobs=JobSettings(directory=tmp_path / "jobs"), limits=LimitSettings())


@pytest.fixture
def server(fake: FakeService) -> Iterator[Serving]:
    with serving(fake) as server:
        yield server


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{name}.wav" for name in ("one", "two")]
    for path, data in zip(paths, (NOISE, media.wav(np.random.default_rng(1).normal(0, 0.1, 3 * 16_000))), strict=True):
        path.write_bytes(data)
    return list(map(str, paths))


def run(server: Serving, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--url", server.url])


def ids_of(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return result.stdout.split()


def jobs_of(server: Serving) -> list[dict[str, Any]]:
    return list(httpx2.get(f"{server.url}v1/jobs").json()["data"])


def wait_until_done(server: Serving, count: int) -> None:
    until_s = time.monotonic() + WITHIN_S
    while sum(job["state"] == "completed" for job in jobs_of(server)) < count:
        assert time.monotonic() < until_s
        time.sleep(0.05)


def test_from_submit_to_cancel(server: Serving, files: list[str], tmp_path: Path) -> None:
    ids = ids_of(run(server, "submit", *files, "--metadata", '{"a": 1}', "--priority", "low"))
    assert len(ids) == 2
    watched = run(server, "jobs", "watch", *ids)
    assert watched.exit_code == 0, watched.output
    assert {f"{name}.wav: done ({job})" for name, job in zip(("one", "two"), ids, strict=True)} == set(
        watched.stderr.splitlines()
    )
    direct = httpx2.post(f"{server.url}v1/audio/transcriptions", files={"file": NOISE}, data={"response_format": "text"}).text
    assert run(server, "jobs", "result", ids[0]).stdout.strip() == direct.strip()
    folder = tmp_path / "out"
    for _ in range(2):
        assert run(server, "jobs", "result", *ids, "--format", "srt", "--output-dir", str(folder)).exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["one.srt", "two.srt", f"one-{ids[0]}.srt", f"two-{ids[1]}.srt"]
    )
    listed = run(server, "jobs", "list").stdout.splitlines()
    assert [re.split(r"\s+", line)[:2] for line in listed] == [[job, "completed"] for job in reversed(ids)]
    assert json.loads(run(server, "jobs", "list", "--json", "--limit", "1").stdout)["metadata"] == {"a": 1}
    assert run(server, "jobs", "cancel", ids[0]).exit_code == 0
    assert [job["id"] for job in jobs_of(server)] == [ids[1]]


def test_channels(server: Serving, tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    path.write_bytes(media.wav(np.random.default_rng(2).normal(0, 0.1, (3 * 16_000, 2))))
    direct = run(server, "transcribe", str(path), "--channels")
    assert direct.exit_code == 0, direct.output
    assert {line.partition(":")[0] for line in direct.stdout.splitlines()} == {"Channel 0", "Channel 1"}
    by_job = run(server, "transcribe", str(path), "--channels", "--as-jobs")
    assert by_job.stdout == direct.stdout
    (job,) = ids_of(run(server, "submit", str(path), "--channels"))
    assert run(server, "jobs", "watch", job).exit_code == 0
    assert run(server, "jobs", "result", job).stdout == direct.stdout


def test_a_job_that_fails(server: Serving, fake: FakeService, files: list[str]) -> None:
    fake.hold.clear()
    (job,) = ids_of(run(server, "submit", files[0]))
    assert run(server, "jobs", "cancel", job).exit_code == 0
    watched = run(server, "jobs", "watch", job)
    assert (watched.exit_code, watched.stderr) == (1, f"one.wav: failed: the job is cancelled ({job})\n")
    assert "has no result" in run(server, "jobs", "result", job).stderr
    broken = Path(files[1])
    broken.write_bytes(b"no audio")
    refused = run(server, "submit", *files)
    assert refused.exit_code == 1
    assert len(refused.stdout.split()) == 1


def test_watching_goes_on_when_the_server_is_back(
    server: Serving, fake: FakeService, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_client, "RECONNECT_S", 0.05)
    fake.hold.clear()
    (job,) = ids_of(run(server, "submit", files[0]))
    command = [sys.executable, "-m", "serve_app.command_line", "jobs", "watch", "--url", server.url]
    with subprocess.Popen(command, stderr=PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}) as watching:
        time.sleep(3)
        server.stop()
        time.sleep(1)
        server.start()
        server.resume()
        _, output = watching.communicate(timeout=WITHIN_S)
    assert (watching.returncode, output) == (0, f"one.wav: done ({job})\n")


def test_transcribe_as_jobs_goes_on_after_ctrl_c(server: Serving, fake: FakeService, files: list[str], tmp_path: Path) -> None:
    fake.hold.clear()
    arguments = ["transcribe", *files, "--as-jobs", "--format", "srt", "--output-dir", str(tmp_path / "out")]
    command = [sys.executable, "-m", "serve_app.command_line", *arguments, "--url", server.url]
    with subprocess.Popen(command, stderr=PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}) as first:
        until_s = time.monotonic() + WITHIN_S
        while len(jobs_of(server)) < 2 and time.monotonic() < until_s:
            time.sleep(0.05)
        first.send_signal(signal.SIGINT)
        _, output = first.communicate(timeout=WITHIN_S)
    assert first.returncode == 130
    assert "stays on the server" in output
    server.resume()
    wait_until_done(server, 2)
    windows = len(fake.windows)
    assert run(server, *arguments).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.srt", "two.srt"]
    assert (tmp_path / "out" / "one.srt").read_text().startswith("1\n00:00:")
    assert (len(jobs_of(server)), len(fake.windows)) == (2, windows)
    assert "skipped" in run(server, *arguments).stderr


def test_a_server_without_jobs(files: list[str]) -> None:
    from serve_app.api import create_api

    with serving_api(create_api(FakeService().service)) as url:
        for arguments in (["submit", files[0]], ["jobs", "list"], ["transcribe", "--as-jobs", files[0]]):
            result = CliRunner().invoke(main, [*arguments, "--url", url])
            assert result.exit_code == 1
            assert "this server has no jobs" in result.stderr
