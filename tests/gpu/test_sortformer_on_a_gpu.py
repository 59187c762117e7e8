"""The bundled diarizer on a GPU: `make gpu`. `make test` skips it where there is none."""

import random

import numpy as np
import pytest
import torch

from serve_app.diarization.sortformer import SortformerEngine
from serve_app.model_source import bundled_diarizer_path
from serve_app.settings import Precision
from testing.conversations import Voice, converse
from testing.digit_strings import Bank, to_int16
from tools.evaluate_diarizer import diarize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.mark.parametrize(("precision", "max_difference"), [("fp32", 0.005), ("bf16", 0.05)])
def test_it_finds_what_the_cpu_finds(bank: Bank, precision: Precision, max_difference: float) -> None:
    samples = to_int16(converse(bank, [Voice(name) for name in sorted(bank)[:2]], 60.0, random.Random(0)).samples)
    on_gpu = SortformerEngine.load(bundled_diarizer_path(), device="cuda", precision=precision)
    assert on_gpu.info.fast_paths
    on_cpu = SortformerEngine.load(bundled_diarizer_path(), device="cpu", fast_paths="off")
    assert np.abs(diarize(on_gpu, samples) - diarize(on_cpu, samples)).mean() < max_difference
