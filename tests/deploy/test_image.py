"""The container's entrypoint: as whom a command runs, with which home, and what it changes."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from testing.paths import ROOT

ENTRYPOINT = ROOT / "deploy" / "entrypoint.sh"
PRINT = ["sh", "-c", 'echo "$(id -u) $(id -g) $HOME $USER"']

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def run(models: Path, *command: str, as_user: int = 0, environment: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    before = ["setpriv", f"--reuid={as_user}", f"--regid={as_user}", "--clear-groups", "--"] if as_user else []
    env = {"PATH": os.environ["PATH"], "MODELS_DIR": str(models), **environment}
    # Read here: pytest's folders and the checkout may be closed to other users.
    program = [*before, "sh", "-s", "--", *command]
    return subprocess.run(program, env=env, capture_output=True, text=True, input=ENTRYPOINT.read_text(), cwd="/")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A mounted folder with a file of root's."""
    (tmp_path / "model.nemo").touch()
    return tmp_path


@pytest.mark.parametrize(("environment", "ids"), [({}, (1000, 1000)), ({"PUID": "12345", "PGID": "54321"}, (12345, 54321))])
def test_root_becomes_the_owner_of_the_models(models: Path, environment: dict[str, str], ids: tuple[int, int]) -> None:
    assert run(models, *PRINT, environment=environment).stdout == f"{ids[0]} {ids[1]} /tmp appuser\n"
    assert [(path.stat().st_uid, path.stat().st_gid) for path in (models, models / "model.nemo")] == [ids, ids]


def test_another_user_stays_who_it_is(models: Path) -> None:
    assert run(models, *PRINT, as_user=23456, environment={"HOME": "/"}).stdout == "23456 23456 /tmp appuser\n"
    assert (models / "model.nemo").stat().st_uid == 0


@pytest.mark.parametrize("user_id", ["", "abc", "-1", "1 000"])
def test_an_id_that_is_none_is_refused(models: Path, user_id: str) -> None:
    answer = run(models, *PRINT, environment={"PUID": user_id, "PGID": "x"})
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "must be numbers" in answer.stderr


def test_the_status_is_that_of_the_command(models: Path) -> None:
    assert run(models, "sh", "-c", "exit 7").returncode == 7
