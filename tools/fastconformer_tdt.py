"""The configuration of a Parakeet TDT model (FastConformer encoder, token-and-duration transducer) in any size.

The values are those that NVIDIA publishes with parakeet-tdt-0.6b-v2 and parakeet-tdt_ctc-110m; only `Sizes` differs between them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.fastconformer import MODULES, SAMPLE_RATE, encoder, preprocessor

DURATIONS = (0, 1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes in which models of this architecture differ."""

    width: int
    layers: int
    heads: int
    subsampling_channels: int
    predictor_width: int
    predictor_layers: int
    joint_width: int
    mel_features: int = 128


DIGITS = Sizes(width=96, layers=4, heads=4, subsampling_channels=32, predictor_width=96, predictor_layers=1, joint_width=96)
PARAKEET_0_6B = Sizes(
    width=1024, layers=24, heads=8, subsampling_channels=256, predictor_width=640, predictor_layers=2, joint_width=640
)
PARAKEET_110M = Sizes(
    width=512,
    layers=17,
    heads=8,
    subsampling_channels=256,
    predictor_width=640,
    predictor_layers=1,
    joint_width=640,
    mel_features=80,
)


def config(sizes: Sizes, tokenizer: Path) -> dict[str, Any]:
    """The configuration for `EncDecRNNTBPEModel`; `tokenizer` is a folder with a SentencePiece model and its vocab.txt."""
    durations = list(DURATIONS)
    # Without a data section, NeMo's `transcribe()` refuses paths.
    data = {"manifest_filepath": None, "sample_rate": SAMPLE_RATE, "batch_size": 8, "shuffle": False}
    return {
        "sample_rate": SAMPLE_RATE,
        "compute_eval_loss": False,
        "log_prediction": False,
        "skip_nan_grad": False,
        "train_ds": None,
        "validation_ds": data,
        "test_ds": data,
        "model_defaults": {
            "enc_hidden": sizes.width,
            "pred_hidden": sizes.predictor_width,
            "joint_hidden": sizes.joint_width,
            "tdt_durations": durations,
            "num_tdt_durations": len(durations),
        },
        "tokenizer": {"dir": str(tokenizer), "type": "bpe"},
        "preprocessor": preprocessor(sizes.mel_features, normalize="per_feature"),
        "spec_augment": {
            "_target_": MODULES + "SpectrogramAugmentation",
            "freq_masks": 2,
            "time_masks": 2,
            "freq_width": 20,
            "time_width": 0.02,
        },
        "encoder": encoder(
            sizes,
            dropout=0.1,
            ff_expansion_factor=4,
            use_bias=False,
            xscaling=False,
            reduction=None,
            reduction_position=None,
            reduction_factor=1,
        ),
        "decoder": {
            "_target_": MODULES + "RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "prednet": {
                "pred_hidden": sizes.predictor_width,
                "pred_rnn_layers": sizes.predictor_layers,
                "t_max": None,
                "dropout": 0.2,
            },
        },
        "joint": {
            "_target_": MODULES + "RNNTJoint",
            "log_softmax": None,
            "preserve_memory": False,
            "fuse_loss_wer": False,
            "fused_batch_size": -1,
            "jointnet": {"joint_hidden": sizes.joint_width, "activation": "relu", "dropout": 0.2},
            "num_extra_outputs": len(durations),
        },
        "decoding": {
            "strategy": "greedy_batch",
            "model_type": "tdt",
            "durations": durations,
            "greedy": {"max_symbols": 10},
            "beam": {"beam_size": 2, "return_best_hypothesis": False},
        },
        "loss": {"loss_name": "tdt_pytorch", "tdt_pytorch_kwargs": {"durations": durations, "sigma": 0.02}},
        "optim": {"name": "adamw", "lr": 1e-3},
    }


def hybrid_config(sizes: Sizes, tokenizer: Path) -> dict[str, Any]:
    """The configuration for `EncDecHybridRNNTCTCBPEModel`: the same model with a CTC head beside the transducer."""
    head: dict[str, Any] = {"_target_": MODULES + "ConvASRDecoder", "feat_in": None, "num_classes": -1, "vocabulary": []}
    return config(sizes, tokenizer) | {
        "aux_ctc": {
            "ctc_loss_weight": 0.3,
            "use_cer": False,
            "ctc_reduction": "mean_batch",
            "decoder": head,
            "decoding": {"strategy": "greedy"},
        }
    }
