"""A folder of labelled pictures, read without surprises.

    DATA/<class>/…                      split here, by a seeded hash; pictures of one part stay together
    DATA/{train,val,test}/<class>/…     taken as it is; without val/, it is split off train/

The role of a class comes from its folder's name: ok, good, pass, normal, free are good parts; empty is
an empty station; everything else is a defect.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from inspectd.errors import DataError, UsageError
from inspectd.frame import U8
from inspectd.model.folder import EMPTY_NAMES, OK_NAMES, SPLITS, File, Split, find_pictures, role_of
from inspectd.model.manifest import ClassSpec
from inspectd.model.pictures import SUFFIXES
from inspectd.model.preprocess import PreprocessSpec
from inspectd.model.reading import Look, Reading, read_all
from inspectd.model.similar import near_duplicates
from inspectd.model.split import assign, name_groups

__all__ = [
    "EMPTY_NAMES",
    "OK_NAMES",
    "SPLITS",
    "Dataset",
    "Pictures",
    "Sample",
    "Split",
    "load_pictures",
    "open_dataset",
    "role_of",
]

_NAMED_AT_MOST = 3  # pictures named in an error
_FEWEST_KEPT = 2  # pictures of a class: one to train, one to validate
_LOST_AT_MOST = 0.5  # of a class, unreadable; more and something is wrong with the folder

Progress = Callable[[int, int], None]
"""Called with pictures read and pictures in all."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture. `name` is relative to the data folder, POSIX; `label` indexes the classes."""

    path: Path
    name: str
    label: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Pictures:
    """Preprocessed pictures in memory: pixels uint8 [N, height, width, 3] RGB, labels int64 [N]."""

    pixels: U8
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """What a data folder holds. `fingerprint` identifies names and contents.

    `model.survey` turns the rest into findings that people can act on.
    """

    root: Path
    classes: tuple[ClassSpec, ...]
    splits: dict[Split, tuple[Sample, ...]]
    fingerprint: str
    pictures: dict[Split, Pictures] = field(default_factory=dict)
    """In the order of `splits`, where a preprocess spec was given."""
    looks: dict[str, Look] = field(default_factory=dict)
    """What each sample looks like, by its name."""
    unreadable: tuple[tuple[str, str], ...] = ()
    """Names of pictures that were left out, and why."""
    ignored: tuple[str, ...] = ()
    """Names of files in class folders that are no pictures by their suffix."""
    similar: tuple[tuple[str, str], ...] = ()
    """Names of near duplicates, in pairs."""
    chained: tuple[str, ...] = ()
    """Classes that look too much alike for near duplicates to be told; only equal pictures stay together there."""
    leaked: tuple[tuple[str, str], ...] = ()
    """Names of pictures of train/ or val/ that were left out, and of one in val/ or test/ that is equal, or by its
    name of the same part."""

    def counts(self, split: Split) -> dict[str, int]:
        """Pictures per class name."""
        found = Counter(sample.label for sample in self.splits[split])
        return {spec.name: found[label] for label, spec in enumerate(self.classes)}


