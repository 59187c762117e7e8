"""Work on many items in threads."""

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    items: Iterable[tuple[Key, Item]], work: Callable[[Item], Result], max_parallel: int
) -> Iterator[tuple[Key, Result | Exception]]:
    """The key of each item, and the result of `work` or the error that it raised, in the order in which the work ends.

    An item is taken when a thread is free for it, so `items` may be another call of this function.
    """
    ended: SimpleQueue[tuple[Key, Result | Exception] | None] = SimpleQueue()
    waiting, taking = iter(items), threading.Lock()

    def run() -> None:
        try:
            while True:
                with taking:
                    item = next(waiting, None)
                if item is None:
                    return
                try:
                    outcome: Result | Exception = work(item[1])
                except Exception as error:
                    outcome = error
                ended.put((item[0], outcome))
        finally:
            ended.put(None)

    for _ in range(max_parallel):
        # Daemon threads, so that Ctrl-C does not wait for the network.
        threading.Thread(target=run, daemon=True).start()
    for _ in range(max_parallel):
        while (outcome := ended.get()) is not None:
            yield outcome


def in_order(outcomes: Iterable[tuple[int, Result]]) -> Iterator[tuple[int, Result]]:
    """The same in the order of their keys, which are 0, 1, 2 and so on."""
    held: dict[int, Result] = {}
    next_key = 0
    for key, outcome in outcomes:
        held[key] = outcome
        while next_key in held:
            yield next_key, held.pop(next_key)
            next_key += 1
