"""Which models are loaded, and how; tests/engine/test_parakeet.py has the bundled one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.engine.parakeet import ParakeetEngine
from serve_app.errors import ModelUnavailable
from serve_app.model_source import bundled_model_path
from testing.random_models import save_random_model


def subsampled_4_times(config: dict[str, Any]) -> None:
    config["encoder"]["subsampling_factor"] = 4


def hop_of_20_ms(config: dict[str, Any]) -> None:
    config["preprocessor"]["window_stride"] = 0.02


def telephone_audio(config: dict[str, Any]) -> None:
    config["sample_rate"] = config["preprocessor"]["sample_rate"] = 8_000
    config["preprocessor"]["window_stride"] = 0.02


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (subsampled_4_times, "40 ms .4 times 160 samples."),
        (hop_of_20_ms, "160 ms"),
        (telephone_audio, "audio at 8000 Hz"),
    ],
)
def test_a_model_with_another_clock_is_refused(change: Callable[[dict[str, Any]], None], reason: str, tmp_path: Path) -> None:
    """Its times would be wrong by a factor."""
    path = tmp_path / "model.nemo"
    save_random_model("tdt", path, change=change)
    with pytest.raises(ModelUnavailable, match=reason):
        ParakeetEngine.load(path, device="cpu")


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    def without_tokenizer(config: dict[str, Any]) -> None:
        del config["tokenizer"]
        config["labels"] = list("abc")
        config["decoder"]["vocabulary"], config["decoder"]["num_classes"] = config["labels"], 3

    path = tmp_path / "characters.nemo"
    save_random_model("ctc", path, kind="EncDecCTCModel", change=without_tokenizer)
    with pytest.raises(ModelUnavailable, match=r"characters\.nemo cannot be served: it is a character model"):
        ParakeetEngine.load(path, device="cpu")


def test_a_transducer_that_cannot_be_decoded_in_batches_is_refused(tmp_path: Path) -> None:
    def multi_blank(config: dict[str, Any]) -> None:
        config["joint"]["num_extra_outputs"] = 2
        config["decoding"] |= {"model_type": "multiblank", "big_blank_durations": [2, 4]}
        config["loss"] = {"loss_name": "multiblank_rnnt", "multiblank_rnnt_kwargs": {"big_blank_durations": [2, 4]}}

    path = tmp_path / "multi_blank.nemo"
    save_random_model("rnnt", path, change=multi_blank)
    with pytest.raises(ModelUnavailable, match="multi-blank"):
        ParakeetEngine.load(path, device="cpu")


class TestOnAGpu:
    """Up to the move onto the GPU, which is the first step that fails without one."""

    @pytest.fixture
    def fail_at(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Exception], None]:
        """Makes the move of modules of that class fail; the others stay where they are."""
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share: None)

        def fail(kind: str, error: Exception) -> None:
            def to(module: Any, device: Any = None, dtype: Any = None) -> Any:
                if type(module).__name__ == kind:
                    raise error
                return module

            monkeypatch.setattr(torch.nn.Module, "to", to)

        return fail

    def load(self, gpu_share: float) -> None:
        ParakeetEngine.load(bundled_model_path(), device="cuda", precision="fp32", gpu_share=gpu_share)

    @pytest.mark.parametrize("kind", ["AudioToMelSpectrogramPreprocessor", "ConformerEncoder", "RNNTJoint"])
    def test_a_model_that_exceeds_its_share_of_the_memory(self, fail_at: Callable[[str, Exception], None], kind: str) -> None:
        fail_at(kind, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))
        with pytest.raises(ModelUnavailable, match=r"digits\.nemo does not fit .* may take 0\.25 \(`gpus_per_replica`\)"):
            self.load(0.25)
        with pytest.raises(ModelUnavailable, match=r"digits\.nemo does not fit into the memory of cuda: CUDA out of memory"):
            self.load(1.0)

    def test_another_failure_stays_what_it_is(self, fail_at: Callable[[str, Exception], None]) -> None:
        fail_at("ConformerEncoder", torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
        with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
            self.load(0.25)