def open_dataset(
    root: Path,
    *,
    seed: int = 0,
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    ok: Sequence[str] = (),
    empty: Sequence[str] = (),
    groups: str | None = None,
    spec: PreprocessSpec | None = None,
    on_progress: Progress | None = None,
) -> Dataset:
    """Find the pictures, read each once, and split them. Every class has pictures to train and to validate.

    Pictures that cannot be read are left out where the class keeps enough; nothing is logged, see `model.survey`.

    Args:
        val_fraction: share of each class to validate with, where there is no val/.
        test_fraction: share of each class to set aside as `test`, where no split is given but train/.
        ok: the classes that are good parts, instead of those that are called so.
        empty: the classes that are an empty station, instead of those that are called so.
        groups: regular expression whose capture group, searched in the file's name, tells the part; pictures of
            one part lie on one side. Equal pictures and near duplicates do without it. Where splits are given, what
            they have of one part counts where it judges, only.
        spec: also keep every picture as the network sees it, in `Dataset.pictures`.

    Raises:
        UsageError: fractions or `groups` make no sense.
        DataError: no such folder, no pictures, a class that is empty, alone or of an unusable name,
            no defect class, too many unreadable pictures, or pictures that contradict each other.
    """
    if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise UsageError(f"shares {val_fraction} to validate and {test_fraction} to test leave nothing to train with")
    classes, files, ignored = find_pictures(root, ok, empty)
    parts = name_groups([file.path.name for file in files], groups) if groups else [None] * len(files)
    pixels = None if spec is None else np.empty((len(files), spec.height, spec.width, 3), np.uint8)
    readings = read_all([file.path for file in files], spec, pixels, on_progress)
    kept = [index for index, reading in enumerate(readings) if reading.look is not None]
    samples = [Sample(files[i].path, files[i].name, files[i].label, readings[i].sha256) for i in kept]
    looks = {files[i].name: look for i in kept if (look := readings[i].look) is not None}
    _refuse_gaps(root, classes, files, readings, ignored)

    near = _near(samples, looks)
    given = [files[i].given for i in kept]
    needed: tuple[Split, ...] = ("train", "val", "test") if test_fraction and not any(given) else ("train", "val")
    places, chained = assign(
        [sample.label for sample in samples],
        [sample.sha256 for sample in samples],
        given,
        near,
        [parts[i] for i in kept],
        seed,
        (val_fraction, test_fraction) if len(needed) == len(SPLITS) else (val_fraction,),
    )
    rows: dict[Split, list[int]] = {split: [] for split in SPLITS if split in places or split in needed}
    for row in sorted(range(len(samples)), key=lambda row: samples[row].name):
        rows[places[row]].append(row)
    _refuse_contradictions(samples)
    rows, leaked = _without_leaks(rows, samples, [parts[i] for i in kept])
    splits = {split: tuple(samples[row] for row in found) for split, found in rows.items()}
    _refuse_one_sided(root, classes, splits, needed, leaked)
    used = {row for found in rows.values() for row in found}
    return Dataset(
        root,
        classes,
        splits,
        _fingerprint(samples),
        {} if pixels is None else _pictures(pixels, samples, rows, kept),
        looks,
        tuple((file.name, r.error) for file, r in zip(files, readings, strict=True) if r.error is not None),
        ignored,
        tuple((samples[i].name, samples[j].name) for i, j in near if i in used and j in used),
        tuple(classes[label].name for label in sorted(chained)),
        leaked,
    )


def load_pictures(samples: Sequence[Sample], spec: PreprocessSpec, on_progress: Progress | None = None) -> Pictures:
    """Decode and preprocess the pictures, exactly as the line does.

    Raises:
        DataError: pictures that cannot be read; the first few are named.
    """
    pixels = np.empty((len(samples), spec.height, spec.width, 3), np.uint8)
    readings = read_all([sample.path for sample in samples], spec, pixels, on_progress)
    _refuse_unreadable([reading.error for reading in readings if reading.error is not None], len(samples))
    return Pictures(pixels, np.array([sample.label for sample in samples], np.int64))


# -- pixels and prints --------------------------------------------------------------------------------


def _near(samples: Sequence[Sample], looks: dict[str, Look]) -> list[tuple[int, int]]:
    if not samples:
        return []
    pairs = near_duplicates(np.stack([looks[sample.name].print for sample in samples]))
    return [(int(i), int(j)) for i, j in pairs]


def _pictures(
    pixels: U8, samples: Sequence[Sample], rows: dict[Split, list[int]], kept: Sequence[int]
) -> dict[Split, Pictures]:
    """The pixels of each split, as views of the one array, whose rows are put in that order."""
    order = [kept[row] for found in rows.values() for row in found]
    _reorder(pixels, order + sorted(set(range(len(pixels))) - set(order)))
    pictures, start = {}, 0
    for split, found in rows.items():
        labels = np.array([samples[row].label for row in found], np.int64)
        pictures[split] = Pictures(pixels[start : start + len(found)], labels)
        start += len(found)
    return pictures


