"""Settings: the shipped files are valid, invalid settings are refused, the environment has precedence, the docs are complete."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from serve_app.model_source import bundled_model_path
from serve_app.settings import Settings, WindowSettings
from testing.paths import ROOT
from tools import settings_table

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def application_args(path: Path) -> dict[str, Any]:
    (application,) = yaml.safe_load(path.read_text())["applications"]
    args: dict[str, Any] = application["args"]
    return args


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_parse(path: Path) -> None:
    settings = Settings(**application_args(path))
    assert settings.default_model_name in {model.name for model in settings.models}


def test_the_default_config_loads_models_on_the_first_request() -> None:
    settings = Settings(**application_args(ROOT / "configs" / "serve_config.yaml"))
    assert [(m.name, m.source, m.min_replicas) for m in settings.models] == [
        ("parakeet-tdt-0.6b-v2", "nvidia/parakeet-tdt-0.6b-v2", 0),
        ("parakeet-tdt-0.6b-v3", "nvidia/parakeet-tdt-0.6b-v3", 0),
        ("digits", "bundled", 0),
    ]
    assert settings.default_model_name == "parakeet-tdt-0.6b-v2"


def test_the_demo_loads_its_model_at_the_start() -> None:
    (model,) = Settings(**application_args(ROOT / "configs" / "demo.yaml")).models
    assert (model.name, model.source, model.min_replicas) == ("digits", "bundled", 1)


def test_the_container_serves_the_same_application_as_the_default() -> None:
    container = application_args(ROOT / "configs" / "container.yaml")
    assert Settings(**container) == Settings(**application_args(ROOT / "configs" / "serve_config.yaml"))


@pytest.mark.parametrize(
    "args",
    [
        {"modles": []},
        {"models": []},
        {"models": [{"name": "a", "source": "bundled", "gpu": 1}]},
        {"models": [{"name": "a b", "source": "bundled"}]},
        {"models": [{"name": "a", "source": "parakeet"}]},
        {"models": [{"name": "a", "source": "org/repo:file.bin"}]},
        {"models": [{"name": "a", "source": "bundled"}, {"name": "a", "source": "x.nemo"}]},
        {"models": [{"name": "a", "source": "bundled", "min_replicas": 2}]},
        {"models": [{"name": "a", "source": "bundled"}], "default_model": "b"},
        {"models": [{"name": "a", "source": "bundled"}], "model_aliases": {"c": "b"}},
        {"models": [{"name": "a", "source": "bundled", "fast_paths": "none"}]},
        {"models": [{"name": "a", "source": "bundled", "fast_paths": ["attention", "tention"]}]},
        {"windows": {"window_s": 5, "overlap_s": 4}},
        {"limits": {"max_upload_bytes": 0}},
    ],
    ids=str,
)
def test_invalid_settings_are_refused(args: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**args)


def test_the_environment_has_precedence_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAKEET_BATCHING__MAX_BATCH_ITEMS", "8")
    args: dict[str, Any] = {"batching": {"max_batch_items": 4, "ageing_s": 2.0}}
    settings = Settings(**args)
    assert settings.batching.max_batch_items == 8
    assert settings.batching.ageing_s == 2.0


def test_aliases_of_models_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAKEET_MODEL_ALIASES", '{"whisper-*": "digits", "gpt-4o-transcribe": ""}')
    assert Settings().model_aliases == {"whisper-*": "digits", "gpt-4o-transcribe": ""}


def test_every_setting_is_described() -> None:
    assert [path for path, field in settings_table.leaves() if not field.description] == []


def test_the_docs_contain_the_current_table_of_settings() -> None:
    """`python -m tools.settings_table` prints the current table."""
    assert settings_table.table() in (ROOT / "docs" / "configuration.md").read_text()


def test_the_bundled_model_exists_and_is_small() -> None:
    assert bundled_model_path().stat().st_size < 8_000_000


class TestSeedVariables:
    @pytest.mark.parametrize(
        ("chunk", "overlap", "window_s", "overlap_s"),
        [
            ("30", "5", 30, 5),
            ("30.0", "", 30, 2),
            ("", "5", 32, 5),
            ("30", "0", 30, 1.5),
            ("1", "5", 3, 1.5),
            ("9999", "5", 600, 5),
        ],
    )
    def test_chunk_variables_set_the_windows(
        self, monkeypatch: pytest.MonkeyPatch, chunk: str, overlap: str, window_s: float, overlap_s: float
    ) -> None:
        monkeypatch.setenv("TRANSCRIBE_CHUNK_LEN", chunk)
        monkeypatch.setenv("TRANSCRIBE_OVERLAP", overlap)
        windows = Settings().windows
        assert (windows.window_s, windows.overlap_s) == (window_s, overlap_s)

    def test_they_override_the_file_but_not_the_parakeet_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRANSCRIBE_CHUNK_LEN", "20")
        assert Settings(windows=WindowSettings(window_s=40)).windows.window_s == 20
        assert Settings.model_validate({"windows": {"overlap_s": 12}}).windows == WindowSettings(window_s=20, overlap_s=10)
        monkeypatch.setenv("PARAKEET_WINDOWS__WINDOW_S", "25")
        assert Settings().windows.window_s == 25

    def test_a_value_that_is_not_a_number_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRANSCRIBE_OVERLAP", "five")
        with pytest.raises(ValueError, match="TRANSCRIBE_OVERLAP"):
            Settings()


def test_the_longest_window_of_a_model_may_be_that_of_a_live_stream() -> None:
    settings = Settings.model_validate(
        {
            "models": [{"name": "a", "source": "bundled"}, {"name": "b", "source": "bundled", "windows": {"window_s": 60}}],
            "windows": {"window_s": 16},
            "live": {"longest_window_s": 40},
        }
    )
    assert [settings.max_window_s(model) for model in settings.models] == [40, 60]
