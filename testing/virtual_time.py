"""An event loop with a virtual clock, which jumps to the next timer instead of waiting.

Tests of scheduling are exact and fast, whatever the speed of the machine.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _InstantSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.clock_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("deadlock: nothing is scheduled")
        self.clock_s += max(timeout, 0)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 seconds. It advances only when every task waits for a timer."""

    def __init__(self) -> None:
        self._instant = _InstantSelector()
        super().__init__(self._instant)

    def time(self) -> float:
        return self._instant.clock_s


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to completion in virtual time. Raises RuntimeError if every task waits and no timer is set."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)


def now_s() -> float:
    """The virtual time, seconds."""
    return asyncio.get_running_loop().time()
