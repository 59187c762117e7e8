"""Every family of models, with random weights: tokens, times and batches are those of NeMo."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from serve_app.engine.parakeet import ParakeetEngine
from serve_app.errors import ModelUnavailable
from serve_app.settings import DecoderChoice
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples
from testing.random_models import save_random_model

HEADS: list[tuple[str, DecoderChoice]] = [
    ("tdt", "transducer"),
    ("rnnt", "transducer"),
    ("ctc", "ctc"),
    ("tdt_ctc", "transducer"),
    ("tdt_ctc", "ctc"),
    ("rnnt_ctc", "transducer"),
    ("rnnt_ctc", "ctc"),
]
SPELLED_OUT = 32
"""Fewer tokens in all windows would prove little."""


@pytest.fixture(scope="module")
def windows() -> list[Samples]:
    """Noise of several lengths whose level changes, so that the models find other tokens at other times."""
    rng = np.random.default_rng(0)
    noises: list[Samples] = []
    for seconds, rate_hz in ((5.0, 3.0), (1.3, 4.0), (2.0, 0.7), (8.0, 1.5), (3.1, 2.2)):
        at_s = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        coloured = np.convolve(rng.normal(0, 2500, len(at_s)), np.hanning(4 + round(3 * seconds)), "same")
        noises.append((coloured * (1.05 + np.sin(2 * np.pi * rate_hz * at_s))).clip(-32768, 32767).astype(np.int16))
    return noises


@pytest.fixture(scope="module")
def nemo_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The `.nemo` file of a family, which is made once."""
    folder = tmp_path_factory.mktemp("families")

    def made(family: str) -> Path:
        path = folder / f"{family}.nemo"
        if not path.exists():
            save_random_model(family, path)
        return path

    return made


def from_nemo(path: Path, head: DecoderChoice, windows: Sequence[Samples], folder: Path) -> list[Any]:
    """NeMo's hypotheses from files, one per batch: in larger ones its durations are wrong without CUDA graphs."""
    from nemo.collections.asr.models import ASRModel

    model: Any = ASRModel.restore_from(str(path), map_location="cpu")
    if "_" in path.stem:
        model.change_decoding_strategy(decoder_type="ctc" if head == "ctc" else "rnnt", verbose=False)
    paths = [str(folder / f"{i}.wav") for i in range(len(windows))]
    for name, window in zip(paths, windows, strict=True):
        sf.write(name, window, SAMPLE_RATE)
    return list(model.transcribe(paths, timestamps=True, batch_size=1, verbose=False))


def spans(tokens: Sequence[Token]) -> list[tuple[int, int, int]]:
    """Token, first frame, and the frame after the last."""
    return [(t.token_id, t.start_sample // FRAME_SAMPLES, t.end_sample // FRAME_SAMPLES) for t in tokens]


def runs(labels: Sequence[int], blank: int) -> list[tuple[int, int, int]]:
    """The same from CTC's best label of every frame."""
    found, frame = [], 0
    for label, repeated in groupby(labels):
        length = len(list(repeated))
        if label != blank:
            found.append((label, frame, frame + length))
        frame += length
    return found


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
@pytest.mark.parametrize(("family", "head"), HEADS)
def test_tokens_and_times_are_those_of_nemos_transcribe(
    family: str, head: DecoderChoice, windows: list[Samples], nemo_file: Callable[[str], Path], tmp_path: Path
) -> None:
    engine = ParakeetEngine.load(nemo_file(family), device="cpu", decoder=head)
    assert engine.info.keywords == (head == "transducer")
    pieces = engine._pieces
    alone = [engine.transcribe([window])[0] for window in windows]
    assert sum(map(len, alone)) >= SPELLED_OUT
    assert len({token.token_id for tokens in alone for token in tokens}) >= 5
    for tokens, hypothesis in zip(alone, from_nemo(nemo_file(family), head, windows, tmp_path), strict=True):
        characters = hypothesis.timestamp["char"]
        assert all(0 < token.confidence <= 1 for token in tokens)
        if head == "transducer":
            theirs = [(c["start_offset"], c["end_offset"]) for c in characters]
            assert hypothesis.y_sequence.tolist() == [token.token_id for token in tokens]
            assert [span[1:] for span in spans(tokens)] == theirs
            continue
        labels = torch.as_tensor(hypothesis.y_sequence)
        # In a hybrid model they are labels, in a CTC model log probabilities.
        labels = labels if labels.ndim == 1 else labels.argmax(-1)
        expected = runs(labels.tolist(), blank=len(pieces))
        assert [token.token_id for token in tokens] == [token_id for token_id, _, _ in expected]
        for n, (ours, character, run) in enumerate(zip(spans(tokens), characters, expected, strict=True)):
            if pieces[run[0]] == "." and n > 0:
                assert ours[1] == ours[2] == spans(tokens)[n - 1][2]
            else:
                assert ours == run
                assert ours[1] == character["end_offset"], "NeMo calls the start of a token its end"


@pytest.mark.parametrize(("family", "head"), HEADS)
def test_a_mixed_batch_changes_no_token_and_no_time(
    family: str, head: DecoderChoice, windows: list[Samples], nemo_file: Callable[[str], Path]
) -> None:
    engine = ParakeetEngine.load(nemo_file(family), device="cpu", decoder=head)
    silence = np.zeros(SAMPLE_RATE, np.int16)
    mixed = [windows[1], silence, *windows[2:], windows[0]]
    alone = [engine.transcribe([window])[0] for window in mixed]
    together = engine.transcribe(mixed)
    assert [spans(tokens) for tokens in together] == [spans(tokens) for tokens in alone]
    for batched, single in zip(together, alone, strict=True):
        assert [t.confidence for t in batched] == pytest.approx([t.confidence for t in single], abs=1e-3)


def test_without_a_choice_a_hybrid_model_uses_its_transducer(windows: list[Samples], nemo_file: Callable[[str], Path]) -> None:
    path = nemo_file("rnnt_ctc")
    chosen = ParakeetEngine.load(path, device="cpu", decoder="transducer").transcribe(windows)
    assert ParakeetEngine.load(path, device="cpu").transcribe(windows) == chosen
    assert ParakeetEngine.load(path, device="cpu", decoder="ctc").transcribe(windows) != chosen


@pytest.mark.parametrize(("family", "decoder"), [("rnnt", "ctc"), ("ctc", "transducer")])
def test_a_head_that_a_model_does_not_have_is_refused(
    family: str, decoder: DecoderChoice, nemo_file: Callable[[str], Path]
) -> None:
    with pytest.raises(ModelUnavailable, match=f"no {decoder} head"):
        ParakeetEngine.load(nemo_file(family), device="cpu", decoder=decoder)


@pytest.mark.parametrize("family", ["rnnt", "tdt_ctc"])
def test_keywords_are_boosted_for_their_window_alone(
    family: str, windows: list[Samples], nemo_file: Callable[[str], Path]
) -> None:
    engine = ParakeetEngine.load(nemo_file(family), device="cpu", keyword_weight=5.0)
    plain = engine.transcribe(windows)
    boosted = engine.transcribe(windows, [(), (), (), ("seven nine six",), ()])
    assert boosted[3] != plain[3]
    assert boosted[:3] + boosted[4:] == plain[:3] + plain[4:]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("family", "head"), HEADS[1:3])
def test_each_number_format(family: str, head: DecoderChoice, precision: Any, windows: list[Samples], nemo_file: Any) -> None:
    engine = ParakeetEngine.load(nemo_file(family), device="cpu", precision=precision, decoder=head)
    assert sum(map(len, engine.transcribe(windows))) >= SPELLED_OUT
