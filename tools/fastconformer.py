"""What the configurations of NeMo's FastConformer models have in common, whatever follows the encoder."""

from typing import Any, Protocol

SAMPLE_RATE = 16_000
MODULES = "nemo.collections.asr.modules."


class EncoderSizes(Protocol):
    """The sizes in which encoders differ."""

    @property
    def width(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def subsampling_channels(self) -> int: ...
    @property
    def mel_features(self) -> int: ...


def preprocessor(mel_features: int, normalize: str) -> dict[str, Any]:
    """The section `preprocessor`."""
    return {
        "_target_": MODULES + "AudioToMelSpectrogramPreprocessor",
        "sample_rate": SAMPLE_RATE,
        "normalize": normalize,
        "window_size": 0.025,
        "window_stride": 0.01,
        "window": "hann",
        "features": mel_features,
        "n_fft": 512,
        "frame_splicing": 1,
        "dither": 1e-5,
        "pad_to": 0,
        "log": True,
    }


def encoder(sizes: EncoderSizes, dropout: float, **others: Any) -> dict[str, Any]:
    """The section `encoder`, with the values in which families of models differ."""
    return {
        "_target_": MODULES + "ConformerEncoder",
        "feat_in": sizes.mel_features,
        "feat_out": -1,
        "n_layers": sizes.layers,
        "d_model": sizes.width,
        "subsampling": "dw_striding",
        "subsampling_factor": 8,
        "subsampling_conv_channels": sizes.subsampling_channels,
        "causal_downsampling": False,
        "self_attention_model": "rel_pos",
        "n_heads": sizes.heads,
        "att_context_size": [-1, -1],
        "att_context_style": "regular",
        "untie_biases": True,
        "pos_emb_max_len": 5000,
        "conv_kernel_size": 9,
        "conv_norm_type": "batch_norm",
        "conv_context_size": None,
        "dropout": dropout,
        "dropout_pre_encoder": dropout,
        "dropout_emb": 0.0,
        "dropout_att": dropout,
        "stochastic_depth_drop_prob": 0.0,
        "stochastic_depth_mode": "linear",
        "stochastic_depth_start_layer": 1,
        **others,
    }
