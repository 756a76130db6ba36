"""A folder of pictures with boxes, read without surprises.

    DATA/annotations.json                                  COCO, split here by a seeded hash of each picture
    DATA/{train,val,test}.json                             COCO, taken as it is; without val, split off train
    DATA/annotations/instances_{train,val,test}*.json      the same
    DATA/{train,val,test}/_annotations.coco.json           the same
    DATA/{annotations,Annotations}/*.xml                   Pascal VOC; split by train/, val/, test/ in the
                                                           picture's path, by hash where there are none

Pictures lie anywhere below DATA. One without boxes shows a good part. One that no label file knows is left
out, unless a folder in its path says that it is good: forgotten labels must not teach that a defect is good.
Such a one counts for the split whose folder it lies in; outside of them for train, where there are several.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from inspectd.errors import DataError
from inspectd.frame import U8
from inspectd.model.data import EMPTY_NAMES, OK_NAMES, SPLITS, Progress, Sample, Split, load_pictures
from inspectd.model.manifest import ClassSpec
from inspectd.model.preprocess import PreprocessSpec
from inspectd.model.reading import Reading, read_all
from inspectd.workshop.detect.labels import LabelledPicture, checked_boxes
from inspectd.workshop.detect.shelf import Found, read_labels
from inspectd.workshop.detect.split import divide, refuse_contradictions, without_leaks

log = structlog.get_logger(__name__)

GOOD = ClassSpec(name="good", role="ok")
_NAMED_AT_MOST = 3


@dataclass(frozen=True, slots=True)
class BoxedSample:
    """A picture and its boxes, in picture pixels: edges float32 [boxes, 4], labels int64 [boxes] from 1."""

    sample: Sample  # its label is that of its first box, 0 where there is none
    size: tuple[int, int]  # width, height, held upright
    edges: npt.NDArray[np.float32] = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)
    print: U8 = field(repr=False)  # uint8 [256], see `model.similar`


@dataclass(frozen=True, slots=True)
class BoxedDataset:
    """What a folder holds, pictures not decoded yet. `classes[0]` is the good part."""

    root: Path
    classes: tuple[ClassSpec, ...]
    splits: dict[Split, tuple[BoxedSample, ...]]
    fingerprint: str

    def counts(self, split: Split) -> dict[str, int]:
        """Boxes per defect class; pictures without any under the good class."""
        found = Counter(int(label) for boxed in self.splits[split] for label in boxed.labels)
        good = sum(not len(boxed.labels) for boxed in self.splits[split])
        return {spec.name: found[label] if label else good for label, spec in enumerate(self.classes)}


@dataclass(frozen=True, slots=True)
class BoxedPictures:
    """Preprocessed pictures in memory, uint8 [N, height, width, 3] RGB, and per picture its boxes.

    `edges`: float32 [boxes, 4], left, top, right, bottom in network-input pixels; `labels`: int64 [boxes].
    """

    pixels: U8
    edges: tuple[npt.NDArray[np.float32], ...]
    labels: tuple[npt.NDArray[np.int64], ...]

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def bad(self) -> npt.NDArray[np.bool_]:
        """[N]: shows a defect."""
        return np.array([len(labels) > 0 for labels in self.labels], np.bool_)


def open_boxes(
    root: Path,
    *,
    seed: int = 0,
    val_fraction: float = 0.2,
    groups: str | None = None,
    classes: Sequence[ClassSpec] | None = None,
    on_progress: Progress | None = None,
) -> BoxedDataset:
    """Find labels and pictures, read each picture, check each box, and split. `load_boxes` keeps the pixels.

    Args:
        val_fraction: share to validate with, where there is no validation set.
        groups: regular expression whose capture group, searched in the file's name, tells the part; pictures of
            one part lie on one side. Equal pictures and near duplicates do without it. Where splits are given, what
            they have of one part counts where it judges, only.
        classes: those of a bundle, to judge it by: nothing is split. Else they are what there are boxes of to train on.

    Raises:
        UsageError: `groups` makes no sense.
        DataError: no labels, no boxes, pictures that cannot be read, or labels that do not fit them or each other.
    """
    if not root.is_dir():
        raise DataError(f"{root}: {'is no folder' if root.exists() else 'no such folder'}; give pictures with labels")
    found = read_labels(root)
    if not any(labelled.boxes for part in found.values() for labelled, _ in part):
        raise DataError(f"{root}: no picture has a box; a detector learns from boxes around defects")
    names = _class_names(root, found) if classes is None else [spec.name for spec in classes]
    samples = _samples(root, found, names, on_progress)
    refuse_contradictions(samples)
    samples = without_leaks(samples, groups)
    if classes is None:
        samples = divide(root, samples, names, seed, val_fraction, groups)
    specs = tuple(classes or (GOOD, *(ClassSpec(name=name, role="defect") for name in names[1:])))
    if None in samples:
        samples = {"test": samples[None]}  # one set, to judge by
    ordered = {split: tuple(samples[split]) for split in SPLITS if split in samples}
    return BoxedDataset(root, specs, ordered, _fingerprint(samples))


def load_boxes(
    samples: Sequence[BoxedSample], spec: PreprocessSpec, on_progress: Progress | None = None
) -> BoxedPictures:
    """Decode and preprocess the pictures, exactly as the line does, and stretch their boxes alike.

    Raises:
        DataError: pictures that cannot be read; the first few are named.
    """
    pictures = load_pictures([boxed.sample for boxed in samples], spec, on_progress)
    scales = [np.array([spec.width / b.size[0], spec.height / b.size[1]] * 2, np.float32) for b in samples]
    edges = tuple(boxed.edges * scale for boxed, scale in zip(samples, scales, strict=True))
    return BoxedPictures(pictures.pixels, edges, tuple(boxed.labels for boxed in samples))


# -- what is checked ----------------------------------------------------------------------------------


def _class_names(root: Path, found: Found) -> list[str]:
    """The good class, then every class that there are boxes of to train on, by name."""
    learnt = found.get("train", found.get(None, []))
    names = sorted({box.label for labelled, _ in learnt for box in labelled.boxes})
    if not names:
        raise DataError(f"{root}: no picture to train on has a box")
    for name in names:
        if name.lower() in OK_NAMES | EMPTY_NAMES:
            raise DataError(
                f"{root}: a box is labelled {name!r}, which means that there is no defect; "
                "a good part is a picture without boxes"
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_. -]{0,63}", name):
            raise DataError(f"{root}: class {name!r}: use up to 64 letters, digits, _ . - and spaces")
    return [GOOD.name, *names]


def _samples(
    root: Path, found: Found, names: Sequence[str], on_progress: Progress | None
) -> dict[Split | None, list[BoxedSample]]:
    """Every picture with its boxes, by name."""
    paths = [path for part in found.values() for _, path in part]
    readings = dict(zip(paths, read_all(paths, on_progress=on_progress), strict=True))
    if errors := [reading.error for reading in readings.values() if reading.error is not None]:
        first = "; ".join(errors[:_NAMED_AT_MOST])
        raise DataError(f"{len(errors)} of {len(paths)} pictures cannot be used: {first}; remove or replace them")
    made = {
        split: [_boxed(root, labelled, path, readings[path], names) for labelled, path in part]
        for split, part in found.items()
    }
    return {split: sorted(part, key=lambda boxed: boxed.sample.name) for split, part in made.items()}


def _boxed(root: Path, labelled: LabelledPicture, path: Path, reading: Reading, names: Sequence[str]) -> BoxedSample:
    look = reading.look
    assert look is not None, "a picture that was read"
    index = {name: label for label, name in enumerate(names)}
    size = (look.width, look.height)
    boxes = checked_boxes(labelled, *size)
    if unknown := [box.label for box in boxes if index.get(box.label, 0) == 0]:
        raise DataError(f"{labelled.source}: unknown class {unknown[0]!r}; known are {', '.join(names[1:])}")
    if len(boxes) < len(labelled.boxes):
        log.warning("box_given_twice", file=labelled.source, note="counted once")
    edges = np.array([(b.left, b.top, b.right, b.bottom) for b in boxes], np.float32).reshape(-1, 4)
    labels = np.array([index[box.label] for box in boxes], np.int64)
    name = path.relative_to(root).as_posix()
    sample = Sample(path, name, int(labels[0]) if len(labels) else 0, reading.sha256)
    return BoxedSample(sample, size, edges, labels, look.print)


def _fingerprint(samples: Mapping[Split | None, Sequence[BoxedSample]]) -> str:
    """Identifies names, pictures and boxes, whatever the split."""
    digest = hashlib.sha256()
    for boxed in sorted((b for part in samples.values() for b in part), key=lambda b: b.sample.name):
        digest.update(os.fsencode(f"{boxed.sample.name}\0{boxed.sample.sha256}\0"))
        digest.update(boxed.edges.tobytes() + boxed.labels.tobytes())
    return digest.hexdigest()
