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
"""If the power of the mix exceeds the threshold by this fraction of the power with any offset, float32 sums are exact enough to
decide."""


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
        is_interleaved_stereo = len(samples) == 2 and samples.T.flags.c_contiguous and self._weights[0] == self._weights[1]
        mix_power, total_power, total_with_offset = (self._stereo_powers if is_interleaved_stereo else self._powers)(samples)
        return bool(np.all(mix_power - CANCELLED_RATIO * total_power >= MIN_CLEARANCE * total_with_offset))

    def _powers(self, samples: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Power of the mix, sum of the channels' powers in it, and this sum with any offset, float32 [blocks] each."""
        weights, size = np.multiply.outer(self._weights, self._weights)[..., None], self.block_samples
        blocks = samples.astype(np.float32, order="C", copy=False).reshape(len(samples), -1, size)
        products = weights * np.vecdot(blocks[:, None], blocks)
        offsets = np.vecdot(blocks, np.ones(size, np.float32))
        covariance = products - weights * offsets[:, None] * offsets / size
        return covariance.sum((0, 1)), covariance.trace(), products.trace()

    def _stereo_powers(self, samples: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """The same for interleaved channels of equal weight, without the cost of separating them; the weight is left out.

        A pair of samples is a complex number l + ir. |l + ir|² is l² + r², and the imaginary part of (l + ir)² is 2lr.
        """
        pairs = samples.T.astype(np.float32, copy=False).view(np.complex64).reshape(-1, self.block_samples)
        offsets = np.vecdot(np.ones(self.block_samples, np.complex64), pairs)
        squares = (pairs[:, None] @ pairs[..., None])[:, 0, 0] - offsets**2 / self.block_samples
        total_with_offset = np.vecdot(pairs, pairs).real
        total_power = total_with_offset - np.abs(offsets) ** 2 / self.block_samples
        return total_power + squares.imag, total_power, total_with_offset

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
