"""Models by their shape: the bundled one, and the published sizes with random weights."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_app.settings import bundled_model_path
from testing.random_models import save_random_model, tokenizer_folder
from tools import fastconformer_tdt as architecture

SHAPES = {"bundled": None, "110m": architecture.PARAKEET_110M, "0.6b": architecture.PARAKEET_0_6B}

NEVER = 1e4
"""Bias of blank with which a model with random weights emits nothing."""

BLANK_SCORE = 4.0
"""Mean score of blank with which it emits about four tokens a second, as a model that knows the language does."""


@contextmanager
def model_file(shape: str, *, speaks: bool = False) -> Iterator[Path]:
    """The `.nemo` file of a shape. Random weights recognise nothing, or, if the model `speaks`, random tokens."""
    sizes = SHAPES[shape]
    if sizes is None:
        yield bundled_model_path()
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.nemo"
        if speaks:
            save_random_model("tdt", path, sizes=sizes, blank_score=BLANK_SCORE)
        else:
            _save_silent_model(path, sizes)
        yield path


def _save_silent_model(path: Path, sizes: architecture.Sizes) -> None:
    from nemo.collections.asr.models import EncDecRNNTBPEModel
    from omegaconf import OmegaConf

    configuration = architecture.config(sizes, tokenizer_folder(path.parent / "tokenizer"))
    model = EncDecRNNTBPEModel(cfg=OmegaConf.create(configuration))
    model.joint.joint_net[-1].bias.data[model.tokenizer.vocab_size] = NEVER
    model.save_to(str(path))
