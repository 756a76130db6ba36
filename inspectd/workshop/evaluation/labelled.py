"""A folder of labelled pictures to judge by: whatever classes it has, as long as the bundle knows them.

DATA/<class>/…                      judged as a whole
DATA/{train,val,test}/<class>/…     one split of it is judged
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inspectd.errors import DataError
from inspectd.frame import U8
from inspectd.model.calibrate import Labels
from inspectd.model.data import SPLITS
from inspectd.model.folder import files_below, is_picture
from inspectd.model.manifest import ClassSpec
from inspectd.model.pictures import SUFFIXES, decode_picture
from inspectd.model.preprocess import PreprocessSpec, preprocess_picture
from inspectd.workshop.provenance import pixels_sha256, printable

_READERS = 2


@dataclass(frozen=True, slots=True)
class File:
    """A picture that was found, not read yet. `name` is relative to the folder that was given, printable."""

    path: Path
    name: str
    label: int


@dataclass(frozen=True, slots=True)
class Labelled:
    """Pictures in memory, row by row.

    `files` and `pixel_hashes` are SHA-256 in hex, of each file and of its row of `pixels`.
    """

    names: tuple[str, ...]
    labels: Labels  # int64 [N]
    pixels: U8  # [N, height, width, 3] RGB, as the network sees them
    files: tuple[str, ...]
    pixel_hashes: tuple[str, ...]
    unreadable: tuple[str, ...]  # one line for each file that is left out

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, rows: Collection[int]) -> Labelled:
        """These rows, in the order that they have."""
        kept = sorted(rows)
        return Labelled(
            names=tuple(self.names[i] for i in kept),
            labels=self.labels[kept],
            pixels=self.pixels[kept],
            files=tuple(self.files[i] for i in kept),
            pixel_hashes=tuple(self.pixel_hashes[i] for i in kept),
            unreadable=self.unreadable,
        )

    def counts(self, classes: Sequence[ClassSpec]) -> dict[str, int]:
        """Pictures per class name, of every class."""
        found = np.bincount(self.labels, minlength=len(classes))
        return {spec.name: int(n) for spec, n in zip(classes, found, strict=True)}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names and contents, as that of a data set."""
        return fingerprint(zip(self.names, self.files, strict=True))


def fingerprint(pictures: Iterable[tuple[str, str]]) -> str:
    """SHA-256 in hex over (name, SHA-256) pairs, in the order of the names: what `model.data` calls a fingerprint."""
    digest = hashlib.sha256()
    for name, sha256 in sorted(pictures):
        digest.update(os.fsencode(f"{name}\0{sha256}\n"))
    return digest.hexdigest()


def has_splits(root: Path) -> list[str]:
    """Which of train/, val/, test/ are in the folder."""
    return [split for split in SPLITS if (root / split).is_dir()]


def find_pictures(root: Path, folder: Path, classes: Sequence[ClassSpec]) -> list[File]:
    """Every picture in the class folders of `folder`, sorted; not every class needs to have one.

    Raises:
        DataError: no such folder, a folder of a class that the bundle does not know, or no picture at all.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}; give a folder with one folder per class")
    known = {spec.name: label for label, spec in enumerate(classes)}
    found, others = [], 0
    for entry in _subfolders(folder):
        if entry.name not in known:
            raise DataError(
                f"{entry}: the bundle knows no class {printable(entry.name)!r}; it has {', '.join(sorted(known))}"
            )
        for path in files_below(entry):
            if is_picture(path):
                found.append(File(path, printable(path.relative_to(root).as_posix()), known[entry.name]))
            else:
                others += 1
    if not found:
        rest = f", only {others} other files" if others else ""
        raise DataError(
            f"{folder}: no pictures in class folders{rest}; expected {folder}/{classes[0].name}/*.png "
            f"or the like ({', '.join(sorted(SUFFIXES))})"
        )
    return found


def read_labelled(files: Sequence[File], spec: PreprocessSpec, on_progress: Callable[[int, int], None]) -> Labelled:
    """Read, hash and preprocess every picture once, exactly as the line does; what cannot be read is left out.

    Raises:
        DataError: not one of them can be read.
    """

    def load(file: File) -> tuple[str, U8] | str:
        try:
            raw = file.path.read_bytes()
            return hashlib.sha256(raw).hexdigest(), preprocess_picture(decode_picture(raw, file.name), spec)
        except OSError as err:
            return f"{file.name}: cannot be read: {err.strerror}"
        except DataError as err:
            return str(err)

    pixels = np.empty((len(files), spec.height, spec.width, 3), np.uint8)
    kept: list[File] = []
    hashes, unreadable = [], []
    with ThreadPoolExecutor(_READERS, thread_name_prefix="picture-reader") as pool:
        for done, (file, loaded) in enumerate(zip(files, pool.map(load, files), strict=True), start=1):
            if isinstance(loaded, str):
                unreadable.append(loaded)
            else:
                pixels[len(kept)] = loaded[1]
                hashes.append(loaded[0])
                kept.append(file)
            on_progress(done, len(files))
    if not kept:
        raise DataError(f"none of {len(files)} pictures can be read; the first: {unreadable[0]}")
    pixels = pixels[: len(kept)]
    return Labelled(
        names=tuple(file.name for file in kept),
        labels=np.array([file.label for file in kept], np.int64),
        pixels=pixels,
        files=tuple(hashes),
        pixel_hashes=tuple(pixels_sha256(row) for row in pixels),
        unreadable=tuple(unreadable),
    )


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as err:
        raise DataError(f"{folder}: cannot be read: {err.strerror}") from err
