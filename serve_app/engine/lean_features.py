"""The features of NeMo's `AudioToMelSpectrogramPreprocessor`, for inference, in less time."""

from typing import Any

import torch
import torch.nn.functional as F
from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor
from nemo.collections.asr.parts.preprocessing.features import CONSTANT, FilterbankFeatures
from torch import Tensor, nn

from serve_app.engine.lean_modules import PackedLinear, linear, require, zero_padding

FRAMES_PER_BLOCK = 2048
"""STFT frames that a CPU takes through spectrum and filterbank at once: their spectra stay in its cache."""


class LeanFeatures(nn.Module):
    """Log mel features, normalised by window and feature. Frames are rows, so that every step runs along memory; the result is a
    view of NeMo's layout."""

    def __init__(self, stock: Any) -> None:
        """Raises Unsuitable for a preprocessor of another kind or with another configuration."""
        super().__init__()
        require(type(stock) is AudioToMelSpectrogramPreprocessor, "the preprocessor is another one")
        featurizer = stock.featurizer
        require(type(featurizer) is FilterbankFeatures, "the featurizer is another one")
        require(stock.dtype_sentinel_tensor.dtype == torch.float32, "the features are not fp32")
        require(not featurizer.training and featurizer.dither == 0, "there is dither")
        require(featurizer.nb_augmentation_prob == 0 and not featurizer.use_grads, "the featurizer is set up for training")
        require(not featurizer.exact_pad and featurizer.n_fft % 2 == 0, "the STFT's frames are not centred")
        require(featurizer.window is not None, "there is no window")
        require(featurizer.mag_power in (1.0, 2.0), "the spectrum's power is neither 1 nor 2")
        require(bool(featurizer.log), "there is no logarithm")
        require(featurizer.frame_splicing == 1, "frames are spliced")
        require(featurizer.normalize == "per_feature", "the normalisation is not by feature")
        require(featurizer.pad_to == 0 and featurizer.pad_value == 0, "the features are padded")
        self._hop, self._size = int(featurizer.hop_length), int(featurizer.n_fft)
        self._preemphasis = float(featurizer.preemph or 0.0)
        self._is_power = featurizer.mag_power == 2.0
        self._guard = float(featurizer.log_zero_guard_value_fn(featurizer.fb))
        self._clamps = featurizer.log_zero_guard_type == "clamp"
        margin = self._size - len(featurizer.window)
        self._window: Tensor
        self.register_buffer("_window", F.pad(featurizer.window.float(), (margin // 2, margin - margin // 2)), persistent=False)
        mels = linear(featurizer.fb[0].float().contiguous(), None)
        self._mels = mels if featurizer.fb.is_cuda else PackedLinear(mels)

    def forward(self, input_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """`input_signal`: float32 [windows, samples]; `length`: samples of each window. Returns [windows, features, frames], in
        which padding is zero, and the frames of each window."""
        frames = self._frames(input_signal, length)
        step = frames.size(1) if frames.is_cuda else max(1, FRAMES_PER_BLOCK // len(frames))
        blocks = [self._log_mels(block) for block in torch.split(frames, step, dim=1)]
        counts = length // self._hop
        return self._normalised(torch.cat(blocks, dim=1), counts).transpose(1, 2), counts

    def _frames(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """A view [windows, frames, size] of the audio after pre-emphasis, each frame centred on a multiple of the hop."""
        windows, samples = audio.shape
        padded = audio.new_zeros(windows, samples + self._size)
        signal = padded[:, self._size // 2 :][:, :samples]
        signal[:, 0] = audio[:, 0]
        torch.sub(audio[:, 1:], audio[:, :-1], alpha=self._preemphasis, out=signal[:, 1:])
        zero_padding(signal, lengths)
        return padded.as_strided((windows, samples // self._hop + 1, self._size), (padded.stride(0), self._hop, 1))

    def _log_mels(self, frames: Tensor) -> Tensor:
        """[windows, frames, features]"""
        squares = torch.view_as_real(torch.fft.rfft(frames * self._window)).square_()
        power = squares[..., 0] + squares[..., 1]
        mels: Tensor = self._mels(power if self._is_power else power.sqrt_())
        return (mels.clamp_(min=self._guard) if self._clamps else mels.add_(self._guard)).log_()

    def _normalised(self, x: Tensor, counts: Tensor) -> Tensor:
        """`x`, [windows, frames, features], in place: mean 0 and standard deviation 1 over the frames of each window."""
        divisors = counts[:, None, None].to(x.dtype)
        x -= zero_padding(x, counts).sum(1, keepdim=True) / divisors
        deviations = (zero_padding(x, counts).square().sum(1, keepdim=True) / (divisors - 1)).sqrt_()
        # As in NeMo, a single frame has none.
        return x.div_(deviations.masked_fill_(deviations.isnan(), 0.0) + CONSTANT)
