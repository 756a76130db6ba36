"""Putting a finished bundle in its place, so that at no moment there is half of one."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inspectd.errors import DataError
from inspectd.model.bundle import MANIFEST

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h


def refuse_other_things(bundle: Path) -> None:
    """Replacing a bundle is meant; replacing anything else is a slip.

    Raises:
        DataError: `bundle` is a file, or a directory that holds no bundle.
    """
    if bundle.is_dir():
        if any(bundle.iterdir()) and not (bundle / MANIFEST).exists():
            raise DataError(f"{bundle}: holds something that is no bundle; give another -o")
    elif bundle.exists():
        raise DataError(f"{bundle}: is a file; a bundle is a directory, give another -o")


@contextmanager
def replacing(bundle: Path) -> Iterator[Path]:
    """An empty directory to make the new bundle in; once it has a manifest, it takes the place of `bundle` in one step.

    Without a manifest, after an error, or after a kill, what was at `bundle` is still there.

    Raises:
        DataError: the disk is full, or cannot be written.
    """
    work = bundle.with_name(f".{bundle.name}.new-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        yield work
        if (work / MANIFEST).exists():
            _swap(work, bundle)
    except OSError as err:
        raise DataError(f"{bundle}: cannot be written: {err.strerror or err}") from err
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _swap(work: Path, bundle: Path) -> None:
    """Exchange the two directories atomically; what was there before ends up in `work`, to be removed."""
    if not bundle.exists():
        work.rename(bundle)
    elif not any(bundle.iterdir()):
        work.replace(bundle)
    elif not _exchange(work, bundle):
        # A file system that cannot exchange (some network ones): between the two renames there is no bundle.
        old = work.with_suffix(".old")
        bundle.rename(old)
        work.rename(bundle)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """renameat2(2) with RENAME_EXCHANGE; False where the file system or the C library does not have it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    if (code := ctypes.get_errno()) in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))
