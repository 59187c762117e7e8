"""The configuration of a Parakeet TDT model (FastConformer encoder, token-and-duration transducer) in any size.

The values are those that NVIDIA publishes with parakeet-tdt-0.6b-v2 and parakeet-tdt_ctc-110m; only `Sizes` differs between them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLE_RATE = 16_000
DURATIONS = (0, 1, 2, 3, 4)
_MODULES = "nemo.collections.asr.modules."


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
        "preprocessor": {
            "_target_": _MODULES + "AudioToMelSpectrogramPreprocessor",
            "sample_rate": SAMPLE_RATE,
            "normalize": "per_feature",
            "window_size": 0.025,
            "window_stride": 0.01,
            "window": "hann",
            "features": sizes.mel_features,
            "n_fft": 512,
            "frame_splicing": 1,
            "dither": 1e-5,
            "pad_to": 0,
            "log": True,
        },
        "spec_augment": {
            "_target_": _MODULES + "SpectrogramAugmentation",
            "freq_masks": 2,
            "time_masks": 2,
            "freq_width": 20,
            "time_width": 0.02,
        },
        "encoder": {
            "_target_": _MODULES + "ConformerEncoder",
            "feat_in": sizes.mel_features,
            "feat_out": -1,
            "n_layers": sizes.layers,
            "d_model": sizes.width,
            "use_bias": False,
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": sizes.subsampling_channels,
            "causal_downsampling": False,
            "reduction": None,
            "reduction_position": None,
            "reduction_factor": 1,
            "ff_expansion_factor": 4,
            "self_attention_model": "rel_pos",
            "n_heads": sizes.heads,
            "att_context_size": [-1, -1],
            "att_context_style": "regular",
            "xscaling": False,
            "untie_biases": True,
            "pos_emb_max_len": 5000,
            "conv_kernel_size": 9,
            "conv_norm_type": "batch_norm",
            "conv_context_size": None,
            "dropout": 0.1,
            "dropout_pre_encoder": 0.1,
            "dropout_emb": 0.0,
            "dropout_att": 0.1,
            "stochastic_depth_drop_prob": 0.0,
            "stochastic_depth_mode": "linear",
            "stochastic_depth_start_layer": 1,
        },
        "decoder": {
            "_target_": _MODULES + "RNNTDecoder",
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
            "_target_": _MODULES + "RNNTJoint",
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
    head: dict[str, Any] = {"_target_": _MODULES + "ConvASRDecoder", "feat_in": None, "num_classes": -1, "vocabulary": []}
    return config(sizes, tokenizer) | {
        "aux_ctc": {
            "ctc_loss_weight": 0.3,
            "use_cer": False,
            "ctc_reduction": "mean_batch",
            "decoder": head,
            "decoding": {"strategy": "greedy"},
        }
    }
