"""Transducer loss (Graves 2012, arXiv 1211.3711, section 2.4), optionally restricted to a known alignment.

Like tools/tdt_loss.py, whose alignment it takes: vectorised over the batch and the label axis, on any device, without a kernel.
"""

import torch
from torch import Tensor

from tools.tdt_loss import IMPOSSIBLE, Alignment


def rnnt_loss(
    joint: Tensor, labels: Tensor, frame_counts: Tensor, label_counts: Tensor, alignment: Alignment | None = None
) -> Tensor:
    """Negative log-likelihood per example, float [batch].

    `joint` float [batch, frames, labels + 1, vocabulary + 1] holds raw scores, the blank last in the vocabulary; `labels` int
    [batch, labels]; `frame_counts` and `label_counts` int [batch]. Of the alignment, only the frames of emission count: a token
    of this transducer has no duration.
    """
    batch, frames, _, _ = joint.shape
    label_slots = labels.shape[1]
    scores = torch.log_softmax(joint, -1)
    blank = scores[..., -1]
    index = labels[:, None, :, None].expand(batch, frames, label_slots, 1)
    emit = torch.gather(scores[:, :, :-1], 3, index)[..., 0]
    if alignment is not None:
        frame = torch.arange(frames, device=joint.device)[None, :, None]
        outside = (frame < alignment.first_frame[:, None]) | (frame > alignment.last_frame[:, None])
        emit = emit.masked_fill(outside, IMPOSSIBLE)

    arriving = torch.cat([joint.new_zeros(batch, 1), joint.new_full((batch, label_slots), IMPOSSIBLE)], 1)
    forward: list[Tensor] = []
    for t in range(frames):
        if t > 0:
            arriving = forward[-1] + blank[:, t - 1]
        # An emission does not leave the frame. Such chains of labels are summed by a cumulative log-sum-exp.
        chain = torch.cat([joint.new_zeros(batch, 1), torch.cumsum(emit[:, t], 1)], 1)
        forward.append(torch.logcumsumexp(arriving - chain, 1) + chain)
    lattice = torch.stack(forward, 1)
    rows, last = torch.arange(batch, device=joint.device), frame_counts - 1
    return -(lattice[rows, last, label_counts] + blank[rows, last, label_counts])
