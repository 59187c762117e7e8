"""What a `.nemo` file is: files that are served, files that are refused by name, and damaged ones."""

import gzip
import io
import tarfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.engine import checkpoints
from serve_app.engine.checkpoints import read_family
from serve_app.errors import ModelUnavailable
from serve_app.model_source import bundled_model_path
from tools.fastconformer_tdt import PARAKEET_0_6B, PARAKEET_110M, config, hybrid_config

ASR = "nemo.collections.asr.models."
RNNT, CTC = ASR + "rnnt_bpe_models.EncDecRNNTBPEModel", ASR + "ctc_bpe_models.EncDecCTCModelBPE"
HYBRID = ASR + "hybrid_rnnt_ctc_bpe_models.EncDecHybridRNNTCTCBPEModel"
VOCABULARY = [f"piece{n}" for n in range(1024)]


def tdt() -> dict[str, Any]:
    """The configuration of a file of parakeet-tdt-0.6b-v2."""
    saved = config(PARAKEET_0_6B, Path("tokenizer"))
    saved["joint"] |= {"vocabulary": VOCABULARY, "num_classes": len(VOCABULARY)}
    return saved | {"target": RNNT}


def rnnt(**encoder: Any) -> dict[str, Any]:
    saved = deepcopy(tdt())
    del saved["joint"]["num_extra_outputs"]
    saved["encoder"] |= encoder
    return saved | {"decoding": {"strategy": "greedy_batch"}, "loss": {"loss_name": "default"}}


def ctc() -> dict[str, Any]:
    saved = tdt() | {"target": CTC, "decoding": {"strategy": "greedy"}}
    del saved["joint"], saved["loss"]
    decoder = {"_target_": "nemo.collections.asr.modules.ConvASRDecoder", "num_classes": 1024, "vocabulary": VOCABULARY}
    return saved | {"decoder": decoder}


def hybrid() -> dict[str, Any]:
    saved = hybrid_config(PARAKEET_110M, Path("tokenizer"))
    saved["joint"] |= {"vocabulary": VOCABULARY}
    return saved | {"target": HYBRID}


WEIGHTS = 5000
"""Bytes of the weights in the files of `packed`."""


def packed(path: Path, saved: Any, *, name: str = "./model_config.yaml", mode: str = "w") -> Path:
    """A `.nemo` file: a configuration between two members with weights."""
    members = (("./a.ckpt", b"x" * WEIGHTS), (name, yaml.safe_dump(saved).encode()), ("./b.ckpt", b"x" * WEIGHTS))
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member, content in members:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.nemo"


def test_the_bundled_model() -> None:
    assert read_family(bundled_model_path()) == "tdt"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize(
    ("saved", "family"),
    [
        (tdt(), "tdt"),
        (rnnt(), "rnnt"),
        (ctc(), "ctc"),
        (hybrid(), "hybrid_tdt_ctc"),
        (hybrid() | {"decoding": {}, "loss": {}}, "hybrid_rnnt_ctc"),
    ],
    ids=["tdt", "rnnt", "ctc", "hybrid_tdt_ctc", "hybrid_rnnt_ctc"],
)
def test_families(path: Path, saved: dict[str, Any], family: str, mode: str) -> None:
    assert read_family(packed(path, saved, mode=mode)) == family


def test_durations_in_the_loss_alone(path: Path) -> None:
    saved = rnnt() | {"loss": {"loss_name": "tdt", "tdt_kwargs": {"durations": [0, 1, 2]}}}
    assert read_family(packed(path, saved)) == "tdt"


def test_a_vocabulary_that_is_not_stated(path: Path) -> None:
    """NeMo reads it from the tokenizer."""
    saved = tdt()
    for name in ("vocabulary", "num_classes"):
        del saved["joint"][name]
    assert read_family(packed(path, saved)) == "tdt"


def test_window_stride_in_samples(path: Path) -> None:
    saved = rnnt() | {"preprocessor": {"sample_rate": 16_000, "n_window_stride": 160}}
    assert read_family(packed(path, saved)) == "rnnt"
    saved["preprocessor"]["n_window_stride"] = 320
    with pytest.raises(ModelUnavailable, match=r"160 ms \(8 times 320 samples\)"):
        read_family(packed(path, saved))


def test_reduction_of_the_frame_rate(path: Path) -> None:
    saved = rnnt(reduction="striding", reduction_position=-1, reduction_factor=2)
    with pytest.raises(ModelUnavailable, match="160 ms"):
        read_family(packed(path, saved))


@pytest.mark.parametrize(
    "encoder",
    [
        # parakeet-unified-en-0.6b
        {
            "att_context_size": [-1, -1],
            "att_context_style": "chunked_limited_with_rc",
            "att_chunk_context_size": [[70], [1, 2, 7, 13], [0, 1, 2, 3, 4, 7, 13]],
            "conv_context_style": "dcc",
        },
        {"self_attention_model": "rel_pos_local_attn", "att_context_size": [256, 256]},
        {"att_context_size": [[-1, -1], [70, 13]]},
        {"conv_context_size": [4, 4]},
    ],
)
def test_other_contexts_are_served(path: Path, encoder: dict[str, Any]) -> None:
    assert read_family(packed(path, rnnt(**encoder))) == "rnnt"


