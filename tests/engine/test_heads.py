"""The small models of the other families, through NeMo's own `transcribe()`: their files are sound and their heads trained."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest

from serve_app.engine.checkpoints import read_family
from testing.accuracy import HELD_OUT_INDEXES, held_out_strings
from testing.digit_strings import DigitString, load_bank, to_int16
from testing.heads import FAMILIES, HEADS, Family

pytestmark = pytest.mark.slow

MAX_WORD_ERRORS = {"rnnt": 0.03, "ctc": 0.05, "tdt": 0.03}
"""By decoder, on 240 strings of recordings that neither the encoder nor the heads were trained on."""

DECODERS: list[tuple[Family, str]] = [
    ("rnnt", "rnnt"),
    ("ctc", "ctc"),
    ("hybrid_rnnt_ctc", "rnnt"),
    ("hybrid_rnnt_ctc", "ctc"),
    ("hybrid_tdt_ctc", "tdt"),
    ("hybrid_tdt_ctc", "ctc"),
]

NemoModel = Callable[[Family, str], Any]


@pytest.fixture(scope="module")
def nemo_model(family_file: Callable[[Family], Path]) -> Iterator[NemoModel]:
    """The model of a file, set to one of its decoders."""
    import torch
    from nemo.collections.asr.models import ASRModel

    def load(family: Family, decoder: str) -> Any:
        model = ASRModel.restore_from(str(family_file(family)), map_location="cpu").eval()
        if family.startswith("hybrid"):
            model.change_decoding_strategy(decoder_type="ctc" if decoder == "ctc" else "rnnt", verbose=False)
        return model

    # More gain nothing with so small a model, and wait for each other on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load
    torch.set_num_threads(threads)


def transcribe(model: Any, strings: Sequence[DigitString]) -> list[str]:
    audio = [to_int16(string.samples).astype(np.float32) / 32768 for string in strings]
    return [hypothesis.text for hypothesis in model.transcribe(audio, batch_size=16, verbose=False)]


def plain(texts: Sequence[str]) -> list[str]:
    """Without case and full stops, which do not count as word errors."""
    return [text.lower().replace(".", "") for text in texts]


@pytest.mark.parametrize(("family", "decoder"), DECODERS)
def test_synthesised_digits_are_exact(family: Family, decoder: str, nemo_model: NemoModel, strings: list[DigitString]) -> None:
    assert transcribe(nemo_model(family, decoder), strings) == [string.text for string in strings]


@pytest.mark.speech
@pytest.mark.parametrize(("family", "decoder"), DECODERS)
def test_words_of_real_speakers_are_correct(
    family: Family, decoder: str, nemo_model: NemoModel, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = held_out_strings(load_bank(recordings, HELD_OUT_INDEXES), 240, seed=1)
    spoken, recognised = [string.text for string in held_out], transcribe(nemo_model(family, decoder), held_out)
    word_error_rate = jiwer.wer(plain(spoken), plain(recognised))
    with capsys.disabled():
        print(f"\n{family}, {decoder}: {100 * word_error_rate:.2f} % word errors")
    assert word_error_rate <= MAX_WORD_ERRORS[decoder]


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_what_they_claim(family: Family, family_file: Callable[[Family], Path]) -> None:
    assert read_family(family_file(family)) == family


def test_a_file_is_made_once(family_file: Callable[[Family], Path]) -> None:
    path = family_file("ctc")
    made = path.stat().st_mtime_ns
    assert family_file("ctc") == path
    assert path.stat().st_mtime_ns == made


def test_heads_are_small() -> None:
    assert {path.name for path in HEADS.iterdir()} == {"README.md", "rnnt.pt", "ctc.pt"}
    assert all(path.stat().st_size < 300_000 for path in HEADS.iterdir())
