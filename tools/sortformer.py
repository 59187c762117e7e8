"""The configuration of a streaming Sortformer diarizer (FastConformer encoder, transformer encoder, speaker cache) in any size.

The values are those of NVIDIA's streaming Sortformer for four speakers; only `Sizes` differs.
"""

from dataclasses import dataclass
from typing import Any

from tools.fastconformer import MODULES, SAMPLE_RATE, encoder, preprocessor

MAX_SPEAKERS = 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes in which models of this architecture differ. Lengths of the streaming are in frames of 80 ms."""

    width: int
    layers: int
    heads: int
    subsampling_channels: int
    feed_forward_factor: int
    transformer_width: int
    transformer_layers: int
    transformer_heads: int
    mel_features: int = 128
    dropout: float = 0.1
    transformer_dropout: float = 0.5
    pre_layer_norm: bool = False
    chunk_len: int = 188
    chunk_left_context: int = 1
    chunk_right_context: int = 1
    fifo_len: int = 0
    spkcache_len: int = 188
    spkcache_update_period: int = 188


VOICES = Sizes(
    width=96, layers=3, heads=4, subsampling_channels=32, feed_forward_factor=2,
    transformer_width=96, transformer_layers=3, transformer_heads=4,
    mel_features=80, dropout=0.05, transformer_dropout=0.05, pre_layer_norm=True,
    chunk_len=125, chunk_left_context=1, chunk_right_context=6, fifo_len=63, spkcache_len=140, spkcache_update_period=125,
)  # fmt: skip
"""The bundled model."""

SORTFORMER_4SPK = Sizes(
    width=512, layers=17, heads=8, subsampling_channels=256, feed_forward_factor=4,
    transformer_width=192, transformer_layers=18, transformer_heads=8,
)  # fmt: skip
"""diar_streaming_sortformer_4spk-v2."""


def config(sizes: Sizes) -> dict[str, Any]:
    """The configuration for `SortformerEncLabelModel`."""
    return {
        "sample_rate": SAMPLE_RATE,
        "pil_weight": 0.5,
        "ats_weight": 0.5,
        "max_num_of_spks": MAX_SPEAKERS,
        "streaming_mode": True,
        "async_streaming": False,
        "model_defaults": {"fc_d_model": sizes.width, "tf_d_model": sizes.transformer_width},
        "train_ds": None,
        "validation_ds": None,
        "test_ds": None,
        # No statistics over the recording: a chunk has to have the same features wherever and whenever it is diarized.
        "preprocessor": preprocessor(sizes.mel_features, normalize="NA"),
        "sortformer_modules": {
            "_target_": MODULES + "sortformer_modules.SortformerModules",
            "num_spks": MAX_SPEAKERS,
            "dropout_rate": sizes.transformer_dropout,
            "fc_d_model": sizes.width,
            "tf_d_model": sizes.transformer_width,
            "subsampling_factor": 8,
            "chunk_len": sizes.chunk_len,
            "chunk_left_context": sizes.chunk_left_context,
            "chunk_right_context": sizes.chunk_right_context,
            "fifo_len": sizes.fifo_len,
            "spkcache_len": sizes.spkcache_len,
            "spkcache_update_period": sizes.spkcache_update_period,
            "spkcache_sil_frames_per_spk": 3,
        },
        "encoder": encoder(sizes, sizes.dropout, ff_expansion_factor=sizes.feed_forward_factor, xscaling=True),
        "transformer_encoder": {
            "_target_": MODULES + "transformer.transformer_encoders.TransformerEncoder",
            "num_layers": sizes.transformer_layers,
            "hidden_size": sizes.transformer_width,
            "inner_size": 4 * sizes.transformer_width,
            "num_attention_heads": sizes.transformer_heads,
            "attn_score_dropout": sizes.transformer_dropout,
            "attn_layer_dropout": sizes.transformer_dropout,
            "ffn_dropout": sizes.transformer_dropout,
            "hidden_act": "relu",
            "pre_ln": sizes.pre_layer_norm,
            "pre_ln_final_layer_norm": True,
        },
        "loss": {"_target_": "nemo.collections.asr.losses.bce_loss.BCELoss", "weight": None, "reduction": "mean"},
        "optim": {"name": "adamw", "lr": 1e-4},
    }
