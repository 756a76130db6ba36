"""Putting a finished bundle in its place, so that at no moment there is half of one."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inspectd.errors import BundleError, DataError, InspectdError, UsageError
from inspectd.model.bundle import MANIFEST, Bundle, file_sha256
from inspectd.model.manifest import COPY_MODEL

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h


def refuse_other_things(bundle: Path, data: Path | None = None) -> None:
    """Replacing a bundle is meant; replacing anything else is a slip.

    Raises:
        DataError: `bundle` is a file, or a directory that holds no bundle.
        UsageError: it has no name of its own, or one of it and the pictures of `data` lies in the other.
    """
    if not bundle.name:
        raise UsageError(f"{bundle}: a bundle is put in its place as a whole, by its name; give another -o")
    if data is not None:
        place, pictures = bundle.resolve(), data.resolve()
        if place.is_relative_to(pictures):
            raise UsageError(f"{bundle}: lies among the pictures ({data}) and would count as a class; give another -o")
        if pictures.is_relative_to(place):
            raise UsageError(f"{bundle}: holds the pictures ({data}), which would go with it; give another -o")
    if bundle.is_dir():
        if any(bundle.iterdir()) and not (bundle / MANIFEST).exists():
            raise DataError(f"{bundle}: holds something that is no bundle; give another -o")
    elif bundle.exists():
        raise DataError(f"{bundle}: is a file; a bundle is a directory, give another -o")


def refuse_lesser(work: Path, bundle: Path) -> None:
    """Where no copy passed its gate, the bundle that the line runs stays.

    Raises:
        InspectdError: `work` has no copy for the daemon, and `bundle` has one.
    """
    if _runs(bundle) and not _runs(work):
        raise InspectdError(
            f"{bundle}: no copy of the new model passed its gate, so the bundle that is there stays; "
            "train otherwise, or move it away and have the weights alone"
        )


def _runs(bundle: Path) -> bool:
    """Whether it has a copy for the daemon on a processor."""
    return any((bundle / model).exists() for copy, model in COPY_MODEL.items() if copy != "onnx")


def copy_files(bundle: Bundle, work: Path) -> None:
    """Everything of the bundle but its manifest, and nothing else than what was loaded.

    Raises:
        BundleError: another bundle took its place, or a file was changed, since it was loaded.
    """
    shutil.copytree(bundle.path, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    for name, sha256 in bundle.manifest.files.items():
        if not (work / name).is_file() or file_sha256(work / name) != sha256:
            raise _exchanged(bundle)


def refuse_exchanged(bundle: Bundle) -> None:
    """What was read of a bundle since it was loaded belongs together only if no other took its place meanwhile.

    Raises:
        BundleError: one did.
    """
    try:
        same = file_sha256(bundle.path / MANIFEST) == bundle.sha256
    except OSError:
        same = False
    if not same:
        raise _exchanged(bundle)


def _exchanged(bundle: Bundle) -> BundleError:
    return BundleError(f"{bundle.path}: was exchanged or changed meanwhile; run it again")


@contextmanager
def replacing(bundle: Path) -> Iterator[Path]:
    """An empty directory to make the new bundle in; once it has a manifest, it takes the place of `bundle` in one step.

    Without a manifest, after an error, a kill or a power cut, what was at `bundle` is still there.

    Raises:
        DataError: the disk is full, or cannot be written.
    """
    work = bundle.with_name(f".{bundle.name}.new-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        yield work
        if (work / MANIFEST).exists():
            for folder, _, names in os.walk(work):
                for name in names:
                    flush(Path(folder, name))
                flush(Path(folder))
            _swap(work, bundle)
            flush(bundle.parent)
    except OSError as err:
        raise DataError(f"{bundle}: cannot be written: {err.strerror or err}") from err
    finally:
        shutil.rmtree(work, ignore_errors=True)


def flush(path: Path) -> None:
    """Bring a file's content, or the names in a folder, to the disk: a rename may get there before what it renames."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
