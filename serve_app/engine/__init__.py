"""Models behind one protocol: int16 windows in, tokens out. `protocol.py` is what they share; `parakeet.py` is the real one."""

from serve_app.engine.parakeet import ParakeetEngine
from serve_app.engine.protocol import Engine, EngineInfo

__all__ = ["Engine", "EngineInfo", "ParakeetEngine"]
