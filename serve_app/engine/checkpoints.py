"""What a `.nemo` file is, read from its configuration without loading the weights.

A `.nemo` file is a tar (of old versions of NeMo: compressed) with `model_config.yaml` in it. NeMo loads many kinds of models from
such files; the server has use for speech recognisers with a transducer or a CTC decoder that see a whole window at once. All
others are refused here, by name: NeMo would load most of them, and they would fail later or answer nonsense.
"""

import tarfile
import zlib
from pathlib import Path
from typing import Any, Literal

import yaml

from serve_app.errors import ModelUnavailable
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE

Family = Literal["tdt", "rnnt", "ctc", "hybrid_tdt_ctc", "hybrid_rnnt_ctc"]

CONFIG_NAME = "model_config.yaml"
MAX_CONFIG_BYTES = 32_000_000
"""Size of the largest configuration that is read; that of parakeet-tdt-0.6b-v3 has less than a megabyte."""

DECODERS = {"EncDecRNNTBPEModel": "transducer", "EncDecCTCModelBPE": "ctc", "EncDecHybridRNNTCTCBPEModel": "hybrid"}
"""The classes of NeMo that are served."""

REFUSED = (
    ("WithPrompt", "a recogniser that needs a prompt with every window (a language, for example)"),
    ("EOUModel", "a recogniser that also detects the end of an utterance, for cache-aware streaming"),
    ("MultiTalker", "a recogniser for one of several speakers, which needs a diarization model beside it"),
    ("EncDecMultiTask", "an attention encoder-decoder such as Canary, which has another decoder and other times"),
    ("EncDecTransf", "an attention encoder-decoder, which has another decoder and other times"),
    ("SALM", "a speech language model"),
    ("AudioGPT", "a speech language model"),
    ("Sortformer", "a diarization model"),
    ("Diar", "a diarization model"),
    ("SpeakerLabel", "a speaker recognition model"),
    ("Classification", "a classification model"),
    ("Regression", "a regression model"),
    ("SelfSupervised", "an encoder without a decoder (self-supervised pre-training)"),
    ("MaskedTokenPred", "an encoder without a decoder (self-supervised pre-training)"),
    ("EncDecRNNTModel", "a character model: it has no tokenizer"),
    ("EncDecCTCModel", "a character model: it has no tokenizer"),
    ("EncDecHybridRNNTCTCModel", "a character model: it has no tokenizer"),
)
"""Parts of class names, most specific first, and what such a model is."""


