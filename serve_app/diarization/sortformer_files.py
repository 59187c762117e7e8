"""What a Sortformer in a `.nemo` file is, read from its configuration without loading the weights, and how it streams."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.engine.checkpoints import CONFIG_NAME, read_config, read_rates, section, subsampling_factor
from serve_app.errors import ModelUnavailable
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE

CLASS = "SortformerEncLabelModel"
"""The class of NeMo that is served."""


@dataclass(frozen=True, slots=True)
class StreamingSettings:
    """How a Sortformer goes through a recording, in frames of 80 ms. The names are NeMo's."""

    chunk_len: int
    chunk_left_context: int
    chunk_right_context: int
    fifo_len: int
    spkcache_len: int
    spkcache_update_period: int


DEFAULTS = StreamingSettings(
    chunk_len=188, chunk_left_context=1, chunk_right_context=1, fifo_len=0, spkcache_len=188, spkcache_update_period=188
)
"""NeMo's, for what a configuration does not say."""


def read_streaming(path: Path, chunk_s: float | None = None) -> StreamingSettings:
    """How the model in a `.nemo` file streams. `chunk_s`: length of a chunk in the place of its own, seconds. Raises
    ModelUnavailable if the file is damaged, or no diarizer that can be served."""
    config = read_config(path)
    name = str(config.get("target") or "").rpartition(".")[2]
    if name != CLASS:
        kind = f"a `{name}`" if name else f"of no class of NeMo that its {CONFIG_NAME} names"
        raise ModelUnavailable(f"{path} cannot be used as a diarizer: it is {kind}, not a Sortformer (`{CLASS}`)")
    if not config.get("streaming_mode"):
        raise ModelUnavailable(
            f"{path} cannot be used as a diarizer: it is an offline Sortformer, which has to see a whole recording at once; "
            "a streaming one is needed"
        )
    _check_features(path, config)
    own = section(config, "sortformer_modules")
    values = {field: own.get(field, getattr(DEFAULTS, field)) for field in StreamingSettings.__slots__}
    if not all(isinstance(value, int) for value in values.values()) or values["chunk_len"] < 1:
        raise ModelUnavailable(f"{path} cannot be used as a diarizer: its {CONFIG_NAME} does not state how it streams")
    if chunk_s is not None:
        values["chunk_len"] = max(1, round(chunk_s * SAMPLE_RATE / FRAME_SAMPLES))
    return StreamingSettings(**values)


def _check_features(path: Path, config: dict[str, Any]) -> None:
    rate, hop_samples = read_rates(path, config)
    frame_samples = hop_samples * subsampling_factor(path, section(config, "encoder"))
    if rate != SAMPLE_RATE or frame_samples != FRAME_SAMPLES:
        raise ModelUnavailable(
            f"{path} cannot be used as a diarizer: it takes audio at {rate} Hz in frames of {frame_samples} samples; "
            f"the server has {SAMPLE_RATE} Hz and {FRAME_SAMPLES}"
        )
    normalisation = section(config, "preprocessor").get("normalize")
    if normalisation in ("per_feature", "all_features"):
        raise ModelUnavailable(
            f"{path} cannot be used as a diarizer: its features are normalised over the whole recording (`normalize: "
            f"{normalisation}`), of which a step sees a chunk"
        )
