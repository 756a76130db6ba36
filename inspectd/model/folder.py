"""What lies in a data folder: its classes, the roles they have, and the picture files. Nothing is opened here."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inspectd.errors import DataError
from inspectd.model.manifest import ClassSpec, Role
from inspectd.model.pictures import SUFFIXES

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

OK_NAMES = frozenset({"ok", "good", "pass", "normal", "free"})
EMPTY_NAMES = frozenset({"empty"})

_SYSTEM_FILES = ("thumbs.db", "desktop.ini")


@dataclass(frozen=True, slots=True)
class File:
    """A picture file. `name` is relative to the data folder, POSIX; `label` indexes the classes."""

    path: Path
    name: str
    label: int
    given: Split | None
    """The split whose folder it lies in; None where that is to be decided."""


def role_of(class_name: str) -> Role:
    """The role that a class has by its folder's name."""
    name = class_name.lower()
    return "ok" if name in OK_NAMES else "empty" if name in EMPTY_NAMES else "defect"


def find_pictures(
    root: Path, ok: Sequence[str], empty: Sequence[str]
) -> tuple[tuple[ClassSpec, ...], list[File], tuple[str, ...]]:
    """The classes, every picture file in a stable order, and the names of other files."""
    if not root.is_dir():
        raise DataError(f"{root}: {'is no folder' if root.exists() else 'no such folder'}; give one folder per class")
    folders = [folder.name for folder in _subfolders(root)]
    given = [split for split in SPLITS if split in folders]
    classes = _classes(root / "train" if "train" in given else root, ok, empty)
    files: list[File] = []
    ignored: list[str] = []
    if "train" not in given:
        _scan(root, root, None, classes, files, ignored)
        return classes, files, tuple(ignored)
    if strange := [name for name in folders if name not in SPLITS and _holds_pictures(root / name)]:
        raise DataError(f"{root / strange[0]}: unknown beside train/; expected train/, val/ and test/ only")
    for split in given:
        _scan(root, root / split, split if split != "train" or "val" in given else None, classes, files, ignored)
    return classes, files, tuple(ignored)


def _holds_pictures(folder: Path) -> bool:
    """Annotations, lists and notes beside train/ are nobody's class; pictures there may be meant to count."""
    return any(path.suffix.lower() in SUFFIXES for path in files_below(folder))


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, if it is there, sorted, without hidden ones. Links are followed, but into each folder
    only once.

    Raises:
        DataError: a folder that cannot be read: its pictures would be missing without a word.
    """

    def refuse(err: OSError) -> None:
        if not isinstance(err, FileNotFoundError):  # a split need not have every class
            raise DataError(f"{err.filename}: cannot be read: {err.strerror}") from err

    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for here, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = Path(here).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(here, name) for name in names if not name.startswith(".")]
    return sorted(found)


def is_picture(path: Path) -> bool:
    """Whether a file is to be read as a picture, by its suffix and its kind."""
    # A link that leads nowhere is a picture that cannot be read; a pipe is none, and would never end.
    return path.suffix.lower() in SUFFIXES and (path.is_file() or not path.exists())


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _classes(folder: Path, ok: Sequence[str], empty: Sequence[str]) -> tuple[ClassSpec, ...]:
    names = tuple(entry.name for entry in _subfolders(folder))
    if not names:
        raise DataError(f"{folder}: has no class folders; expected {folder}/good, {folder}/scratch, …")
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_. -]{0,63}", name):
            raise DataError(
                f"{folder}: class folder {name!r}: names become labels; use up to 64 letters, digits, _ . - and spaces"
            )
    for option, asked in (("ok", ok), ("empty", empty)):
        if unknown := [name for name in asked if name not in names]:
            raise DataError(f"--{option} {unknown[0]}: no such class in {folder}; there are {', '.join(names)}")
    if both := [name for name in ok if name in empty]:
        raise DataError(f"--ok {both[0]} and --empty {both[0]}: a class is one of the two")
    if len(names) == 1:
        raise DataError(f"{folder}: {names[0]!r} is the only class; two or more are needed, one of them a defect")
    classes = tuple(ClassSpec(name=name, role=_role(name, ok, empty)) for name in names)
    if not any(spec.role == "defect" for spec in classes):
        raise DataError(f"{folder}: no defect class; folders are {', '.join(names)}")
    return classes


def _role(name: str, ok: Sequence[str], empty: Sequence[str]) -> Role:
    """What was said counts for a role as a whole: beside --ok smooth, a folder called good is no good part."""
    if name in ok:
        return "ok"
    if name in empty:
        return "empty"
    by_name = role_of(name)
    return "defect" if (by_name == "ok" and ok) or (by_name == "empty" and empty) else by_name


def _scan(
    root: Path,
    folder: Path,
    given: Split | None,
    classes: Sequence[ClassSpec],
    files: list[File],
    ignored: list[str],
) -> None:
    """Add every picture below the class folders of `folder`."""
    names = [spec.name for spec in classes]
    if strange := [entry.name for entry in _subfolders(folder) if entry.name not in names]:
        raise DataError(f"{folder / strange[0]}: there is no such class in {root / 'train'}")
    for label, class_name in enumerate(names):
        for path in files_below(folder / class_name):
            name = path.relative_to(root).as_posix()
            if is_picture(path):
                files.append(File(path, name, label, given))
            elif path.name.lower() not in _SYSTEM_FILES:
                ignored.append(name)
