"""The folder that pictures are kept in: names, whole files only, and the oldest give way.

    <camera>/<roi>/<YYYY-MM-DD>/<HHMMSS.mmm>-<boot>-<index>-<verdict>.png        (UTC)

How much there is is known per folder of a day, so that a million pictures cost no memory; what is oldest is
looked up in the oldest day when room is needed. Both are done in small steps (`tend`), between two pictures.
Only files with such names, in such folders, are counted or deleted; symbolic links are not followed.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from inspectd.verdict.schema import VerdictKind

STEP = 256
"""Names looked at in one step: about a millisecond."""
DELETIONS = 16
"""Files deleted in one step."""
VICTIMS = 1024
"""Oldest pictures remembered from one look through a day, so that not every deletion needs one."""
LEFT_OVER_S = 600.0
"""An unfinished file older than that is nobody's: a process was killed while it wrote."""

_PICTURE = re.compile(r"\d{6}\.\d{3}-[0-9a-z]{1,8}-\d+-(pass|fail|no_result)\.(png|jpg)")
_UNFINISHED = re.compile(r"\." + _PICTURE.pattern + r"\.tmp")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def picture_path(
    camera: str, roi: str, captured_at: float, boot_id: str, index: int, kind: VerdictKind, suffix: str
) -> str:
    """Where a picture goes, relative to the folder. A `captured_at` that is no time counts as now."""
    try:
        at = datetime.fromtimestamp(captured_at, UTC)
    except (ValueError, OverflowError, OSError):
        at = datetime.now(UTC)
    clock = f"{at:%H%M%S}.{at.microsecond // 1000:03d}"
    return f"{camera}/{roi}/{at.year:04d}-{at:%m-%d}/{clock}-{boot_id[:8]}-{index}-{kind}{suffix}"


