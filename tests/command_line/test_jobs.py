"""`parakeet-serve submit`, `jobs` and `jobs watch` over real HTTP, against the API with its real jobs."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import httpx2
import pytest

from serve_app.api import create_api
from serve_app.command_line import client, job_client
from serve_app.settings import AuthSettings, LimitSettings
from testing.fake_service import LONG, NOISE, FakeService
from testing.fake_service import serving as serving_app
from testing.job_service import JobServer, fake_with_jobs, serving
from tests.command_line.commands import Breaking, listed, run, submit, until
from tests.command_line.test_transcribe import ENVIRONMENT, files

WATCH = [sys.executable, "-m", "serve_app.command_line", "jobs", "watch"]


class TestSubmit:
    def test_prints_ids_in_the_order_of_the_files(self, server: JobServer) -> None:
        options = ["--priority", "low", "--metadata", '{"n": 1}', "--ttl", "3600", "--format", "srt", "--model", "second"]
        done = run(server, "submit", *files("b.wav", "a.wav"), *options, "-", "--parallel", "3", input=NOISE)
        ids, jobs = done.stdout.splitlines(), {job["id"]: job for job in listed(server)}
        assert (done.exit_code, [jobs[each]["filename"] for each in ids]) == (0, ["b.wav", "a.wav", "stdin"])
        assert sorted(done.stderr.splitlines()) == sorted(f"{jobs[each]['filename']}: {each}" for each in ids)
        job = httpx2.get(f"{server.url}/v1/jobs/{ids[0]}", params={"wait": 30}).json()
        assert (job["priority"], job["metadata"], job["model"]) == ("low", {"n": 1}, "second")
        assert job["expires_at"] - job["ended_at"] == pytest.approx(3600)
        assert job["response_format"] == "srt"

    @pytest.mark.usefixtures("soon")
    def test_waits_for_the_end(self, server: JobServer) -> None:
        done = run(server, "submit", *files("a.wav"), "--wait")
        job_id = done.stdout.strip()
        assert (done.exit_code, done.stderr) == (0, f"a.wav: {job_id}\n{job_id} a.wav: completed\n")
        server.fake.failure = ValueError("internal")
        failed = run(server, "submit", "a.wav", "--wait")
        assert failed.exit_code == 1
        assert "a.wav: failed: " in failed.stderr
        assert "internal" not in failed.stderr

    lost = Breaking("POST", "/jobs", 0)

    @pytest.mark.parametrize("settings", [{"around": lost}])
    def test_a_lost_answer_makes_no_second_job(self, server: JobServer) -> None:
        (job_id,) = submit(server, *files("a.wav"))
        assert [job["id"] for job in listed(server)] == [job_id]
        first, second = (headers[b"idempotency-key"] for headers in self.lost.headers)
        assert first == second
        submit(server, "a.wav")
        assert len(listed(server)) == 2

    @pytest.mark.parametrize("settings", [{"jobs": {"max_jobs_per_key": 1}}])
    def test_is_sent_again_while_there_are_too_many_jobs(self, server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
        server.fake.hold.clear()
        submit(server, *files("a.wav", "b.wav")[:1])
        monkeypatch.setattr(client, "MAX_WAIT_S", 0)
        monkeypatch.setattr(client, "MAX_ATTEMPTS", 2)
        refused = run(server, "submit", "b.wav")
        assert (refused.exit_code, refused.stdout) == (1, "")
        again, failed = refused.stderr.splitlines()
        assert again.startswith("b.wav: again in 0 s: ")
        assert failed.startswith("b.wav: failed: ")
        assert failed.endswith("(asked 2 times)")

    @pytest.mark.parametrize("settings", [{"limits": LimitSettings(max_upload_bytes=1_000_000)}])
    def test_a_refusal_is_final(self, server: JobServer) -> None:
        done = run(server, "submit", *files("a.wav"), *files("large.wav", data=bytes(30_000_000)))
        assert (done.exit_code, len(done.stdout.splitlines())) == (1, 1)
        assert "large.wav: failed: The upload is larger than the 1 MB that this server accepts.\n" in done.stderr

    def test_metadata_is_checked_before_anything_is_sent(self, server: JobServer) -> None:
        assert run(server, "submit", *files("a.wav"), "--metadata", "[1]").exit_code == 2
        assert listed(server) == []


class TestList:
    def test_is_a_table(self, server: JobServer) -> None:
        assert run(server, "jobs").stderr == "There are no such jobs.\n"
        first, second = submit(server, *files("a.wav", "b c.wav"), "--wait")
        server.fake.hold.clear()
        (third,) = submit(server, *files("long.wav", data=LONG))
        lines = [line.split("  ") for line in run(server, "jobs", "--state", "completed").stdout.splitlines()]
        table = [[cell.strip() for cell in line if cell] for line in lines]
        assert table[0] == ["id", "state", "file", "progress", "age"]
        assert {tuple(row[:4]) for row in table[1:]} == {
            (first, "completed", "a.wav", "100%"),
            (second, "completed", "b c.wav", "100%"),
        }
        assert third in run(server, "jobs", "--limit", "1").stdout

    def test_pages(self, server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(job_client, "PAGE", 2)
        submit(server, *files(*(f"{n}.wav" for n in range(5))))
        ids = [job["id"] for job in listed(server)]
        for limit in (1, 3, 4, 9):
            done = run(server, "jobs", "--json", "--limit", str(limit))
            assert [job["id"] for job in json.loads(done.stdout)] == ids[:limit]

    def test_options_before_a_subcommand_are_refused(self, server: JobServer) -> None:
        wrong = run("http://127.0.0.1:1", "jobs", "--url", server.url, "watch")
        assert wrong.exit_code == 2
        assert "after `watch`" in wrong.stderr


class TestWatch:
    def test_all_that_have_not_ended(self, server: JobServer) -> None:
        submit(server, *files("done.wav"), "--wait")
        server.fake.hold.clear()
        ids = submit(server, *files("a.wav", "b.wav"))
        server.resume()
        done = run(server, "jobs", "watch")
        assert done.exit_code == 0
        # They may have ended before they were listed.
        assert set(done.stderr.splitlines()) <= {f"{ids[0]} a.wav: completed", f"{ids[1]} b.wav: completed"} | {
            "No jobs are queued or running."
        }

    @pytest.mark.usefixtures("soon")
    def test_the_exit_code_says_whether_one_failed(self, server: JobServer) -> None:
        (good,) = submit(server, *files("a.wav"), "--wait")
        server.fake.failure = ValueError()
        (bad,) = submit(server, "a.wav")
        assert run(server, "jobs", "watch", good).exit_code == 0
        failed = run(server, "jobs", "watch", good, bad)
        assert failed.exit_code == 1
        assert f"{good} a.wav: completed\n" in failed.stderr
        assert f"{bad} a.wav: failed: " in failed.stderr
        unknown = run(server, "jobs", "watch", good, "job_x/y")
        assert unknown.exit_code == 1
        assert "job_x/y: " in unknown.stderr

    broken = Breaking("GET", "/events", 3)

    @pytest.mark.parametrize("settings", [{"around": broken}])
    def test_goes_on_after_a_broken_connection(self, server: JobServer) -> None:
        server.fake.hold.clear()
        (job_id,) = submit(server, *files("long.wav", data=LONG))
        command = [*WATCH, job_id, "--url", server.url]
        with subprocess.Popen(command, env=ENVIRONMENT, stdout=PIPE, stderr=PIPE, text=True) as process:
            until(lambda: bool(self.broken.headers))
            server.resume()
            out, errors = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "")
        assert errors.splitlines() == [
            "long.wav: again in 1 s: the connection was lost",
            f"{job_id} long.wav: completed",
        ]
        first, second = self.broken.headers
        assert b"last-event-id" not in first
        assert second[b"last-event-id"]

    def test_goes_on_when_the_server_is_started_again(self, tmp_path: Path) -> None:
        events = Breaking("GET", "/events", 1000)
        folder = tmp_path / "jobs"
        with serving(fake_with_jobs(folder), around=events) as server:
            server.fake.hold.clear()
            (job_id,) = submit(server, *files(str(tmp_path / "long.wav"), data=LONG))
            port = httpx2.URL(server.url).port
            process = subprocess.Popen([*WATCH, "--url", server.url], env=ENVIRONMENT, stderr=PIPE, text=True)
            until(lambda: bool(events.headers))
            server.shut_down()
        with process, serving(fake_with_jobs(folder), port=port or 0):
            errors = process.communicate(timeout=60)[1].splitlines()
        assert (process.returncode, errors[-1]) == (0, f"{job_id} long.wav: completed")
        assert errors[0] == "long.wav: again in 1 s: the connection was lost"

    def test_shows_progress_on_a_terminal(self, server: JobServer) -> None:
        server.fake.hold.clear()
        submit(server, *files("long.wav", data=LONG))
        terminal, its_side = pty.openpty()
        command = [*WATCH, "--url", server.url]
        with subprocess.Popen(command, env=ENVIRONMENT, stderr=its_side) as process, open(terminal, "rb", 0) as screen:
            os.close(its_side)
            shown = b""
            while b"long.wav: completed" not in shown:
                shown += screen.read(65_536)
                if b"0:00:00 of 0:02:06" in shown:
                    server.resume()
            assert process.wait() == 0


COMMANDS = [["jobs"], ["jobs", "watch"], ["submit", "a.wav"], ["transcribe", "a.wav", "--jobs"]]


class TestFailures:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        files("a.wav")

    def test_a_server_without_jobs(self) -> None:
        with serving_app(create_api(FakeService().service)) as url:
            for command in COMMANDS:
                done = run(url, *command)
                assert (done.exit_code, done.stdout) == (1, "")
                assert done.stderr == f"Error: {url} has no jobs: its settings name no folder for them (`jobs.directory`)\n"

    def test_keys(self, tmp_path: Path) -> None:
        with serving(fake_with_jobs(tmp_path / "jobs", auth=AuthSettings(keys=("one",)))) as server:
            for command in COMMANDS:
                assert run(server, *command, "--api-key", "one").exit_code == 0
                assert run(server, *command).stderr.startswith("Error: A valid API key is needed")

    def test_an_unreachable_server(self) -> None:
        for command in COMMANDS:
            done = run("http://127.0.0.1:1", *command)
            assert (done.exit_code, done.stdout) == (1, "")
            assert done.stderr.startswith("Error: http://127.0.0.1:1 cannot be reached: ")
