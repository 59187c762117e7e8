"""What a request may ask for besides a model."""

from dataclasses import dataclass

from serve_app.diarizing import SpeakerOptions
from serve_app.events import Done
from serve_app.observe.job_meter import EntryPoint
from serve_app.settings import ModelSettings, WindowSettings
from serve_app.transcript import Transcript
from serve_app.window import Keywords


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How a request wants a recording transcribed, and how it came."""

    windows: WindowSettings | None = None
    """How the recording is cut; None: as the model's settings say."""
    keywords: Keywords = ()
    language: str | None = None
    """ISO 639-1 code of the spoken language, where it is certain."""
    entry_point: EntryPoint = "rest"
    is_background: bool = False
    """Nobody waits for it: all of its windows are in the bulk lane."""
    drops_crosstalk: bool | None = None
    """Of several channels: words that one hears from another are left out; None: as the settings say."""
    speakers: SpeakerOptions | None = None
    """None: who speaks is not asked for."""

    def transcript(
        self, done: Done, warnings: tuple[str, ...], model: ModelSettings, channels: tuple[int, ...] = ()
    ) -> Transcript:
        """The transcript of a recording that is done."""
        language, warnings = self.language or "unknown", (*warnings, *done.warnings)
        return Transcript(done.segments, done.duration_s, model.name, language, warnings, channels)
