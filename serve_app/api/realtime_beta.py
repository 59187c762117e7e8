"""The configuration of a session in the form of the Realtime API's beta (`transcription_session.update`). Pure."""

from collections.abc import Mapping
from typing import Any

FORMATS: dict[str, dict[str, Any]] = {
    "pcm16": {"type": "audio/pcm", "rate": 24_000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}
"""`format` of the present API by the beta's `input_audio_format`."""

INPUT_FIELDS = {
    "input_audio_format": "format",
    "input_audio_transcription": "transcription",
    "input_audio_noise_reduction": "noise_reduction",
    "turn_detection": "turn_detection",
}
"""Fields of the present API's `audio.input` by their names in the beta."""


def to_changes(session: Mapping[str, Any]) -> dict[str, Any]:
    """The changes that a session of the beta asks for, as SessionConfig.updated takes them. Not checked."""
    found = {name: session[beta_name] for beta_name, name in INPUT_FIELDS.items() if beta_name in session}
    if isinstance(kind := found.get("format"), str):
        found["format"] = FORMATS.get(kind, {"type": kind})
    include = {"include": session["include"]} if "include" in session else {}
    return {"audio": {"input": found}, **include}


def from_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a SessionConfig as a session of the beta."""
    found = fields["audio"]["input"]
    session = {beta_name: found[name] for beta_name, name in INPUT_FIELDS.items()}
    kinds = {audio_format["type"]: name for name, audio_format in FORMATS.items()}
    return {**session, "input_audio_format": kinds[found["format"]["type"]], "include": fields["include"], "client_secret": None}
