"""Memory that months of running would leave in pieces: what is free goes back to the system.

Nothing here is about leaks. Connections, recipes and reloads take and free memory in all sizes, in the arenas of many
threads, and glibc keeps the pages between what is in use: after some crowds of 200 subscribers 20 of 85 MB.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

TRIM_S = 60.0
"""Between two trims; one takes about a millisecond, in which a thread that wants memory of the same arena waits."""


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


def _find_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    found: Callable[[int], int] = trim
    return found


_trim = _find_trim()
