"""Mix channels to mono. Where they cancel out, as in stereo with one channel inverted, one channel takes the place of the mix."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_S = 0.1
"""Length of the blocks in which channels are compared, seconds."""

CANCELLED_RATIO = 0.05
"""Channels cancel out if the power of their mix is below this ratio (-13 dB) of the sum of their powers in the mix.

The ratio is 1 for channels that are unrelated, and above 1 for channels that are alike.
"""

RESTORED_RATIO = 0.2
"""Channels that cancelled out are mixed again once the ratio is at least this."""

FADE_S = 0.01
"""Length of the cross-fade between the mix and one channel, seconds."""

MIN_CLEARANCE = 1e-3
"""If the power of the mix exceeds the threshold by this fraction of the power with any offset, float32 sums are exact enough to
decide."""


class MonoMixer:
    """Mixes one stream, which it takes in runs of blocks.

    The result depends on the blocks, so they must be cut at the same places however the audio arrives: every BLOCK_S.
    """

    def __init__(self, weights: NDArray[np.float32], rate_hz: int) -> None:
        """`weights`: weight of each channel in the mix, float32 [channels]. `rate_hz`: sample rate, Hz."""
        self.block_samples = round(BLOCK_S * rate_hz)
        self._weights = weights
        self._gain = weights.sum()
        self._fade_samples = max(1, round(FADE_S * rate_hz))
        self._channel: int | None = None  # the one that replaces the mix

    def __call__(self, samples: NDArray[Any]) -> NDArray[np.float32]:
        """The mix of blocks [channels, samples] of any real dtype, in their unit, float32 [samples].

        The last block may be shorter than the others, but only at the end of the stream.
        """
        size, channels = self.block_samples, samples.astype(np.float32, order="C", copy=False)
        # Channel by channel: the rounding of a matrix product would depend on the number of samples.
        mix: NDArray[np.float32] = channels[0] * self._weights[0]
        for channel, weight in zip(channels[1:], self._weights[1:], strict=True):
            mix += channel * weight
        if self._channel is None and len(mix) % size == 0 and self._is_clear(channels, mix):
            return mix
        for start in range(0, len(mix), size):
            block = slice(start, start + size)
            mix[block] = self._checked(channels[:, block], mix[block])
        return mix

    def _is_clear(self, channels: NDArray[np.float32], mix: NDArray[np.float32]) -> bool:
        """Whether it is clear without an exact calculation that no block cancels out."""
        size, weights = self.block_samples, self._weights[:, None]
        blocks, mixed_blocks = channels.reshape(len(channels), -1, size), mix.reshape(-1, size)
        offsets = weights * np.vecdot(blocks, np.ones(size, np.float32))
        powers_with_offset = weights**2 * np.vecdot(blocks, blocks)
        powers = powers_with_offset - offsets**2 / size
        mix_power = np.vecdot(mixed_blocks, mixed_blocks) - offsets.sum(0) ** 2 / size
        return bool(np.all(mix_power - CANCELLED_RATIO * powers.sum(0) >= MIN_CLEARANCE * powers_with_offset.sum(0)))

    def _checked(self, channels: NDArray[np.float32], mix: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mix of one block, or the channel that replaces it, with a cross-fade where that changes."""
        previous, self._channel = self._channel, self._choice(channels)
        before, after = (mix if channel is None else channels[channel] * self._gain for channel in (previous, self._channel))
        if previous == self._channel:
            return after
        fade = np.clip(np.arange(len(mix), dtype=np.float32) / self._fade_samples, 0, 1)
        return before * (1 - fade) + after * fade

    def _choice(self, channels: NDArray[np.float32]) -> int | None:
        """The channel that replaces the mix of a block; None: they do not cancel out."""
        # Neither an offset nor the middle of an unsigned format counts as power.
        samples = channels - channels.mean(axis=1, keepdims=True)
        covariance = samples @ samples.T
        powers = self._weights**2 * covariance.diagonal()
        mix_power = float(self._weights @ covariance @ self._weights)
        total_power = float(powers.sum())
        if total_power == 0:
            return self._channel
        if mix_power >= (CANCELLED_RATIO if self._channel is None else RESTORED_RATIO) * total_power:
            return None
        # The first of those that are about as loud as the loudest one.
        return int(np.argmax(powers >= powers.max() / 2)) if self._channel is None else self._channel
