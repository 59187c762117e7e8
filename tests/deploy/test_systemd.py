"""The unit for systemd: valid, hardened, and with time enough to stop."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app import run
from serve_app.app import DRAIN_S
from testing.paths import ROOT

UNIT = ROOT / "deploy" / "systemd" / "parakeet.service"
MAX_EXPOSURE = 3.0
"""Of 10, by `systemd-analyze security`, where services without any of these directives have 9.6."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with the program of this checkout, since systemd looks whether it exists."""
    text = UNIT.read_text()
    for old, new in {"/opt/parakeet/.venv/bin/python": sys.executable, "/opt/parakeet": str(ROOT)}.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / UNIT.name
    path.write_text(text)
    return path


@needs_systemd
def test_systemd_has_no_complaint(unit: Path) -> None:
    answer = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    complaints = [line for line in answer.stderr.splitlines() if unit.name in line]
    assert complaints == []


@needs_systemd
def test_a_misspelt_directive_would_be_one(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KilMode=mixed"))
    answer = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert "KilMode" in answer.stderr


@needs_systemd
def test_it_is_hardened(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={round(10 * MAX_EXPOSURE)}", str(unit)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout


def test_it_stops_as_the_server_does() -> None:
    parser = configparser.RawConfigParser(strict=False, allow_no_value=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text())
    service = parser["Service"]
    assert service["KillMode"] == "mixed"
    assert 60 * int(service["TimeoutStopSec"].removesuffix("min")) > DRAIN_S + run.SHUT_DOWN_S
    program, *arguments = service["ExecStart"].split()
    assert program.endswith("/.venv/bin/python")
    assert arguments[:2] == ["-m", run.__name__]
    assert (ROOT / arguments[2]).is_file()


def test_it_does_not_start_without_the_file_of_its_key() -> None:
    """With `-` before the path, systemd would go on without it, and the server would be open."""
    assert "\nEnvironmentFile=/etc/parakeet.env\n" in UNIT.read_text()
