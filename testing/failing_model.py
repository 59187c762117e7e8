"""Make a model whose file can be read, and which fails at every window."""

import io
import tarfile
from pathlib import Path

from serve_app.model_source import bundled_model_path

CONFIG = "model_config.yaml"
FITTING, FAILING = b"frame_splicing: 1", b"frame_splicing: 2"
"""The encoder takes one frame of features at a time. Given two, it raises an exception."""


def write_failing_model(path: Path) -> None:
    """Write the bundled model with features that do not fit its encoder."""
    with tarfile.open(bundled_model_path()) as bundled, tarfile.open(path, "w") as changed:
        for member in bundled:
            file = bundled.extractfile(member)
            content = file.read() if file else b""
            if Path(member.name).name == CONFIG:
                assert FITTING in content
                content = content.replace(FITTING, FAILING)
            member.size = len(content)
            changed.addfile(member, io.BytesIO(content))