def _reorder(rows: U8, order: Sequence[int]) -> None:
    """rows[k] = rows[order[k]] for a permutation, in place: one row of memory instead of as many again."""
    done = [False] * len(order)
    for start in range(len(order)):
        if done[start]:
            continue
        held, place = rows[start].copy(), start
        while order[place] != start:
            rows[place] = rows[order[place]]
            done[place] = True
            place = order[place]
        rows[place] = held
        done[place] = True


def _fingerprint(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for sample in sorted(samples, key=lambda sample: sample.name):
        digest.update(os.fsencode(f"{sample.name}\0{sample.sha256}\n"))
    return digest.hexdigest()


# -- what is refused ----------------------------------------------------------------------------------


def _refuse_gaps(
    root: Path,
    classes: Sequence[ClassSpec],
    files: Sequence[File],
    readings: Sequence[Reading],
    ignored: Sequence[str],
) -> None:
    """A class without pictures, or one that lost too many."""
    others = f"; other files: {len(ignored)}, the first {ignored[0]}" if ignored else ""
    if not files:
        raise DataError(f"{root}: no pictures found{others}; readable are {', '.join(sorted(SUFFIXES))}")
    errors: dict[int, list[str]] = defaultdict(list)
    for file, reading in zip(files, readings, strict=True):
        if reading.error is not None and file.given != "test":
            errors[file.label].append(reading.error)
    for label, spec in enumerate(classes):
        count = sum(file.label == label and file.given != "test" for file in files)
        if not count:
            raise DataError(f"{root}: class {spec.name!r} has no pictures{others}; fill or remove its folder")
        lost = len(errors[label])
        if lost and (count - lost < _FEWEST_KEPT or lost > _LOST_AT_MOST * count):
            _refuse_unreadable(errors[label], count, f" of class {spec.name!r}")


def _refuse_unreadable(errors: Sequence[str], count: int, of: str = "") -> None:
    if errors:
        raise DataError(
            f"{len(errors)} of {count} pictures{of} cannot be used: {_first(errors, '; ')}; remove or replace them"
        )


def _refuse_one_sided(
    root: Path,
    classes: Sequence[ClassSpec],
    splits: dict[Split, tuple[Sample, ...]],
    needed: Sequence[Split],
    leaked: Sequence[tuple[str, str]],
) -> None:
    left = f"; {len(leaked)} were left out, as {leaked[0][0]} shows what {leaked[0][1]} does" if leaked else ""
    for label, spec in enumerate(classes):
        for split in needed:
            if not any(sample.label == label for sample in splits[split]):
                raise DataError(
                    f"{root}: class {spec.name!r} has no picture for {split}; pictures of {len(needed)} different "
                    f"parts are needed at least{left}"
                )


def _refuse_contradictions(samples: Sequence[Sample]) -> None:
    """The same picture in two classes makes every figure a lie."""
    seen: dict[str, Sample] = {}
    for sample in samples:
        first = seen.setdefault(sample.sha256, sample)
        if first.label != sample.label:
            raise DataError(f"{first.name} and {sample.name} are the same picture in two classes; remove one")


def _without_leaks(
    rows: dict[Split, list[int]], samples: Sequence[Sample], parts: Sequence[str | None]
) -> tuple[dict[Split, list[int]], tuple[tuple[str, str], ...]]:
    """The rows of each split without those that are also to judge by: test/ keeps its pictures, then val/.

    Also the names of what was left out, with what it equals or shows the part of.
    """
    kept: dict[Split, list[int]] = {}
    content: dict[str, str] = {}  # of the splits so far -> name
    part: dict[str | None, str] = {}
    leaked = []
    for split in reversed(SPLITS):
        if split in rows:
            same = {r: content.get(samples[r].sha256) or part.get(parts[r]) for r in rows[split]}
            leaked += [(samples[row].name, other) for row, other in same.items() if other]
            kept[split] = [row for row, other in same.items() if not other]
            content |= {samples[row].sha256: samples[row].name for row in kept[split]}
            part |= {parts[row]: samples[row].name for row in kept[split] if parts[row]}
    return {split: kept[split] for split in rows}, tuple(sorted(leaked))


def _first(items: Sequence[str], separator: str) -> str:
    more = len(items) - _NAMED_AT_MOST
    return separator.join(items[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
