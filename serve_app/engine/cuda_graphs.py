"""Transducer decoding with CUDA graphs, safe after a failure."""

import logging
from typing import Any

from serve_app.errors import EngineBroken

log = logging.getLogger("ray.serve")

GraphShape = tuple[int, int]
"""Windows and encoder frames of the largest batch: NeMo's graphs serve every batch that has no more of either."""


class GraphDecoder:
    """One of NeMo's decoding computers, which decode by label looping; on a GPU with CUDA graphs.

    NeMo captures the graphs for the first batch, and again for every batch with more windows or frames than all before. It
    replaces its buffers first. So after a failed capture, the next batch would replay graphs that are missing or write into the
    buffers of earlier ones, and its transcripts would be empty. Here buffers and graphs are dropped after any exception, a failed
    capture ends the replica, and all captures are of the largest shape.
    """

    def __init__(self, computer: Any) -> None:
        self._computer = computer
        self._shape: GraphShape | None = None

    @property
    def mode(self) -> str:
        """How the decoding loop runs: see EngineInfo.decoder."""
        mode = self._computer.cuda_graphs_mode
        if mode is None:
            return "eager"
        return "cuda graphs" if str(mode.value) == "full_graph" else "cuda graphs without loops"

    def capture(self, shape: GraphShape, like: Any) -> None:
        """Capture the graphs, now and whenever they are lost, for batches of up to `shape`.

        Where that is impossible (NVRTC is missing, or the driver is of another CUDA version), decoding runs without graphs from
        now on. `like`: encoder output, float [windows, frames, features], of which device, format and features count. Raises what
        decoding without graphs raises, where the device itself is unusable. Without graphs it does nothing.
        """
        if self._computer.cuda_graphs_mode is None:
            return
        try:
            self._run_zeros(shape, like)
        except Exception as error:
            self._computer.disable_cuda_graphs()
            log.warning("CUDA graphs cannot be captured (%s: %s); decoding runs without them", type(error).__name__, error)
            self._run_zeros((1, 1), like)
            return
        self._shape = shape
        # From now on a failed capture has to raise. NeMo would capture the parts without loops instead.
        self._computer.cuda_graphs_allow_fallback = False
        log.info("decoding with %s for up to %d windows of %d frames", self.mode, *shape)

    def __call__(self, encoded: Any, frame_counts: Any, biasing_ids: Any = None) -> Any:
        """NeMo's BatchedHyps, which may have more rows than there are windows.

        `encoded`: float [windows, frames, features]. `frame_counts`: int [windows]. `biasing_ids`: int [windows], the trees of
        boosting.py. Raises EngineBroken if graphs cannot be captured.
        """
        is_capture = False
        try:
            if self._needs_capture(encoded):
                is_capture = True
                if self._shape is not None and self._computer.state is None:
                    self._run_zeros(self._shape, encoded)
                    # Unless the batch is larger still, the capture is done: what fails from here on is the batch.
                    is_capture = self._needs_capture(encoded)
            hypotheses, _ = self._computer(x=encoded, out_len=frame_counts, multi_biasing_ids=biasing_ids)
        except Exception as error:
            self._computer.reset_cuda_graphs_state()
            if is_capture:
                raise EngineBroken(f"the decoder's CUDA graphs could not be captured: {error}") from error
            raise
        return hypotheses

    def _needs_capture(self, encoded: Any) -> bool:
        computer = self._computer
        return computer.cuda_graphs_mode is not None and (computer.state is None or computer.state.need_reinit(encoded))

    def _run_zeros(self, shape: GraphShape, like: Any) -> None:
        import torch

        windows, frames = shape
        zeros = like.new_zeros(windows, frames, like.shape[2])
        self._computer(x=zeros, out_len=torch.full((windows,), frames, device=like.device))
        if like.is_cuda:
            # Errors of kernels are reported by a later call.
            torch.cuda.synchronize(like.device)
