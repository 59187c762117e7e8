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


class CancellationGuard:
    """Takes one stream in blocks. Blocks whose channels do not cancel out are returned unchanged.

    The result depends on the blocks, so they must be cut at the same places however the audio arrives: every BLOCK_S.
    """

    def __init__(self, weights: NDArray[np.float32], rate_hz: int) -> None:
        """`weights`: weight of each channel in the mix, float32 [channels]. `rate_hz`: sample rate, Hz."""
        self._weights = weights
        self._fade_samples = max(1, round(FADE_S * rate_hz))
        self._channel: int | None = None  # the one that replaces all; None: the mix is used

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        """A block [channels, samples] of any real dtype, with one channel in the place of all where these cancel out."""
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
