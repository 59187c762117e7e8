"""`python -m serve_app.run`, up to where it starts Ray; tests/server/ has the rest."""

import os
import sys

import pytest

from serve_app import run


@pytest.mark.parametrize(("given", "expected"), [(None, "0"), ("1", "1")])
def test_ray_reports_no_usage_unless_it_is_asked_to(monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str) -> None:
    monkeypatch.setattr(sys, "argv", ["run", "config.yaml"])
    monkeypatch.setattr(os, "environ", {} if given is None else {"RAY_USAGE_STATS_ENABLED": given})
    monkeypatch.setattr(run, "_run", lambda arguments: None)
    run.main()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == expected
