"""Token-and-duration transducer loss (Xu et al. 2023, arXiv 2304.06795, equation 7), restricted to a known alignment.

Vectorised over the batch and the label axis; the only loop is over frames. It runs on any device and needs no compiled kernel.

Frame bounds per label say where a token may be emitted and at which frame its predicted duration may land (the
alignment-restricted transducer, Mahadeokar et al. 2020, arXiv 2011.03072). They make the token times of the trained model true.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IMPOSSIBLE = -1e4
"""Log weight of a forbidden transition. Finite: a log-sum-exp of infinities has no gradient."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Inclusive frame bounds per label, each an int tensor [batch, labels].

    A token may be emitted at frames `first_frame..last_frame`; frame plus predicted duration must lie in
    `first_landing..last_landing`.
    """

    first_frame: Tensor
    last_frame: Tensor
    first_landing: Tensor
    last_landing: Tensor


def tdt_loss(
    joint: Tensor,
    labels: Tensor,
    frame_counts: Tensor,
    label_counts: Tensor,
    alignment: Alignment,
    durations: Sequence[int],
    sigma: float = 0.02,
) -> Tensor:
    """Negative log-likelihood per example, float [batch].

    `joint` float [batch, frames, labels + 1, vocabulary + 1 + durations] holds raw scores, the blank last in the vocabulary;
    `labels` int [batch, labels]; `frame_counts` and `label_counts` int [batch]. `durations` must begin with 0 and ascend.
    `sigma` is the logit under-normalisation of the paper's section 3.3: it discourages blanks of duration 1.
    """
    batch, frames, _, _ = joint.shape
    label_slots = labels.shape[1]
    token_scores = torch.log_softmax(joint[..., : -len(durations)], -1) - sigma
    duration_scores = torch.log_softmax(joint[..., -len(durations) :], -1)
    stay = token_scores[..., -1].unsqueeze(-1) + duration_scores
    index = labels[:, None, :, None].expand(batch, frames, label_slots, 1)
    emit = torch.gather(token_scores[:, :, :-1], 3, index) + duration_scores[:, :, :-1]
    emit = emit.masked_fill(_forbidden(alignment, frames, durations), IMPOSSIBLE)

    no_label = joint.new_full((batch, 1), IMPOSSIBLE)
    start = torch.cat([joint.new_zeros(batch, 1), joint.new_full((batch, label_slots), IMPOSSIBLE)], 1)
    forward: list[Tensor] = []
    for t in range(frames):
        arriving = [start] if t == 0 else []
        for n, duration in enumerate(durations):
            if 0 < duration <= t:
                source = forward[t - duration]
                arriving.append(source + stay[:, t - duration, :, n])
                arriving.append(torch.cat([no_label, source[:, :-1] + emit[:, t - duration, :, n]], 1))
        base = torch.logsumexp(torch.stack(arriving), 0)
        # A duration of 0 emits without leaving the frame. Such chains of labels are summed by a cumulative log-sum-exp.
        chain = torch.cat([joint.new_zeros(batch, 1), torch.cumsum(emit[:, t, :, 0], 1)], 1)
        forward.append(torch.logcumsumexp(base - chain, 1) + chain)
    lattice = torch.stack(forward, 1)
    rows = torch.arange(batch, device=joint.device)
    endings = []
    for n, duration in enumerate(durations):
        if duration > 0:
            last = (frame_counts - duration).clamp(min=0)
            ending = lattice[rows, last, label_counts] + stay[rows, last, label_counts, n]
            endings.append(ending.masked_fill(frame_counts < duration, IMPOSSIBLE))
    return -torch.logsumexp(torch.stack(endings), 0)


def _forbidden(alignment: Alignment, frames: int, durations: Sequence[int]) -> Tensor:
    """Bool [batch, frames, labels, durations]: where the alignment rules an emission out."""
    device = alignment.first_frame.device
    t = torch.arange(frames, device=device)[None, :, None]
    outside = (t < alignment.first_frame[:, None]) | (t > alignment.last_frame[:, None])
    landing = t[..., None] + torch.tensor(list(durations), device=device)
    misses = (landing < alignment.first_landing[:, None, :, None]) | (landing > alignment.last_landing[:, None, :, None])
    return outside[..., None] | misses