class Shelf:
    """Writes and deletes the pictures. One thread's, except for the construction. Everything may raise OSError."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.size = 0
        """Bytes of the pictures that were found and written so far."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._was_mount = False
        self._days: dict[str, dict[str, int]] = {}  # day -> folder of that day -> bytes
        self._fresh: set[str] | None = set()  # written since the search began, for it may find them; None after it
        self._oldest: deque[tuple[str, str]] = deque()  # names and folders of what is deleted next
        self._work = self._search()

    def open(self) -> None:
        """Make the folder if only it is missing, and see that it can be written."""
        self._folder.mkdir(exist_ok=True)
        self._was_mount = self._folder.is_mount()
        self.probe(1)

    def probe(self, size: int) -> None:
        """Raises unless that many bytes could be written."""
        self._refuse_bare_mount_point()
        trial = self._folder / ".inspectd.tmp"
        try:
            _write_through(trial, bytes(size))
        finally:
            with contextlib.suppress(OSError):
                trial.unlink()

    def add(self, path: str, data: bytes) -> None:
        """Write a picture: wholly, or not at all."""
        target = self._folder / path
        # The folder itself is never made again: where a disk was unmounted it would fill the system's.
        self._refuse_bare_mount_point()
        for folder in (target.parent.parent.parent, target.parent.parent, target.parent):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
        unfinished = target.with_name(f".{target.name}.tmp")
        try:
            _write_through(unfinished, data)
            before = target.stat().st_size if target.exists() else 0
            unfinished.replace(target)
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        if self._fresh is not None:
            self._fresh.add(path)
        self._count(os.path.dirname(path), len(data) - before)  # noqa: PTH120 - no Path for every picture

    def tend(self) -> bool:
        """One small step: of finding out what is there, then of deleting what is too much. True if there is more."""
        try:
            next(self._work)
        except StopIteration:
            self._fresh = None
            if self.size <= self._max_bytes:
                return False
            self._work = self._delete_oldest()
        return True

    def forget(self) -> None:
        """Search afresh: what is there may have changed."""
        self.size = 0
        self._days = {}
        self._fresh = set()
        self._oldest.clear()
        self._work = self._search()

    def _refuse_bare_mount_point(self) -> None:
        if self._was_mount and not self._folder.is_mount():
            raise OSError(errno.ENODEV, "its disk is not mounted any more")

    def _count(self, folder: str, size: int) -> None:
        folders = self._days.setdefault(folder[-10:], {})
        folders[folder] = folders.get(folder, 0) + size
        self.size += size

    def _search(self) -> Iterator[None]:
        """Find every picture that is there, and remove what a killed process left unfinished."""
        for folder in self._day_folders():
            yield
            for number, entry in enumerate(_entries(self._folder / folder)):
                if _is_picture(entry):
                    if self._fresh is None or f"{folder}/{entry.name}" not in self._fresh:
                        self._count(folder, _size(entry))
                elif _UNFINISHED.fullmatch(entry.name):
                    _remove_left_over(entry)
                if number % STEP == STEP - 1:
                    yield

    def _day_folders(self) -> Iterator[str]:
        for camera in _subfolders(self._folder, _NAME):
            for roi in _subfolders(self._folder / camera, _NAME):
                for day in _subfolders(self._folder / camera / roi, _DAY):
                    yield f"{camera}/{roi}/{day}"

    def _delete_oldest(self) -> Iterator[None]:
        """Delete the oldest pictures until there is room, and a day's folder with its last one."""
        while self.size > self._max_bytes and self._days:
            if not self._oldest:
                yield from self._look_for_oldest(min(self._days))
            for _ in range(min(DELETIONS, len(self._oldest))):
                if self.size <= self._max_bytes:
                    return
                self._delete(*self._oldest.popleft())
            yield

    def _look_for_oldest(self, day: str) -> Iterator[None]:
        """Remember the oldest pictures of a day; their names begin with the time."""
        found: list[tuple[str, str]] = []
        for folder in tuple(self._days[day]):
            for number, entry in enumerate(_entries(self._folder / folder)):
                if _is_picture(entry):
                    found.append((entry.name, folder))
                if len(found) >= 2 * VICTIMS:
                    found = heapq.nsmallest(VICTIMS, found)
                if number % STEP == STEP - 1:
                    yield
        self._oldest.extend(heapq.nsmallest(VICTIMS, found))
        if not found:  # what is counted and not there was deleted by somebody else
            for folder in tuple(self._days[day]):
                self._drop(folder)

    def _delete(self, name: str, folder: str) -> None:
        path = self._folder / folder / name
        with contextlib.suppress(FileNotFoundError):
            size = path.lstat().st_size
            path.unlink()
            self._count(folder, -size)
            if self._days[folder[-10:]][folder] <= 0:
                self._drop(folder)

    def _drop(self, folder: str) -> None:
        day = folder[-10:]
        self.size -= self._days[day].pop(folder)
        if not self._days[day]:
            del self._days[day]
        with contextlib.suppress(OSError):  # not empty: something of somebody else's is there
            (self._folder / folder).rmdir()


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    # What cannot be read was not written by us; whether the folder itself works is tried by writing to it.
    with contextlib.suppress(FileNotFoundError, PermissionError), os.scandir(folder) as entries:
        yield from entries


def _subfolders(folder: Path, name: re.Pattern[str]) -> list[str]:
    return [e.name for e in _entries(folder) if name.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return _PICTURE.fullmatch(entry.name) is not None and entry.is_file(follow_symlinks=False)


def _size(entry: os.DirEntry[str]) -> int:
    with contextlib.suppress(FileNotFoundError):
        return entry.stat(follow_symlinks=False).st_size
    return 0


def _remove_left_over(entry: os.DirEntry[str]) -> None:
    with contextlib.suppress(FileNotFoundError):
        if time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFT_OVER_S:
            Path(entry.path).unlink()


def _write_through(path: Path, data: bytes) -> None:
    """Write a file and wait for the disk, so that a power cut after its renaming leaves no half of it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
