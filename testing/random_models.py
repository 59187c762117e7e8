"""Models of every family with random weights, small unless told: what they recognise is nonsense, but the same by every way."""

import copy
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve_app.model_source import bundled_model_path
from tools.fastconformer_tdt import Sizes, config, hybrid_config
from tools.sortformer import Sizes as SortformerSizes
from tools.sortformer import config as sortformer_config

SIZES = Sizes(width=48, layers=2, heads=4, subsampling_channels=16, predictor_width=40, predictor_layers=1, joint_width=40)
SCORE_SPREAD, BLANK_SCORE = 3.0, 5.0
"""Standard deviation of the scores of a token over all frames, and the mean score of blank, where those of tokens are 0."""

HEAD: dict[str, Any] = {
    "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
    "feat_in": None,
    "num_classes": -1,
    "vocabulary": [],
}


def tokenizer_folder(folder: Path) -> Path:
    """The tokenizer of the bundled model, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(bundled_model_path()) as archive:
        for member in archive.getmembers():
            for name in ("tokenizer.model", "tokenizer.vocab", "vocab.txt"):
                if member.name.endswith(name) and (file := archive.extractfile(member)) is not None:
                    (folder / name).write_bytes(file.read())
    return folder


def rnnt_config(sizes: Sizes, tokenizer: Path) -> dict[str, Any]:
    """The configuration for `EncDecRNNTBPEModel` as a transducer without durations."""
    return without_durations(config(sizes, tokenizer))


def hybrid_rnnt_config(sizes: Sizes, tokenizer: Path) -> dict[str, Any]:
    """The same with a CTC head beside it, for `EncDecHybridRNNTCTCBPEModel`."""
    return without_durations(hybrid_config(sizes, tokenizer))


def without_durations(of_tdt: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(of_tdt)
    for name in ("tdt_durations", "num_tdt_durations"):
        del changed["model_defaults"][name]
    del changed["joint"]["num_extra_outputs"]
    changed["decoding"] = {"strategy": "greedy_batch", "greedy": {"max_symbols": 10}, "beam": changed["decoding"]["beam"]}
    changed["loss"] = {"loss_name": "default"}
    return changed


def ctc_config(sizes: Sizes, tokenizer: Path) -> dict[str, Any]:
    """The configuration for `EncDecCTCModelBPE`: the same encoder below a CTC head."""
    changed = copy.deepcopy(config(sizes, tokenizer))
    for name in ("model_defaults", "joint", "loss"):
        del changed[name]
    return changed | {"decoder": {**HEAD, "feat_in": sizes.width}, "decoding": {"strategy": "greedy"}}


FAMILIES: dict[str, tuple[str, Callable[[Sizes, Path], dict[str, Any]]]] = {
    "tdt": ("EncDecRNNTBPEModel", config),
    "rnnt": ("EncDecRNNTBPEModel", rnnt_config),
    "ctc": ("EncDecCTCModelBPE", ctc_config),
    "tdt_ctc": ("EncDecHybridRNNTCTCBPEModel", hybrid_config),
    "rnnt_ctc": ("EncDecHybridRNNTCTCBPEModel", hybrid_rnnt_config),
}
"""By name: NeMo's class, and what makes its configuration."""


def save_random_model(
    family: str,
    path: Path,
    *,
    sizes: Sizes = SIZES,
    blank_score: float = BLANK_SCORE,
    kind: str = "",
    change: Callable[[dict[str, Any]], None] = lambda _: None,
) -> None:
    """Make a model, after `change` to its configuration, and save it as a `.nemo` file. `kind`: another class of NeMo."""
    import torch
    from nemo.collections.asr import models
    from omegaconf import OmegaConf

    usual_kind, make_config = FAMILIES[family]
    configuration = make_config(sizes, tokenizer_folder(path.parent / "tokenizer"))
    change(configuration)
    torch.manual_seed(0)
    model = getattr(models, kind or usual_kind)(cfg=OmegaConf.create(configuration)).eval()
    with torch.no_grad():
        _vary_tokens(model, blank_score)
    model.save_to(str(path))


def _vary_tokens(model: Any, blank_score: float) -> None:
    """Have each head choose other tokens at other frames, and blank at many. Untrained, it chooses one token for all."""
    import torch

    noise = 0.1 * torch.randn(4, 80_000)
    features, lengths = model.preprocessor(input_signal=noise, length=torch.full((4,), noise.shape[1]))
    encoded, _ = model.encoder(audio_signal=features, length=lengths)
    for name in ("joint", "decoder", "ctc_decoder"):
        head: Any = getattr(model, name, None)
        if hasattr(head, "joint_net"):
            tokens = torch.randint(0, head.num_classes_with_blank - head.num_extra_outputs - 1, (4, 8))
            predicted, _ = model.decoder.predict(tokens, state=None, add_sos=True)
            _spread(head.enc, encoded.mT, 1.0)
            _spread(head.pred, predicted, 0.5)
            sums = head.project_encoder(encoded.mT)[:, :, None] + head.project_prednet(predicted)[:, None]
            _spread(head.joint_net[-1], head.joint_net[:-1](sums), SCORE_SPREAD)
            head.joint_net[-1].bias[-1 - head.num_extra_outputs] += blank_score
        elif hasattr(head, "decoder_layers"):
            _spread(head.decoder_layers[0], encoded.mT, SCORE_SPREAD)
            head.decoder_layers[0].bias[-1] += blank_score


def _spread(layer: Any, inputs: Any, deviation: float) -> None:
    """Give the outputs of a linear layer for these inputs, float [..., features], mean 0 and the standard deviation."""
    weight, inputs = layer.weight.view(len(layer.weight), -1), inputs.flatten(0, -2)
    weight *= deviation / (inputs @ weight.T).std(0).mean()
    layer.bias.copy_(-(weight @ inputs.mean(0)))


SMALL_SORTFORMER = SortformerSizes(
    width=32, layers=2, heads=4, subsampling_channels=16, feed_forward_factor=2,
    transformer_width=24, transformer_layers=2, transformer_heads=4,
    mel_features=40, chunk_len=20, chunk_left_context=1, chunk_right_context=3, fifo_len=25, spkcache_len=32,
    spkcache_update_period=20,
)  # fmt: skip


def save_random_sortformer(path: Path, sizes: SortformerSizes = SMALL_SORTFORMER) -> Path:
    """A diarizer whose probabilities are of all sizes, so that its speaker cache fills."""
    import torch
    from nemo.collections.asr.models import SortformerEncLabelModel
    from omegaconf import OmegaConf

    torch.manual_seed(0)
    model = SortformerEncLabelModel(cfg=OmegaConf.create(sortformer_config(sizes))).eval()
    with torch.no_grad():
        features, lengths = model.preprocessor(input_signal=0.1 * torch.randn(4, 80_000), length=torch.full((4,), 80_000))
        embedded, counts = model.frontend_encoder(features, lengths)
        mask = model.sortformer_modules.length_to_mask(counts, embedded.shape[1])
        hidden = model.transformer_encoder(encoder_states=embedded, encoder_mask=mask).relu()
        _spread(model.sortformer_modules.first_hidden_to_hidden, hidden, 1.0)
        hidden = model.sortformer_modules.first_hidden_to_hidden(hidden).relu()
        _spread(model.sortformer_modules.single_hidden_to_spks, hidden, SCORE_SPREAD)
    model.save_to(str(path))
    return path
