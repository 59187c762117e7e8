"""Log-mel features of speech for a CPU, in less time than NeMo's `FilterbankFeatures` takes: a module for fast_paths.py."""

from typing import Any

import torch
import torch.nn.functional as F
from nemo.collections.asr.parts.preprocessing.features import CONSTANT, FilterbankFeatures
from torch import Tensor, nn

from serve_app.engine.lean_modules import require


class LeanFeatures(nn.Module):
    """`FilterbankFeatures` of inference: the power spectrum without roots, everything after it in place, and padding only touched
    where there is some. For a CPU, where a look at the lengths costs nothing."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        require(type(stock) is FilterbankFeatures, "the features are others")
        require(stock.mag_power == 2.0 and not stock.use_grads, "it is not the power spectrum")
        require(stock.stft_pad_amount is None and stock.window is not None, "windows are placed in another way")
        require(bool(stock.log) and stock.log_zero_guard_type == "add", "the scale is another one")
        require(stock.normalize == "per_feature" and stock.frame_splicing == 1, "the normalisation is another one")
        require(stock.pad_to == 0 and stock.pad_value == 0, "frames are padded")
        self.window, self.filterbank = stock.window.float(), stock.fb.float()
        self._guard = float(stock.log_zero_guard_value_fn(self.filterbank))
        self._fft_samples, self._hop_samples = stock.n_fft, stock.hop_length
        self._emphasis = float(stock.preemph or 0.0)

    def forward(self, x: Tensor, seq_len: Tensor, linear_spec: bool = False) -> tuple[Tensor, Tensor]:
        """Features [windows, features, frames] of `x`, float32 [windows, samples], and frames of each window; `seq_len`: samples
        of each. Padding has the value 0."""
        require(not linear_spec, "a spectrum is asked for")
        frames = torch.div(seq_len, self._hop_samples, rounding_mode="floor")
        features = torch.log_(torch.matmul(self.filterbank, self._power(self._emphasised(x, seq_len))).add_(self._guard))
        for row, count in zip(features, frames.tolist(), strict=True):
            valid = row[:, :count]
            valid.sub_(valid.mean(1, keepdim=True))
            # One frame has no deviation: NeMo divides by CONSTANT then.
            deviation = torch.linalg.vector_norm(valid, dim=1, keepdim=True) / max(count - 1, 1) ** 0.5
            valid.div_(deviation.add_(CONSTANT))
            row[:, count:] = 0.0
        return features, frames

    def _emphasised(self, x: Tensor, seq_len: Tensor) -> Tensor:
        y = torch.empty_like(x)
        y[:, 0] = x[:, 0]
        torch.sub(x[:, 1:], x[:, :-1], alpha=self._emphasis, out=y[:, 1:])
        for row, samples in zip(y, seq_len.tolist(), strict=True):
            row[samples:] = 0.0
        return y

    def _power(self, x: Tensor) -> Tensor:
        """The power spectrum, [windows, frequencies, frames]."""
        padded = F.pad(x, (self._fft_samples // 2, self._fft_samples // 2))
        spectrum = torch.stft(
            padded,
            self._fft_samples,
            self._hop_samples,
            len(self.window),
            self.window,
            center=False,
            return_complex=True,
        )
        parts = torch.view_as_real(spectrum)
        return parts[..., 0].square().addcmul_(parts[..., 1], parts[..., 1])
