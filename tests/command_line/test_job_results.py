"""`parakeet-serve jobs result` and `jobs cancel` over real HTTP, against the API with its real jobs."""

from pathlib import Path

import httpx2

from testing.fake_service import LONG, NOISE
from testing.job_service import JobServer
from tests.command_line.commands import listed, run, submit
from tests.command_line.test_transcribe import files


class TestResult:
    def test_is_that_of_transcribe_in_the_order_of_the_ids(self, server: JobServer) -> None:
        ids = submit(server, *files("b.wav", data=LONG), *files("a.wav"), "--format", "srt", "--wait")
        expected = run(server, "transcribe", "b.wav", "a.wav", "--format", "srt").stdout
        assert run(server, "jobs", "result", *ids).stdout == expected
        words = ["--format", "verbose_json", "--words"]
        assert run(server, "jobs", "result", ids[1], *words).stdout == run(server, "transcribe", "a.wav", *words).stdout

    def test_files_are_called_like_those_of_transcribe(self, server: JobServer) -> None:
        ids = submit(server, *files("b.wav", "a.b.mp3"), "--format", "vtt", "--wait")
        assert run(server, "jobs", "result", *ids, "-o", "deep/out").exit_code == 0
        run(server, "transcribe", "b.wav", "a.b.mp3", "--format", "vtt", "--output-dir", "expected")
        names = {path.name: path.read_text() for path in Path("deep/out").iterdir()}
        assert names == {path.name: path.read_text() for path in Path("expected").iterdir()}
        Path("deep/out/b.vtt").write_text("before")
        again = run(server, "jobs", "result", ids[0], "-o", "deep/out")
        assert (again.exit_code, again.stderr) == (0, f"{ids[0]} b.wav: skipped, deep/out/b.vtt is there\n")
        run(server, "jobs", "result", ids[0], "-o", "deep/out", "--overwrite")
        assert Path("deep/out/b.vtt").read_text() == names["b.vtt"]

    def test_a_file_name_of_another_client_stays_in_the_folder(self, server: JobServer) -> None:
        for name, expected in {"../../up.wav": "up.json", "..\\x.wav": "x.json", "": None}.items():
            job = httpx2.post(f"{server.url}/v1/jobs?wait=30", files={"file": (name or "..", NOISE)}).json()
            done = run(server, "jobs", "result", job["id"], "-o", "out")
            assert done.exit_code == 0, done.stderr
            (path,) = Path("out").iterdir()
            assert expected in (path.name, None)
            path.unlink()
        assert {path.name for path in Path().iterdir()} == {"out"}

    def test_two_with_the_same_name_are_refused(self, server: JobServer) -> None:
        ids = submit(server, *files("x/a.wav", "y/a.wav"), "--wait")
        wrong = run(server, "jobs", "result", *ids, "-o", "out")
        assert wrong.exit_code == 2
        assert not Path("out").exists()

    def test_a_job_without_a_result_does_not_stop_the_others(self, server: JobServer) -> None:
        (good,) = submit(server, *files("a.wav"), "--wait")
        server.fake.hold.clear()
        (running,) = submit(server, "a.wav")
        done = run(server, "jobs", "result", "job_x", running, good)
        server.resume()
        assert (done.exit_code, done.stdout) == (1, run(server, "transcribe", "a.wav").stdout)
        assert f"{running} a.wav: failed: " in done.stderr
        assert "job_x: failed: " in done.stderr

    def test_forgets_only_if_asked(self, server: JobServer) -> None:
        ids = submit(server, *files("a.wav"), "--wait")
        run(server, "jobs", "result", *ids)
        assert len(listed(server)) == 1
        assert run(server, "jobs", "result", *ids, "--forget").exit_code == 0
        assert listed(server) == []


class TestCancel:
    def test_stops_jobs_and_leaves_results(self, server: JobServer) -> None:
        (ended,) = submit(server, *files("a.wav"), "--wait")
        server.fake.hold.clear()
        (running,) = submit(server, "a.wav")
        done = run(server, "jobs", "cancel", running, ended, "job_x")
        assert done.exit_code == 1
        assert done.stderr.splitlines()[:2] == [
            f"{running} a.wav: cancelled",
            f"{ended}: not cancelled: it has ended: completed",
        ]
        assert {job["id"]: job["state"] for job in listed(server)} == {running: "cancelled", ended: "completed"}
        assert run(server, "jobs", "cancel", running).exit_code == 0
        assert run(server, "jobs", "watch", running).stderr == f"{running} a.wav: cancelled\n"
