"""The disk that a journal lies on: whether SQLite may touch its files now.

SQLite maps the file `-shm` into memory. Where the disk takes no block for such a page, or no write at all, the kernel
answers not with an error but with SIGBUS, which ends the process: a full disk would stop the line. So the disk is asked
first, by calls that return an error.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

ROOM_BYTES = 256 * 1024
"""Nothing is opened with less than this left: what SQLite creates beside the database needs a third of it."""
_SHM_BYTES = 32 * 1024  # one region of SQLite's, for the first 4062 pages of the write-ahead log: more than WAL_BYTES


def has_room(path: Path) -> bool:
    """Whether a journal may be opened there. Where nobody knows how much is left, it may."""
    try:
        found = os.statvfs(path.resolve().parent)
    except OSError:
        return True  # opening will say what is wrong
    return found.f_blocks == 0 or found.f_bavail * found.f_frsize >= ROOM_BYTES


class Place:
    """Where one journal is written. It remembers that it was a mounted disk, if it ever was one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._was_mount = False

    def check(self) -> None:
        """To be asked before the journal is opened.

        Raises:
            OSError: its disk is not there, and a new journal would be begun on the disk around it; or it is full.
        """
        is_mount = self._path.resolve().parent.is_mount()
        if self._was_mount and not is_mount:
            raise OSError(errno.ENODEV, "its disk is not mounted any more")
        self._was_mount = is_mount
        if not has_room(self._path):
            raise OSError(errno.ENOSPC, f"its disk is full: less than {ROOM_BYTES // 1024} kB are left")


def hold_shared_memory(database: Path) -> None:
    """Give SQLite's open `-shm` file all of its blocks, so that a disk that fills up later lacks none of them.

    By SQLite's own descriptor: to open and close another one would lift the locks that it has there. That one stays
    open as long as the connection.

    Raises:
        OSError: the disk is full.
    """
    shared = database.with_name(f"{database.name}-shm")
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists, or of another thread
            if descriptor.readlink() == shared:
                os.posix_fallocate(int(descriptor.name), 0, _SHM_BYTES)
                return
