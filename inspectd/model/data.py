"""A folder of labelled pictures, read without surprises.

    DATA/<class>/…                      split here, by a seeded hash of each picture's content
    DATA/{train,val,test}/<class>/…     taken as it is; without val/, it is split off train/

The role of a class comes from its folder's name: ok, good, pass, normal, free are good parts; empty is
an empty station; everything else is a defect.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import structlog

from inspectd.errors import DataError
from inspectd.frame import U8
from inspectd.model.bundle import ClassSpec, Role, file_sha256
from inspectd.model.pictures import SUFFIXES, read_picture
from inspectd.model.preprocess import PreprocessSpec, preprocess_picture

log = structlog.get_logger(__name__)

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

OK_NAMES = frozenset({"ok", "good", "pass", "normal", "free"})
EMPTY_NAMES = frozenset({"empty"})

_READERS = 4
_NAMED_AT_MOST = 3  # pictures named in an error


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture. `name` is relative to the data folder, POSIX; `label` indexes the classes."""

    path: Path
    name: str
    label: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a data folder holds, pictures not decoded yet. `fingerprint` identifies names and contents."""

    root: Path
    classes: tuple[ClassSpec, ...]
    splits: dict[Split, tuple[Sample, ...]]
    fingerprint: str

    def counts(self, split: Split) -> dict[str, int]:
        """Pictures per class name."""
        found = Counter(sample.label for sample in self.splits[split])
        return {spec.name: found[label] for label, spec in enumerate(self.classes)}


@dataclass(frozen=True, slots=True)
class Pictures:
    """Preprocessed pictures in memory: pixels uint8 [N, height, width, 3] RGB, labels int64 [N]."""

    pixels: U8
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def role_of(class_name: str) -> Role:
    """The role that a class has by its folder's name."""
    name = class_name.lower()
    return "ok" if name in OK_NAMES else "empty" if name in EMPTY_NAMES else "defect"


def open_dataset(root: Path, *, seed: int = 0, val_fraction: float = 0.2) -> Dataset:
    """Find the pictures, hash them, and split them. Every class has pictures to train and to validate.

    Raises:
        DataError: no such folder, no pictures, a class that is empty, alone or of an unusable name,
            no defect class, or pictures that contradict each other.
    """
    if not root.is_dir():
        raise DataError(f"{root}: {'is no folder' if root.exists() else 'no such folder'}; give one folder per class")
    folders = _subfolders(root)
    given = [folder.name for folder in folders if folder.name in SPLITS]
    names = _class_names(root / "train" if "train" in given else root)
    if "train" not in given:
        samples = _split(_scan(root, root, names), seed, val_fraction)
    else:
        if strange := [folder.name for folder in folders if folder.name not in SPLITS]:
            raise DataError(f"{root / strange[0]}: unknown beside train/; expected train/, val/ and test/ only")
        samples = {split: _scan(root, root / split, names) for split in SPLITS if split in given}
        if "val" not in samples:
            samples.update(_split(samples["train"], seed, val_fraction))
    _refuse_gaps(root, names, samples)
    _refuse_contradictions(samples)
    everything = sorted((sample for split in samples.values() for sample in split), key=lambda sample: sample.name)
    digest = hashlib.sha256()
    for sample in everything:
        digest.update(f"{sample.name}\0{sample.sha256}\n".encode())
    classes = tuple(ClassSpec(name=name, role=role_of(name)) for name in names)
    return Dataset(root, classes, {split: tuple(found) for split, found in samples.items()}, digest.hexdigest())


def load_pictures(
    samples: Sequence[Sample], spec: PreprocessSpec, on_progress: Callable[[int, int], None] | None = None
) -> Pictures:
    """Decode and preprocess the pictures, exactly as the line does.

    Raises:
        DataError: pictures that cannot be read; the first few are named.
    """

    def load(sample: Sample) -> U8 | str:
        try:
            return preprocess_picture(read_picture(sample.path), spec)
        except DataError as err:
            return str(err)

    pixels = np.empty((len(samples), spec.height, spec.width, 3), np.uint8)
    unreadable = []
    with ThreadPoolExecutor(_READERS, thread_name_prefix="picture-reader") as pool:
        for index, loaded in enumerate(pool.map(load, samples)):
            if isinstance(loaded, str):
                unreadable.append(loaded)
            else:
                pixels[index] = loaded
            if on_progress is not None:
                on_progress(index + 1, len(samples))
    if unreadable:
        raise DataError(
            f"{len(unreadable)} of {len(samples)} pictures cannot be used: {_first(unreadable, '; ')}; "
            "remove or replace them"
        )
    return Pictures(pixels, np.array([sample.label for sample in samples], np.int64))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(entry.name for entry in _subfolders(folder))
    if not names:
        raise DataError(f"{folder}: has no class folders; expected {folder}/good, {folder}/scratch, …")
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_. -]{0,63}", name):
            raise DataError(
                f"{folder}: class folder {name!r}: names become labels; use up to 64 letters, digits, _ . - and spaces"
            )
    if len(names) == 1:
        raise DataError(f"{folder}: {names[0]!r} is the only class; two or more are needed, one of them a defect")
    roles = [role_of(name) for name in names]
    if "defect" not in roles:
        raise DataError(f"{folder}: no defect class; folders are {', '.join(names)}")
    if "ok" not in roles:
        log.warning("no_ok_class", folder=str(folder), expected=sorted(OK_NAMES), note="such a bundle never passes")
    return names