@pytest.mark.parametrize(
    "encoder",
    [
        {
            "att_context_size": [70, 13],
            "att_context_style": "chunked_limited",
            "conv_context_size": "causal",
            "causal_downsampling": True,
        },
        {"att_context_size": [[70, 13], [70, 0]], "att_context_style": "chunked_limited"},
        {"causal_downsampling": True},
        {"conv_context_size": "causal"},
        {"conv_context_size": [8, 0]},
    ],
)
def test_cache_aware_models_are_refused(path: Path, encoder: dict[str, Any]) -> None:
    with pytest.raises(ModelUnavailable, match=f"{path} cannot be served: it is a cache-aware streaming model"):
        read_family(packed(path, rnnt(**encoder)))


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("aed_multitask_models.EncDecMultiTaskModel", "an attention encoder-decoder such as Canary"),
        ("rnnt_bpe_models_prompt.EncDecRNNTBPEModelWithPrompt", "a recogniser that needs a prompt"),
        ("hybrid_rnnt_ctc_bpe_models_prompt.EncDecHybridRNNTCTCBPEModelWithPrompt", "a recogniser that needs a prompt"),
        ("asr_eou_models.EncDecRNNTBPEEOUModel", "the end of an utterance"),
        ("multitalker_asr_models.EncDecMultiTalkerRNNTBPEModel", "one of several speakers"),
        ("transformer_bpe_models.EncDecTransfModelBPE", "an attention encoder-decoder"),
        ("sortformer_diar_models.SortformerEncLabelModel", "a diarization model"),
        ("label_models.EncDecDiarLabelModel", "a diarization model"),
        ("label_models.EncDecSpeakerLabelModel", "a speaker recognition model"),
        ("classification_models.EncDecFrameClassificationModel", "a classification model"),
        ("ssl_models.SpeechEncDecSelfSupervisedModel", "an encoder without a decoder"),
        ("rnnt_models.EncDecRNNTModel", "a character model"),
        ("ctc_models.EncDecCTCModel", "a character model"),
        ("hybrid_rnnt_ctc_models.EncDecHybridRNNTCTCModel", "a character model"),
        ("nemo.collections.speechlm2.models.salm.SALM", "a speech language model"),
        ("nemo.collections.tts.models.FastPitchModel", "no speech recogniser that this server knows"),
    ],
)
def test_other_models_are_refused_by_name(path: Path, target: str, reason: str) -> None:
    saved = {"target": target if target.startswith("nemo.") else ASR + target}
    with pytest.raises(ModelUnavailable, match=rf"{path} cannot be served: it is .*{reason}.*\(`{target.rpartition('.')[2]}`\)"):
        read_family(packed(path, saved))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target": None}, "names no class"),
        ({"encoder": {"_target_": "nemo.collections.asr.modules.ConvASREncoder"}}, "its encoder is `ConvASREncoder`"),
        ({"tokenizer": {"type": "wpe"}}, "its tokenizer is a WordPiece one"),
        ({"preprocessor": {"sample_rate": 8000, "window_stride": 0.01}}, "it takes audio at 8000 Hz"),
        ({"preprocessor": {}}, "does not state sample rate and window stride"),
        ({"decoding": {"big_blank_durations": [2, 4]}}, "a multi-blank transducer"),
        (rnnt(subsampling_factor=None), "does not state its subsampling factor"),
    ],
)
def test_models_that_cannot_be_served(path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelUnavailable, match=f"{path} cannot be served: .*{reason}"):
        read_family(packed(path, tdt() | change))


def test_archive_without_a_configuration(path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"has no model_config\.yaml"):
        read_family(packed(path, {}, name="./config.json"))


@pytest.mark.parametrize(("saved", "reason"), [(["a"], "no mapping"), ("a", "no mapping")])
def test_configuration_of_another_form(path: Path, saved: Any, reason: str) -> None:
    with pytest.raises(ModelUnavailable, match=reason):
        read_family(packed(path, saved))


@pytest.mark.parametrize("content", [b"target: [", b"\xff\xfe\x00", b"a: !!python/object:os.system {}"])
def test_configuration_that_is_no_yaml(path: Path, content: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("model_config.yaml")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    with pytest.raises(ModelUnavailable, match="is no YAML"):
        read_family(path)


def test_configuration_that_is_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "MAX_CONFIG_BYTES", 100)
    with pytest.raises(ModelUnavailable, match="too large"):
        read_family(packed(path, tdt()))


@pytest.mark.parametrize("kept", [0, 1, 100, 512, 5000, 6000, 8000])
@pytest.mark.parametrize("compressed", [False, True], ids=["tar", "gzip"])
def test_truncated_file(path: Path, kept: int, compressed: bool) -> None:
    content = packed(path, tdt()).read_bytes()
    path.write_bytes((gzip.compress(content, 0) if compressed else content)[:kept])
    with pytest.raises(ModelUnavailable, match=f"{path} is (damaged|not a model of NeMo)"):
        read_family(path)


def test_weights_that_are_truncated_after_the_configuration(path: Path) -> None:
    content = packed(path, tdt()).read_bytes()
    path.write_bytes(content[: content.index(b"x" * WEIGHTS, 10_000) + WEIGHTS // 2])
    with pytest.raises(ModelUnavailable, match="is damaged"):
        read_family(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + b"x" * 2000, b"<html>not found</html>", b"\x1f\x8b" + b"x" * 2000])
def test_file_that_is_no_archive(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ModelUnavailable, match=f"{path} is damaged"):
        read_family(path)


def test_missing_file(path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="No such file"):
        read_family(path)