def read_family(path: Path) -> Family:
    """Family of the model in a `.nemo` file. Raises ModelUnavailable if it is damaged, or no model that the server can serve."""
    config = read_config(path)
    name = str(config.get("target") or "").rpartition(".")[2]
    if name not in DECODERS:
        raise ModelUnavailable(_refusal(path, name))
    encoder, tokenizer = section(config, "encoder"), section(config, "tokenizer")
    encoder_name = str(encoder.get("_target_", "")).rpartition(".")[2]
    if encoder_name != "ConformerEncoder":
        raise ModelUnavailable(f"{path} cannot be served: its encoder is `{encoder_name}`, not a (Fast)Conformer")
    if tokenizer.get("type") == "wpe":
        raise ModelUnavailable(f"{path} cannot be served: its tokenizer is a WordPiece one, not a SentencePiece one")
    if _is_cache_aware(encoder):
        raise ModelUnavailable(
            f"{path} cannot be served: it is a cache-aware streaming model, trained to see little of what follows"
        )
    sample_rate, hop_samples = read_rates(path, config)
    if sample_rate != SAMPLE_RATE:
        raise ModelUnavailable(f"{path} cannot be served: it takes audio at {sample_rate} Hz, the server has {SAMPLE_RATE} Hz")
    factor = subsampling_factor(path, encoder)
    if hop_samples * factor != FRAME_SAMPLES:
        frame_ms, served_ms = (samples / SAMPLE_RATE * 1000 for samples in (hop_samples * factor, FRAME_SAMPLES))
        raise ModelUnavailable(
            f"{path} cannot be served: its encoder frames have {frame_ms:.0f} ms ({factor} times {hop_samples} samples), "
            f"not {served_ms:.0f} ms"
        )
    return _family(path, config, DECODERS[name])


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a `.nemo` file. Raises ModelUnavailable if the file is damaged."""
    content: bytes | None = None
    try:
        with path.open("rb") as file:
            is_compressed = file.read(2) == b"\x1f\x8b"
        with tarfile.open(path, "r:gz" if is_compressed else "r:") as archive:
            for member in archive:
                if Path(member.name).name == CONFIG_NAME and member.size <= MAX_CONFIG_BYTES:
                    extracted = archive.extractfile(member)
                    content = extracted.read() if extracted else None
                    # Without compression, to go on costs nothing and finds out whether the file is complete.
                    if is_compressed:
                        break
        if content is None:
            raise ModelUnavailable(f"{path} is not a model of NeMo: it has no {CONFIG_NAME}, or one that is too large")
        config = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    # tarfile passes on the errors of the decompression.
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ModelUnavailable(f"{path} is damaged, or no `.nemo` file: {error}. Put a complete file in its place") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ModelUnavailable(f"{path} is damaged: its {CONFIG_NAME} is no YAML: {error}") from error
    if not isinstance(config, dict):
        raise ModelUnavailable(f"{path} is damaged: its {CONFIG_NAME} is no mapping")
    return config


def _refusal(path: Path, name: str) -> str:
    if not name:
        return f"{path} cannot be served: its {CONFIG_NAME} names no class of NeMo (`target`)"
    kind = next((kind for part, kind in REFUSED if part in name), "no speech recogniser that this server knows")
    return f"{path} cannot be served: it is {kind} (`{name}`). Served are TDT, RNNT and CTC models and hybrids of them"


def _is_cache_aware(encoder: dict[str, Any]) -> bool:
    """Whether an encoder was trained with a cache. Such encoders see so little of what follows that windows gain nothing, and
    their features are not normalised over a window.

    NeMo has three styles of attention. `chunked_limited` is that of cache-aware streaming, whose convolutions are causal too.
    `chunked_limited_with_rc` is trained with chunks of many sizes and with whole recordings, and does the latter by default
    (`_calc_context_sizes` in NeMo's conformer_encoder.py). `regular` sees a fixed number of frames, by default all.
    """
    convolution = encoder.get("conv_context_size")
    is_causal = convolution == "causal" or (isinstance(convolution, list) and convolution[-1] == 0)
    return encoder.get("att_context_style") == "chunked_limited" or is_causal or bool(encoder.get("causal_downsampling"))


def _family(path: Path, config: dict[str, Any], decoder: str) -> Family:
    if decoder == "ctc":
        return "ctc"
    decoding, loss = section(config, "decoding"), section(config, "loss")
    if decoding.get("big_blank_durations") or loss.get("loss_name") == "multiblank_rnnt":
        raise ModelUnavailable(f"{path} cannot be served: it is a multi-blank transducer")
    # As NeMo decides; a model that was saved during training may have the durations in its loss alone.
    is_tdt = bool(decoding.get("durations")) or loss.get("loss_name") == "tdt"
    if decoder == "hybrid":
        return "hybrid_tdt_ctc" if is_tdt else "hybrid_rnnt_ctc"
    return "tdt" if is_tdt else "rnnt"


def read_rates(path: Path, config: dict[str, Any]) -> tuple[int, int]:
    """Samples per second, and samples between two feature frames."""
    preprocessor = section(config, "preprocessor")
    rate = preprocessor.get("sample_rate") or config.get("sample_rate")
    hop, stride_s = preprocessor.get("n_window_stride"), preprocessor.get("window_stride")
    if isinstance(rate, int) and isinstance(hop, int):
        return rate, hop
    if isinstance(rate, int) and isinstance(stride_s, float):
        return rate, round(stride_s * rate)
    raise ModelUnavailable(f"{path} cannot be served: its {CONFIG_NAME} does not state sample rate and window stride")


def subsampling_factor(path: Path, encoder: dict[str, Any]) -> int:
    """Feature frames per encoder frame."""
    # NeMo's default is 4.
    factor = encoder.get("subsampling_factor", 4)
    reduction = encoder.get("reduction_factor", 1) if encoder.get("reduction") else 1
    if not isinstance(factor, int) or not isinstance(reduction, int) or factor < 1:
        raise ModelUnavailable(f"{path} cannot be served: its {CONFIG_NAME} does not state its subsampling factor")
    return factor * reduction


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of a configuration; empty if it has none of that name."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}
