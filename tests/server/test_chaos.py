"""A cluster of three nodes that is broken under load, by `python -m testing.chaos`; in a process of its own, as Ray is in it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testing.paths import ROOT

pytestmark = [pytest.mark.serve]


def chaos(folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    """The rows by fault."""
    path = folder / "rows.json"
    command = [sys.executable, "-m", "testing.chaos", "--json", str(path), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-5000:]}"
    print(done.stdout)
    return {row["fault"]: row for row in json.loads(path.read_text())}


def assert_nothing_lost(row: dict[str, Any]) -> None:
    if row["skipped"]:
        return
    assert (row["files_done"], row["streams_done"]) == (row["files"], row["streams"]), row
    assert row["words"] > 0, row
    assert (row["lost"], row["doubled"]) == (0, 0), row


def test_a_node_is_lost(tmp_path: Path) -> None:
    """The short form. The clients use the head node, and meet no failure."""
    size = ("--files", "3", "--streams", "3", "--minutes", "3", "--replicas-per-node", "1")
    rows = chaos(tmp_path, *size, "--faults", "with replicas is lost")
    (row,) = rows.values()
    assert_nothing_lost(row)
    assert row["saw"] == [], row


@pytest.mark.long
def test_everything_that_can_break(tmp_path: Path) -> None:
    """Ten long files and twenty live streams for each fault."""
    rows = chaos(tmp_path)
    for row in rows.values():
        if not row["fault"].endswith("is removed"):
            assert_nothing_lost(row)
    assert rows["a node is added"]["rate_after"] > rows["a node is added"]["rate_before"]
    for fault, code in [("the disk for uploads is full", "storage_full"), ("the hub is gone, and back", "model_unavailable")]:
        if not rows[fault]["skipped"]:
            assert f"503 {code}" in rows[fault]["saw"][-1]
            assert rows[fault]["saw"][-1].endswith(": 200")
