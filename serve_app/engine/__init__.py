"""Speech models: int16 windows in, tokens out. `protocol.py` is the interface, `parakeet.py` the one for NeMo models."""

from serve_app.engine.parakeet import ParakeetEngine
from serve_app.engine.protocol import Engine, EngineInfo

__all__ = ["Engine", "EngineInfo", "ParakeetEngine"]
