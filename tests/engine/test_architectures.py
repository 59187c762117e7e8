"""The published architectures in full size, with random weights, through the same loading code as any model."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece as spm

pytestmark = [pytest.mark.slow]

BUILD = """
import sys
from pathlib import Path
from omegaconf import OmegaConf
from nemo.collections.asr import models
from tools import fastconformer_tdt as architecture
kind, make_config, sizes, tokenizer, out = sys.argv[1:]
config = getattr(architecture, make_config)(getattr(architecture, sizes), Path(tokenizer))
model = getattr(models, kind)(cfg=OmegaConf.create(config))
print(sum(p.numel() for p in model.parameters()))
model.save_to(out)
"""

LOAD = """
import resource, sys, time
from pathlib import Path
import numpy as np
from serve_app.engine.parakeet import ParakeetEngine
import torch, nemo.collections.asr
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
engine = ParakeetEngine.load(Path(sys.argv[1]), device="cpu")
seconds, peak_mb = time.monotonic() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
noise = np.random.default_rng(0).normal(0, 3000, 5 * 16000).astype(np.int16)
(tokens,) = engine.transcribe([noise])
assert all(0 <= t.start_sample <= t.end_sample and 0 < t.confidence <= 1 for t in tokens)
print(f"loaded in {seconds:.0f} s, peak memory +{peak_mb:.0f} MB, {engine.info.precision}, {len(tokens)} tokens from noise")
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of the published size, 1,024 pieces, trained on made-up words."""
    folder = tmp_path_factory.mktemp("tokenizer")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(" ".join(rng.choices(words, k=10)) for _ in range(2000)))
    spm.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=1024,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    pieces = [line.split("\t")[0] for line in (folder / "tokenizer.vocab").read_text().splitlines()]
    (folder / "vocab.txt").write_text("\n".join(f"##{piece}" for piece in pieces))
    return folder


def python(program: str, *arguments: str) -> str:
    """The last line that a program prints. It runs in a process of its own, so that its peak memory can be measured."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("sizes", "kind", "make_config", "millions"),
    [
        ("PARAKEET_110M", "EncDecHybridRNNTCTCBPEModel", "hybrid_config", range(105, 120)),
        pytest.param("PARAKEET_0_6B", "EncDecRNNTBPEModel", "config", range(600, 630), marks=pytest.mark.long),
    ],
    ids=["110M", "0.6B"],
)
def test_a_full_size_model_loads_and_transcribes(
    sizes: str,
    kind: str,
    make_config: str,
    millions: range,
    tokenizer: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / f"{sizes}.nemo"
    parameters = int(python(BUILD, kind, make_config, sizes, str(tokenizer), str(path)))
    assert parameters // 1_000_000 in millions
    figures = python(LOAD, str(path))
    path.unlink()
    with capsys.disabled():
        print(f"\n{sizes}: {parameters / 1e6:.1f} M parameters, {figures}")
