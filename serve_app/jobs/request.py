"""What a job asks for, as the store keeps it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """The fields of a transcription, checked. Those that this version does not know are ignored."""

    model: str
    """Name of the model, no alias."""
    window_s: float | None = None
    """Maximum length of a window, seconds; None: as the model's settings say."""
    overlap_s: float | None = None
    keywords: tuple[str, ...] = ()
    language: str | None = None
    """ISO 639-1 code of the spoken language, where it is certain."""
    track: int | None = None
    multichannel: bool = False
    """Every channel is transcribed by itself."""
    drops_crosstalk: bool | None = None
    """None: as the settings say."""
    diarizer: str | None = None
    """Which one finds who speaks; None: that is not asked for."""
    diarizer_is_optional: bool = False
    knows_speakers: bool = False
    """Known speakers are kept beside the upload."""
    filename: str = ""
    """As the client named the file."""
    rendering: Mapping[str, Any]
    """Fields of `api.response_formats.Rendering`."""

    @property
    def needs(self) -> str:
        """What has to be available for it, for people."""
        needs_diarizer = self.diarizer is not None and not self.diarizer_is_optional
        return f"model `{self.model}`" + (f" or the diarizer `{self.diarizer}`" if needs_diarizer else "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        known = {field.name for field in fields(cls)}
        kept = {name: value for name, value in values.items() if name in known}
        return cls(**kept | {"keywords": tuple(kept.get("keywords", ()))})