def _scan(root: Path, folder: Path, names: Sequence[str]) -> list[Sample]:
    """Every picture below the class folders of `folder`, in a stable order."""
    if strange := [entry.name for entry in _subfolders(folder) if entry.name not in names]:
        raise DataError(f"{folder / strange[0]}: there is no such class in {root / 'train'}")
    found = []
    for label, name in enumerate(names):
        found += [(path, label) for path in _picture_files(folder / name)]
    with ThreadPoolExecutor(_READERS, thread_name_prefix="picture-hasher") as pool:
        hashes = pool.map(_hash, [path for path, _ in found])
        return [
            Sample(path, path.relative_to(root).as_posix(), label, sha256)
            for (path, label), sha256 in zip(found, hashes, strict=True)
        ]


def _hash(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror}") from err


def _picture_files(folder: Path) -> Iterator[Path]:
    ignored = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.suffix.lower() in SUFFIXES:
            yield path
        elif path.name.lower() not in ("thumbs.db", "desktop.ini"):
            ignored.append(path.name)
    if ignored:
        log.warning("files_ignored", folder=str(folder), count=len(ignored), first=ignored[0], why="no picture suffix")


def _split(samples: Sequence[Sample], seed: int, val_fraction: float) -> dict[Split, list[Sample]]:
    """Set aside `val_fraction` of each class, chosen by content, so that equal pictures stay together.

    A picture that is added or removed later moves few of the others across.
    """
    groups: dict[int, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        groups[sample.label][sample.sha256].append(sample)
    parts: dict[Split, list[Sample]] = {"train": [], "val": []}
    for by_content in groups.values():
        order = sorted(by_content, key=lambda content: hashlib.sha256(f"{seed}/{content}".encode()).digest())
        set_aside = min(max(1, round(len(order) * val_fraction)), len(order) - 1)
        for rank, content in enumerate(order):
            parts["val" if rank < set_aside else "train"] += by_content[content]
    for part in parts.values():
        part.sort(key=lambda sample: sample.name)
    return parts


def _refuse_gaps(root: Path, names: Sequence[str], samples: dict[Split, list[Sample]]) -> None:
    if not any(samples.values()):
        raise DataError(f"{root}: no pictures found; readable are {', '.join(sorted(SUFFIXES))}")
    for label, name in enumerate(names):
        counts = {split: sum(sample.label == label for sample in found) for split, found in samples.items()}
        if counts["train"] + counts["val"] == 0:
            raise DataError(f"{root}: class {name!r} has no pictures; fill or remove its folder")
        for split in ("train", "val"):
            if counts[split] == 0:
                raise DataError(
                    f"{root}: class {name!r} has no picture for {split}; two different ones are needed at least"
                )


def _refuse_contradictions(samples: dict[Split, list[Sample]]) -> None:
    """The same picture in two classes, or to train and to judge by, makes every figure a lie."""
    seen: dict[str, tuple[Split, Sample]] = {}
    leaks = []
    for split, found in samples.items():
        for sample in found:
            first_split, first = seen.setdefault(sample.sha256, (split, sample))
            if first.label != sample.label:
                raise DataError(f"{first.name} and {sample.name} are the same picture in two classes; remove one")
            if first_split != split:
                leaks.append(f"{first.name} = {sample.name}")
    if leaks:
        raise DataError(f"{len(leaks)} pictures are in two of train/, val/, test/: {_first(leaks, ', ')}; remove one")


def _first(items: Sequence[str], separator: str) -> str:
    more = len(items) - _NAMED_AT_MOST
    return separator.join(items[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
