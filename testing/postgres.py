"""A PostgreSQL server for tests, in a temporary folder, on a UNIX socket alone."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "log_min_messages": "fatal",
}
"""Tests kill processes, not machines, so nothing has to reach the disk."""


def binaries() -> Path | None:
    """The folder with `initdb` and `pg_ctl`; None: PostgreSQL is not installed."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    # Debian keeps them out of the path.
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


class PostgresServer:
    """A server that can be stopped and started."""

    def __init__(self, folder: Path, bin_folder: Path, user: str | None) -> None:
        self._folder = folder
        self._bin_folder = bin_folder
        self._user = user

    def url(self, schema: str) -> str:
        """The URL of a schema, which need not exist yet."""
        return f"postgresql://tester@/postgres?host={quote(str(self._folder))}&options={quote(f'-csearch_path={schema}')}"

    def initialise(self) -> None:
        self._run("initdb", "-D", "data", "-U", "tester", "-A", "trust", "--no-sync", "--locale=C", "--encoding=UTF8")

    def start(self) -> None:
        options = " ".join(f"-c {name}={value or repr('')}" for name, value in SETTINGS.items())
        self._run("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", f"{options} -k {self._folder}", "start")

    def stop(self) -> None:
        """Stop at once, as if all of its processes were killed."""
        self._run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *args: str) -> None:
        # PostgreSQL refuses to run as root.
        as_user = ["setpriv", f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups"] if self._user else []
        output = self._folder / "output"
        with output.open("wb") as file:
            # The server inherits the output, so it may not be a pipe that somebody waits on.
            code = subprocess.run(
                [*as_user, self._bin_folder / program, *args], cwd=self._folder, stdout=file, stderr=file
            ).returncode
        if code:
            raise RuntimeError(f"{program}: {output.read_text()}")


@contextmanager
def postgres_server(bin_folder: Path) -> Iterator[PostgresServer]:
    """A running server, stopped at the end."""
    user = None
    # A short path: that of a socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            user = account.pw_name
            os.chown(folder, account.pw_uid, account.pw_gid)
        server = PostgresServer(folder, bin_folder, user)
        server.initialise()
        server.start()
        try:
            yield server
        finally:
            server.stop()
