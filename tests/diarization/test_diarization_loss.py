"""The loss that the bundled diarizer is trained with."""

import pytest
import torch
from torch.nn import functional

from tools.diarization_loss import SILENCE_WEIGHT, diarization_loss, right_frames

ACTIVITY = torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]])
RIGHT = 8 * ACTIVITY - 4


def test_the_right_columns_cost_least() -> None:
    assert diarization_loss(RIGHT, ACTIVITY) == pytest.approx(functional.softplus(torch.tensor(-4.0)).item(), abs=1e-6)
    assert right_frames(RIGHT, ACTIVITY) == 1.0


def test_swapped_columns_cost_only_their_arrival() -> None:
    swapped = RIGHT[:, :, [1, 0, 2, 3]]
    arrival = functional.binary_cross_entropy_with_logits(swapped, ACTIVITY, reduction="none")
    weights = torch.where(ACTIVITY.sum(-1) > 0, 1.0, SILENCE_WEIGHT)[..., None]
    alone = (weights * arrival).sum() / (4 * weights.sum())
    assert diarization_loss(swapped, ACTIVITY) == pytest.approx(
        (0.5 * alone + 0.5 * diarization_loss(RIGHT, ACTIVITY)).item(), abs=1e-6
    )
    assert right_frames(swapped, ACTIVITY) == 0.0
