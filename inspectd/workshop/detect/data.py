"""A folder of pictures with boxes, read without surprises.

    DATA/annotations.json                                  COCO, split here by a seeded hash of each picture
    DATA/{train,val,test}.json                             COCO, taken as it is; without val, split off train
    DATA/annotations/instances_{train,val,test}*.json      the same
    DATA/{train,val,test}/_annotations.coco.json           the same
    DATA/{annotations,Annotations}/*.xml                   Pascal VOC; split by train/, val/, test/ in the
                                                           picture's path, by hash where there are none

Pictures lie anywhere below DATA. One without boxes shows a good part. One that no label file knows is left
out, unless a folder in its path says that it is good: forgotten labels must not teach that a defect is good.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog
from PIL import Image, UnidentifiedImageError

from inspectd.errors import DataError
from inspectd.frame import U8
from inspectd.model.bundle import ClassSpec, file_sha256
from inspectd.model.data import EMPTY_NAMES, OK_NAMES, SPLITS, Sample, Split, load_pictures
from inspectd.model.preprocess import PreprocessSpec
from inspectd.model.split import assign, name_groups
from inspectd.workshop.detect.labels import LabelledPicture, checked_boxes
from inspectd.workshop.detect.shelf import Found, read_labels

log = structlog.get_logger(__name__)

GOOD = ClassSpec(name="good", role="ok")
_NAMED_AT_MOST = 3
_READERS = 4
_EXIF_ORIENTATION, _EXIF_TURNED = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class BoxedSample:
    """A picture and its boxes, in picture pixels: edges float32 [boxes, 4], labels int64 [boxes] from 1."""

    sample: Sample  # its label is that of its first box, 0 where there is none
    size: tuple[int, int]  # width, height
    edges: npt.NDArray[np.float32] = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)


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
) -> BoxedDataset:
    """Find labels and pictures, check each box, and split. The pictures are hashed, not decoded.

    Args:
        val_fraction: share to validate with, where there is no validation set.
        groups: regular expression whose capture group, searched in the file's name, tells the part; pictures of
            one part lie on one side.
        classes: those of a bundle, to judge it by: nothing is split. Else they are what there are boxes of to train on.

    Raises:
        DataError: no labels, no boxes, or labels and pictures that do not fit each other.
    """
    if not root.is_dir():
        raise DataError(f"{root}: {'is no folder' if root.exists() else 'no such folder'}; give pictures with labels")
    found = read_labels(root)
    if not any(labelled.boxes for part in found.values() for labelled, _ in part):
        raise DataError(f"{root}: no picture has a box; a detector learns from boxes around defects")
    names = _class_names(root, found) if classes is None else [spec.name for spec in classes]
    samples = {split: _samples(root, part, names) for split, part in found.items()}
    if classes is None:
        samples = _with_validation(root, samples, seed, val_fraction, groups)
    samples = _without_leaks(samples)
    specs = tuple(classes or (GOOD, *(ClassSpec(name=name, role="defect") for name in names[1:])))
    if None in samples:
        samples["test"] = samples.pop(None)  # one set, to judge by
    ordered = {split: tuple(samples[split]) for split in SPLITS if split in samples}
    return BoxedDataset(root, specs, ordered, _fingerprint(samples))


def load_boxes(
    samples: Sequence[BoxedSample], spec: PreprocessSpec, on_progress: Callable[[int, int], None] | None = None
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


def _samples(root: Path, part: Sequence[tuple[LabelledPicture, Path]], names: Sequence[str]) -> list[BoxedSample]:
    index = {name: label for label, name in enumerate(names)}

    def make(labelled: LabelledPicture, path: Path) -> BoxedSample:
        size = picture_size(path)
        boxes = checked_boxes(labelled, *size)
        if unknown := [box.label for box in boxes if index.get(box.label, 0) == 0]:
            raise DataError(f"{labelled.source}: unknown class {unknown[0]!r}; known are {', '.join(names[1:])}")
        if len(boxes) < len(labelled.boxes):
            log.warning("box_given_twice", file=labelled.source, note="counted once")
        edges = np.array([(b.left, b.top, b.right, b.bottom) for b in boxes], np.float32).reshape(-1, 4)
        labels = np.array([index[box.label] for box in boxes], np.int64)
        sample = Sample(path, path.relative_to(root).as_posix(), int(labels[0]) if len(labels) else 0, _hash(path))
        return BoxedSample(sample, size, edges, labels)

    with ThreadPoolExecutor(_READERS, thread_name_prefix="label-checker") as pool:
        made = list(pool.map(lambda pair: make(*pair), part))
    return sorted(made, key=lambda boxed: boxed.sample.name)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture held upright, from its header.

    Raises:
        DataError: no picture that can be read.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(_EXIF_ORIENTATION) in _EXIF_TURNED
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        raise DataError(f"{path}: is no picture that can be read: {' '.join(str(err).split())[:120]}") from None
    return (height, width) if turned else (width, height)


def _hash(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror}") from err


def _with_validation(
    root: Path, samples: dict[Split | None, list[BoxedSample]], seed: int, val_fraction: float, groups: str | None
) -> dict[Split | None, list[BoxedSample]]:
    whole = samples.pop(None, None)
    if whole is None and "val" not in samples:
        whole = samples["train"]
    if whole is not None:
        samples["train"], samples["val"] = _split(whole, seed, val_fraction, groups)
    for split in ("train", "val"):
        if not any(len(boxed.labels) for boxed in samples[split]):
            raise DataError(f"{root}: no picture for {split} has a box; two different ones are needed at least")
    return samples


def _split(
    samples: Sequence[BoxedSample], seed: int, fraction: float, groups: str | None
) -> tuple[list[BoxedSample], list[BoxedSample]]:
    """Set aside a share of each class, parts kept whole; a picture counts for the rarest class that it shows."""
    frequency = Counter(int(label) for boxed in samples for label in set(boxed.labels.tolist()))
    rarest = [min(b.labels.tolist(), key=lambda label: frequency[label], default=0) for b in samples]
    contents = [boxed.sample.sha256 for boxed in samples]
    names = [boxed.sample.path.name for boxed in samples]
    parts: Sequence[str | None] = [None] * len(samples) if groups is None else name_groups(names, groups)
    split, _ = assign(rarest, contents, [None] * len(samples), [], parts, seed, [fraction])
    train, val = ([b for b, own in zip(samples, split, strict=True) if own == name] for name in ("train", "val"))
    return train, val


def _without_leaks(samples: Mapping[Split | None, Sequence[BoxedSample]]) -> dict[Split | None, list[BoxedSample]]:
    """The same picture to learn and to judge by makes every figure a lie: it stays where it judges, only."""
    kept: dict[Split | None, list[BoxedSample]] = {}
    judging: dict[str, str] = {}
    leaks = []
    for split in sorted(samples, key=("test", "val", "train", None).index):
        own = [boxed for boxed in samples[split] if boxed.sample.sha256 not in judging]
        leaks += [f"{b.sample.name} = {judging[b.sample.sha256]}" for b in samples[split] if b.sample.sha256 in judging]
        judging.update({boxed.sample.sha256: boxed.sample.name for boxed in own})
        kept[split] = own
    if leaks:
        log.warning(
            "pictures_in_two_splits",
            count=len(leaks),
            first=leaks[:_NAMED_AT_MOST],
            note="left out where they would be learnt",
        )
    return kept


def _fingerprint(samples: Mapping[Split | None, Sequence[BoxedSample]]) -> str:
    """Identifies names, pictures and boxes, whatever the split."""
    digest = hashlib.sha256()
    for boxed in sorted((b for part in samples.values() for b in part), key=lambda b: b.sample.name):
        digest.update(f"{boxed.sample.name}\0{boxed.sample.sha256}\0".encode())
        digest.update(boxed.edges.tobytes() + boxed.labels.tobytes())
    return digest.hexdigest()
