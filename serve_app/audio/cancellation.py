"""Channels that cancel out in the mix to mono, such as stereo with one channel inverted: one channel replaces all of them."""

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
"""Distance from CANCELLED_RATIO at which the sums over many blocks at once decide, as a fraction of the power with any offset.

Their rounding errors are far smaller.
"""


class CancellationGuard:
    """Takes one stream in runs of blocks. A run without a block whose channels cancel out is returned unchanged.

    The result depends on the blocks, so they must be cut at the same places however the audio arrives: every BLOCK_S.
    """

    def __init__(self, weights: NDArray[np.float32], rate_hz: int) -> None:
        """`weights`: weight of each channel in the mix, float32 [channels]. `rate_hz`: sample rate, Hz."""
        self.block_samples = round(BLOCK_S * rate_hz)
        self._weights = weights
        self._fade_samples = max(1, round(FADE_S * rate_hz))
        self._channel: int | None = None  # the one that replaces all; None: the mix is used

    def __call__(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Blocks [channels, samples] of any real dtype, with one channel in the place of all where these cancel out.

        The last block may be shorter than the others, but only at the end of the stream.
        """
        size = self.block_samples
        if self._channel is None and samples.shape[1] % size == 0 and self._is_clear(samples):
            return samples
        blocks = [samples[:, start : start + size] for start in range(0, samples.shape[1], size)]
        checked = [self._checked(block) for block in blocks]
        is_unchanged = all(after is before for after, before in zip(checked, blocks, strict=True))
        return samples if is_unchanged else np.concatenate(checked, axis=1)

    def _is_clear(self, samples: NDArray[Any]) -> bool:
        """Whether it is clear without an exact calculation that no block cancels out."""
        blocks = samples.astype(np.float32, order="C").reshape(len(samples), -1, self.block_samples)
        mix = np.tensordot(self._weights, blocks, 1)
        total = self._weights**2 @ np.vecdot(blocks, blocks)
        offsets = blocks @ np.ones(self.block_samples, np.float32)
        total_offset = self._weights**2 @ offsets**2 / self.block_samples
        mix_power = np.vecdot(mix, mix) - (self._weights @ offsets) ** 2 / self.block_samples
        return bool(np.all(mix_power - CANCELLED_RATIO * (total - total_offset) >= MIN_CLEARANCE * total))

    def _checked(self, block: NDArray[Any]) -> NDArray[Any]:
        previous, self._channel = self._channel, self._choice(block)
        if previous is None and self._channel is None:
            return block
        before, after = (block if channel is None else block[channel] for channel in (previous, self._channel))
        fade = np.clip(np.arange(block.shape[1]) / self._fade_samples, 0, 1) if previous != self._channel else 1.0
        faded = before * (1 - fade) + after * fade
        return np.broadcast_to(np.rint(faded) if block.dtype.kind in "iu" else faded, block.shape).astype(block.dtype)

    def _choice(self, block: NDArray[Any]) -> int | None:
        samples = block.astype(np.float32)
        # Neither an offset nor the middle of an unsigned format counts as power.
        samples -= (samples @ np.ones((block.shape[1], 1), np.float32)) / block.shape[1]
        # By matrix products, which are fast whether channels are planar or interleaved.
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
