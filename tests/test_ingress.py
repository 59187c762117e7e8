"""What the ingress changes in its process. tests/server/ drives whole ones."""

import builtins

import pytest
from ray.serve._private.logging_utils import redirected_print

from serve_app.ingress import restore_print
from serve_app.output import subtitles
from serve_app.output.cues import Cue


def test_subtitles_are_right_where_serve_replaces_print(monkeypatch: pytest.MonkeyPatch) -> None:
    cues = [Cue(0.0, 1.0, ("one",))]
    expected = subtitles.to_srt(cues)
    monkeypatch.setattr(builtins, "print", redirected_print)
    assert subtitles.to_srt(cues) != expected, "Serve has mended it"
    restore_print()
    assert subtitles.to_srt(cues) == expected
