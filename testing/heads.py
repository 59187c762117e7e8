"""Small models of the other families, as real `.nemo` files: the bundled model's encoder with other heads.

The heads are in tests/data/heads/; `python -m tools.train_heads` trains them. The configurations have the keys that NVIDIA
publishes with parakeet-rnnt-0.6b, parakeet-ctc-0.6b and parakeet-tdt_ctc-110m, in the sizes of the bundled model.
"""

import tarfile
from pathlib import Path
from typing import Any, Literal, get_args

from serve_app.model_source import bundled_model_path
from testing.paths import DATA

Family = Literal["rnnt", "ctc", "hybrid_rnnt_ctc", "hybrid_tdt_ctc"]
FAMILIES: tuple[Family, ...] = get_args(Family)
HEADS = DATA / "heads"

LSTM_WIDTH = 96
"""Width of the CTC head. The published models have a single linear layer there; on an encoder that was not trained with it, that
gets one word in five wrong."""


def nemo_file(family: Family, folder: Path) -> Path:
    """The `.nemo` file of a family in `folder`, which is made if it does not exist yet; takes a few seconds."""
    path = folder / f"digits-{family}.nemo"
    if not path.exists():
        model = untrained(family, folder)
        for name, head in heads_of(model).items():
            head.load_state_dict(load_head(name))
        model.save_to(str(path))
    return path


def untrained(family: Family, folder: Path) -> Any:
    """A NeMo model with the weights of the bundled encoder, and random ones in its new heads.

    The tokenizer is unpacked into `folder`, where NeMo reads it again when the model is saved. The heads of `hybrid_tdt_ctc` are
    the bundled transducer and a CTC head.
    """
    from nemo.collections.asr import models

    bundled = models.EncDecRNNTBPEModel.restore_from(str(bundled_model_path()), map_location="cpu")
    kinds = {"rnnt": models.EncDecRNNTBPEModel, "ctc": models.EncDecCTCModelBPE}
    model = kinds.get(family, models.EncDecHybridRNNTCTCBPEModel)(cfg=_config(family, bundled.cfg, folder / "tokenizer"))
    model.encoder.load_state_dict(bundled.encoder.state_dict())
    if family == "hybrid_tdt_ctc":
        model.decoder.load_state_dict(bundled.decoder.state_dict())
        model.joint.load_state_dict(bundled.joint.state_dict())
    model.eval()
    return model


def heads_of(model: Any) -> dict[str, Any]:
    """The modules of a model that were trained here, by the name of their file in HEADS."""
    import torch

    has_transducer, is_tdt = hasattr(model, "joint"), bool(model.cfg.get("joint", {}).get("num_extra_outputs"))
    heads: dict[str, Any] = {}
    if has_transducer and not is_tdt:
        heads["rnnt"] = torch.nn.ModuleDict({"decoder": model.decoder, "joint": model.joint})
    if hasattr(model, "ctc_decoder"):
        heads["ctc"] = model.ctc_decoder
    elif not has_transducer:
        heads["ctc"] = model.decoder
    return heads


def load_head(name: str) -> dict[str, Any]:
    """The weights of a head, float32 by parameter."""
    import torch

    return {key: value.float() for key, value in torch.load(HEADS / f"{name}.pt", weights_only=True).items()}


def save_head(name: str, head: Any) -> None:
    """Write the weights of a head in half precision."""
    import torch

    torch.save({key: value.half() for key, value in head.state_dict().items()}, HEADS / f"{name}.pt")


def _config(family: Family, bundled: Any, tokenizer: Path) -> Any:
    from omegaconf import OmegaConf

    _unpack_tokenizer(tokenizer)
    config = OmegaConf.to_container(bundled)
    assert isinstance(config, dict)
    del config["target"]  # NeMo notes the class of a model when it is made
    config["tokenizer"] = {"dir": str(tokenizer), "type": "bpe"}
    ctc_head: dict[str, Any] = {
        "_target_": "nemo.collections.asr.modules.LSTMDecoder",
        "lstm_hidden_size": LSTM_WIDTH,
        "feat_in": None,
        "num_classes": -1,
        "vocabulary": [],
    }
    if family in ("rnnt", "hybrid_rnnt_ctc"):
        defaults = config["model_defaults"]
        config["model_defaults"] = {key: value for key, value in defaults.items() if "tdt" not in key}
        del config["joint"]["num_extra_outputs"]
        config["decoding"] = {"strategy": "greedy_batch", "greedy": {"max_symbols": 10}, "beam": config["decoding"]["beam"]}
        config["loss"] = {"loss_name": "default", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.0, "clamp": -1.0}}
    if family == "ctc":
        for key in ("model_defaults", "joint", "loss"):
            del config[key]
        config |= {"ctc_reduction": "mean_batch", "decoder": ctc_head, "decoding": {"strategy": "greedy"}}
    if family.startswith("hybrid"):
        config["aux_ctc"] = {
            "ctc_loss_weight": 0.3,
            "use_cer": False,
            "ctc_reduction": "mean_batch",
            "decoder": ctc_head,
            "decoding": {"strategy": "greedy"},
        }
    return OmegaConf.create(config)


def _unpack_tokenizer(folder: Path) -> None:
    """The tokenizer of the bundled model as NeMo wants it: tokenizer.model, tokenizer.vocab and vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(bundled_model_path()) as archive:
        for member in archive:
            _, underscore, name = member.name.rpartition("_")
            if underscore and name in ("tokenizer.model", "tokenizer.vocab", "vocab.txt"):
                content = archive.extractfile(member)
                assert content is not None
                (folder / name).write_bytes(content.read())
