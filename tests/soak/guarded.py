"""Threads of the soak itself: one that dies must not look like one that finds nothing."""

import threading
from collections.abc import Callable


def guarded(name: str, run: Callable[[], None], broken: Callable[[str, str], None]) -> threading.Thread:
    """A thread, not started yet, whose failure is a broken promise."""

    def guard() -> None:
        try:
            run()
        except Exception as err:
            broken("the soak itself works", f"{name}: {err!r}")
            raise

    return threading.Thread(target=guard, name=name, daemon=True)
