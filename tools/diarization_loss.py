"""The loss of a Sortformer: speakers in the order of their arrival, and in the best order."""

import itertools

import torch
from torch import Tensor
from torch.nn import functional

from tools.sortformer import MAX_SPEAKERS

SILENCE_WEIGHT = 0.3
"""Weight of a frame without speech in the loss."""

PERMUTATIONS = torch.tensor(list(itertools.permutations(range(MAX_SPEAKERS))))


def diarization_loss(logits: Tensor, activity: Tensor) -> Tensor:
    """Half the loss in the order of arrival, half that of the best permutation of each conversation."""
    weights = torch.where(activity.sum(-1, keepdim=True) > 0, 1.0, SILENCE_WEIGHT)
    whole = weights.sum((1, 2)) * MAX_SPEAKERS
    # Cross-entropy is linear in the target: softplus(x) - x * y. Scores of every column with every speaker give all permutations.
    spread = (weights * functional.softplus(logits)).sum((1, 2))
    scores = torch.einsum("btc,bts->bcs", weights * logits, activity)
    arrival = spread - scores.diagonal(dim1=1, dim2=2).sum(-1)
    best = spread - torch.stack([scores[:, range(MAX_SPEAKERS), p] for p in PERMUTATIONS.tolist()]).sum(-1).amax(0)
    return ((0.5 * arrival + 0.5 * best) / whole).mean()


def right_frames(logits: Tensor, activity: Tensor) -> float:
    """Share of the frames with one speaker whose highest logit is that speaker's, in the order of arrival."""
    alone = activity.sum(-1) == 1
    return (logits.argmax(-1) == activity.argmax(-1))[alone].float().mean().item()
