"""Usable CPU cores, with faked affinities and container quotas."""

import os
from pathlib import Path

import pytest

from serve_app.cores import usable_cores


def limit(monkeypatch: pytest.MonkeyPatch, *, affinity: int, cpu_max: str | None) -> None:
    """Fake the number of cores in the affinity, and the content of cgroup's `cpu.max`; None: no such file."""

    def read_text(path: Path) -> str:
        assert path == Path("/sys/fs/cgroup/cpu.max")
        if cpu_max is None:
            raise FileNotFoundError(path)
        return cpu_max

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.parametrize(
    ("cpu_max", "cores"),
    [
        pytest.param(None, 8, id="no cgroup"),
        pytest.param("max 100000\n", 8, id="no quota"),
        pytest.param("400000 100000\n", 4, id="quota"),
        pytest.param("250000 100000\n", 2, id="fractional quota"),
        pytest.param("50000 100000\n", 1, id="quota below one core"),
        pytest.param("1600000 100000\n", 8, id="quota above the affinity"),
        pytest.param("", 8, id="empty file"),
    ],
)
def test_affinity_is_limited_by_the_quota(monkeypatch: pytest.MonkeyPatch, cpu_max: str | None, cores: int) -> None:
    limit(monkeypatch, affinity=8, cpu_max=cpu_max)
    assert usable_cores() == cores


@pytest.mark.parametrize(("cpu_count", "cores"), [(6, 6), (None, 1)])
def test_all_cores_where_the_system_has_no_affinity(monkeypatch: pytest.MonkeyPatch, cpu_count: int | None, cores: int) -> None:
    limit(monkeypatch, affinity=8, cpu_max=None)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: cpu_count)
    assert usable_cores() == cores
