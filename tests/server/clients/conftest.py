"""One running server for every test of this folder, set up with the variables that the READMEs of the replaced servers show.

It is the default configuration with limits that a test reaches. The model file lies where seed B has it, and is the bundled
model.
"""

import shutil
from collections.abc import Iterator

import pytest

from serve_app.model_source import bundled_model_path
from testing.paths import ROOT
from testing.server import Server, serve_run

MODEL = "parakeet-tdt-0.6b-v2"
A = {
    "BATCH_SIZE": "4",
    "NUM_WORKERS": "0",
    "TRANSCRIBE_CHUNK_LEN": "30",
    "TRANSCRIBE_OVERLAP": "5",
    "LONG_AUDIO_THRESHOLD": "480",
    "LOG_LEVEL": "INFO",
}
B = {"CHUNK_MINITE": "10", "IDLE_TIMEOUT_MINUTES": "30", "ENABLE_LAZY_LOAD": "false"}
KEYS = ("your-secret-key", "sync", "async", "litellm", "limited")
MAX_REQUESTS_PER_MINUTE = 100
MAX_UPLOAD_BYTES = 2_000_000


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its client has the first key."""
    folder = tmp_path_factory.mktemp("clients")
    (folder / "models").mkdir()
    shutil.copy(bundled_model_path(), folder / "models" / f"{MODEL}.nemo")
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    dot_env = A | B | {"API_KEY": ",".join(KEYS)}
    args = {
        "auth": {"max_requests_per_minute": MAX_REQUESTS_PER_MINUTE},
        "limits": {"max_upload_bytes": MAX_UPLOAD_BYTES},
    }
    config = ROOT / "configs" / "serve_config.yaml"
    with serve_run(config, folder, args=args, env=env, dot_env=dot_env, drains=True) as server:
        server.client.headers["Authorization"] = f"Bearer {KEYS[0]}"
        server.wait_for_state(MODEL, "ready")
        yield server
