"""CTC: the best token of every frame, without repetitions and blanks."""

from collections.abc import Sequence
from typing import Any

from serve_app.engine.decoder import DecodedBatch
from serve_app.window import Keywords


class CtcDecoder:
    """A token lasts for the frames in a row whose best token it is; its confidence is its highest probability in them.

    Starts are those of NeMo's `transcribe(timestamps=True)`, which calls them ends (`end_offset`): it lets a token last from the
    start of the token before it to its own. A pause would then be part of the word after it, and no gap would ever be found.
    """

    has_keywords = False
    late_punctuation = True
    mode = "ctc"

    def __init__(self, head: Any) -> None:
        """`head`: the module that makes log probabilities [windows, frames, tokens + blank] of [windows, features, frames]."""
        self._head = head

    def warm_up(self, shape: tuple[int, int], like: Any) -> None:
        """Nothing to do: there is no loop."""

    def decode(self, encoded: Any, frame_counts: Any, keywords: Sequence[Keywords]) -> DecodedBatch:
        """See Decoder.decode."""
        import torch
        from torch.nn.functional import pad

        scores = self._head(encoder_output=encoded.transpose(1, 2))
        blank = scores.shape[-1] - 1
        best, labels = scores.max(-1)
        # Behind the last frame of every window there is at least one more, whose label is no token and not blank.
        is_padding = torch.arange(encoded.shape[1], device=encoded.device) >= frame_counts[:, None]
        labels = pad(labels.masked_fill(is_padding, -1), (0, 1), value=-1)
        probabilities = pad(best.float().exp(), (0, 1)).flatten()
        width, labels = labels.shape[1], labels.flatten()
        # Runs of equal labels, through all windows: each begins where the label changes and ends where the next one begins.
        begins = labels.diff(prepend=labels.new_full((1,), -1)) != 0
        starts = begins.nonzero()[:, 0]
        peaks = probabilities.new_zeros(len(starts) + 1)
        peaks.scatter_reduce_(0, begins.cumsum(0), probabilities, "amax")
        ends = pad(starts[1:], (0, 1), value=len(labels))
        is_token = (labels[starts] >= 0) & (labels[starts] < blank)
        starts, ends, peaks = starts[is_token], ends[is_token], peaks[1:][is_token]
        windows = starts // width
        counts = torch.bincount(windows, minlength=len(encoded)).tolist()
        return DecodedBatch(counts, labels[starts], starts - windows * width, ends - windows * width, peaks)
