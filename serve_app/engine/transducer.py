"""Transducers (RNNT, TDT): label looping, then durations and confidences of the emitted tokens."""

import logging
from collections.abc import Sequence
from typing import Any

from serve_app.engine.boosting import Booster
from serve_app.engine.cuda_graphs import GraphDecoder, GraphShape
from serve_app.engine.decoder import DecodedBatch
from serve_app.engine.device_errors import is_device_failure
from serve_app.window import Keywords

log = logging.getLogger("ray.serve")


class TransducerDecoder:
    """A TDT model predicts how long each token lasts. With plain RNNT a token lasts one frame, and punctuation has times of its
    own: those are the times of NeMo's `transcribe(timestamps=True)`."""

    has_keywords = True

    def __init__(self, model: Any, keyword_weight: float) -> None:
        """`model`: an RNNT, TDT or hybrid model of NeMo, set up for batched greedy decoding by label looping."""
        self._model = model
        self._keyword_weight = keyword_weight
        self._plain = GraphDecoder(model.decoding.decoding.decoding_computer)
        self._booster: Booster | None = None
        self._graph_shape: GraphShape | None = None
        self._durations = list(model.cfg.decoding.get("durations") or [])
        self.late_punctuation = bool(self._durations)

    @property
    def mode(self) -> str:
        """See EngineInfo.decoder."""
        return self._plain.mode

    def warm_up(self, shape: GraphShape, like: Any) -> None:
        """Capture the CUDA graphs."""
        self._graph_shape = shape
        self._plain.capture(shape, like)
        try:
            self._booster = self._make_booster(like)
        except Exception as error:
            if is_device_failure(error):
                raise
            log.exception("keywords are unavailable; the next request with keywords retries")

    def decode(self, encoded: Any, frame_counts: Any, keywords: Sequence[Keywords]) -> DecodedBatch:
        """See Decoder.decode. A failure of the device, or of a capture, leaves nothing behind that a later batch would use."""
        if any(keywords):
            booster, self._booster = self._booster or self._make_booster(encoded), None
            hypotheses = booster.decode(encoded, frame_counts, keywords)
            # Kept only after success: after a failure the state of the decoder is unknown.
            self._booster = booster
        else:
            hypotheses = self._plain(encoded, frame_counts)
        counts_on_device = hypotheses.current_lengths[: len(encoded)]
        counts = counts_on_device.tolist()
        longest = max(counts)
        token_ids = hypotheses.transcript[: len(encoded), :longest]
        frames = hypotheses.timestamps[: len(encoded), :longest]
        return self._scored(encoded, counts, counts_on_device, token_ids, frames)

    def _scored(self, encoded: Any, counts: list[int], counts_on_device: Any, token_ids: Any, frames: Any) -> DecodedBatch:
        """Durations and confidences, by a teacher-forced scoring pass.

        `token_ids`, `frames`: int [windows, longest], the tokens and the frames at which they were emitted. The joint network is
        evaluated once more at these frames. NeMo 3.0.0 can return durations itself, but without CUDA graphs they depend on the
        other windows of the batch (NeMo issue 16097), and with CUDA graphs it returns no confidences.
        """
        import torch

        decoder, joint = self._model.decoder, self._model.joint
        # Row and column of each token. With its size given, repeat_interleave need not wait for the device.
        windows = torch.arange(len(counts), device=encoded.device)
        rows = torch.repeat_interleave(windows, counts_on_device, output_size=sum(counts))
        firsts = torch.repeat_interleave(counts_on_device.cumsum(0) - counts_on_device, counts_on_device, output_size=sum(counts))
        columns = torch.arange(sum(counts), device=encoded.device) - firsts
        emitted, starts = token_ids[rows, columns], frames[rows, columns]
        if not len(emitted):
            return DecodedBatch(counts, emitted, starts, starts, encoded.new_zeros(0))
        # What is behind the last token of a window does not change the predictions before.
        predicted, _ = decoder.predict(token_ids, state=None, add_sos=True)
        scores = joint.joint_after_projection(
            joint.project_encoder(encoded[rows, starts].unsqueeze(1)),
            joint.project_prednet(predicted[rows, columns].unsqueeze(1)),
        )[:, 0, 0]
        token_scores, ends = scores, starts + 1
        if self._durations:
            token_scores, duration_scores = scores.split([scores.shape[1] - len(self._durations), len(self._durations)], dim=1)
            ends = starts + torch.tensor(self._durations, device=encoded.device)[duration_scores.argmax(-1)]
        confidences = torch.softmax(token_scores.float(), -1).gather(1, emitted[:, None])[:, 0]
        return DecodedBatch(counts, emitted, starts, ends, confidences)

    def _make_booster(self, like: Any) -> Booster:
        booster = Booster(self._model, self._keyword_weight)
        if self._graph_shape is not None:
            booster.decoder.capture(self._graph_shape, like)
        return booster
