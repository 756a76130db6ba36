"""Memory that months of running would leave in pieces: what is free goes back to the system.

Nothing here is about leaks. Connections, recipes and reloads take and free memory in all sizes, and glibc keeps the
pages between what is in use: after some crowds of 200 subscribers 20 of 85 MB. In the arenas of many threads it does
so many times over.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

TRIM_S = 60.0
"""Between two trims; one takes about a millisecond, in which a thread that wants memory of the same arena waits."""
ARENAS = 2
"""With glibc's own limit (8 for each core) every thread has an arena, and what a change of recipe or a crowd leaves
lies in another one each time: resident memory crept up for hours of such changes. Threads meet seldom in malloc here:
what is taken for every frame comes from pools."""
_M_ARENA_MAX = -8  # malloc.h


def share_arenas() -> None:
    """Let all threads that begin from now on share `ARENAS` arenas, where the C library has any (glibc)."""
    if _mallopt is not None:
        _mallopt(_M_ARENA_MAX, ARENAS)


def forget_what_stays() -> None:
    """Modules and models live as long as the process: a full garbage collection need not look at them each time.

    It would hold every thread for some 20 ms, in the middle of somebody's deadline.
    """
    gc.collect()
    gc.freeze()


def forget_what_went() -> None:
    """What was taken out of service is a circle of objects; until it is found, it holds memory of a GPU or a library.

    Without what stays there is little to look at: under a millisecond.
    """
    gc.collect()


def give_back() -> None:
    """Give free pages back to the system, where the C library can (glibc); the GIL is not held meanwhile."""
    if _trim is not None:
        _trim(0)


def _find(name: str, *takes: type[ctypes._SimpleCData[int]]) -> Callable[..., int] | None:
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):  # another C library
        return None
    function.argtypes, function.restype = takes, ctypes.c_int
    found: Callable[..., int] = function
    return found


_trim = _find("malloc_trim", ctypes.c_size_t)
_mallopt = _find("mallopt", ctypes.c_int, ctypes.c_int)
