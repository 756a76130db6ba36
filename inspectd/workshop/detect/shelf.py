"""Which label files a folder has, and which of its pictures each of them means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import structlog

from inspectd.errors import DataError
from inspectd.model.data import OK_NAMES, SPLITS, Split
from inspectd.model.folder import files_below, is_picture
from inspectd.workshop.detect.labels import LabelledPicture, read_coco, read_voc

log = structlog.get_logger(__name__)

_NAMED_AT_MOST = 3

Found = dict[Split | None, list[tuple[LabelledPicture, Path]]]
"""Labels with their pictures by split; None is one set that is not split, and then the only one."""


def read_labels(root: Path) -> Found:
    """Every picture with labels, and those without that a folder calls good.

    Raises:
        DataError: no labels, labels of several kinds, or pictures that cannot be told or found.
    """
    shelf = Shelf(root)
    found = _labelled(root, shelf)
    unsplit, home = None in found, _home_of_the_loose(found)
    loose = []
    for folder, path in shelf.unlabelled_good():
        if folder is None:
            loose.append(path)
        elif unsplit:
            raise DataError(f"{path}: lies in {folder}/, but pictures with labels lie in no split; move it")
        found.setdefault(folder or home, []).append((LabelledPicture(str(path), path.stem, None, ()), path))
    if loose and len(found) > 1:
        log.warning(
            "good_pictures_in_no_split",
            count=len(loose),
            first=[path.relative_to(root).as_posix() for path in loose[:_NAMED_AT_MOST]],
            note=f"all count for {home}; others belong in a folder as val/good or test/good",
        )
    return found


def _home_of_the_loose(found: Found) -> Split | None:
    """Where good pictures count that lie in no split: with the only set there is, else where they are learnt."""
    homes: tuple[Split | None, ...] = (None, "train", "test", "val")
    return next((home for home in homes if home in found), None)


def _labelled(root: Path, shelf: Shelf) -> Found:
    by_split = {split: path for split in SPLITS if (path := _coco_file(root, split)) is not None}
    voc = [folder for name in ("annotations", "Annotations") if any((folder := root / name).glob("*.xml"))]
    single = root / "annotations.json"
    kinds = {"annotations.json": single.is_file(), "a COCO file per split": by_split, "VOC files": voc}
    there = [kind for kind, found in kinds.items() if found]
    if len(there) > 1:
        raise DataError(f"{root}: has labels of {len(there)} kinds: {', '.join(there)}; keep one")
    if not there:
        raise DataError(
            f"{root}: has no labels: expected annotations.json, train.json or annotations/instances_train.json "
            "(COCO), or annotations/*.xml (Pascal VOC)"
        )
    if voc:
        return shelf.by_folder(read_voc(path) for path in sorted(voc[0].glob("*.xml")))
    if single.is_file():
        return shelf.by_folder(read_coco(single))
    if "train" not in by_split and "test" not in by_split:
        raise DataError(f"{root}: has labels for {', '.join(by_split)} only; labels for train are missing")
    return {split: [(p, shelf.find(p, split)) for p in read_coco(path)] for split, path in by_split.items()}


def _coco_file(root: Path, split: Split) -> Path | None:
    candidates = [root / f"{split}.json", root / split / "_annotations.coco.json"]
    candidates += sorted((root / "annotations").glob(f"instances_{split}*.json"))
    if split == "val":
        candidates.append(root / "valid" / "_annotations.coco.json")
    there = [path for path in candidates if path.is_file()]
    if len(there) > 1:
        raise DataError(f"{there[0]} and {there[1]} both label {split}; keep one")
    return there[0] if there else None


class Shelf:
    """The pictures below a folder, found by the names that labels give them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._taken: set[Path] = set()
        for path in files_below(root):
            if is_picture(path):
                self._by_name[path.name].append(path)
                self._by_name[path.stem].append(path)

    def find(self, labelled: LabelledPicture, split: Split | None = None) -> Path:
        """The picture that is meant: by its name, and where several have it by as much of the path as fits."""
        wanted = PurePosixPath(labelled.picture.replace("\\", "/"))
        there = self._by_name.get(wanted.name, [])
        if len(there) > 1:
            parts = [part for part in wanted.parts if part not in (".", "..", "/")]
            there = [path for path in there if list(path.parts[-len(parts) :]) == parts] or there
        if len(there) > 1 and split is not None:
            there = [path for path in there if self._split_of(path) == split] or there
        if not there:
            raise DataError(f"{labelled.source}: there is no picture {labelled.picture!r} below {self._root}")
        if len(there) > 1:
            raise DataError(f"{labelled.source}: may mean {there[0]} or {there[1]}; rename one of them")
        if there[0] in self._taken:
            raise DataError(f"{labelled.source}: {there[0]} has labels already; keep one")
        self._taken.add(there[0])
        return there[0]

    def by_folder(self, pictures: Iterable[LabelledPicture]) -> Found:
        """Labels of no split, split by where their pictures lie; all or none lie in train/, val/ or test/."""
        found: Found = defaultdict(list)
        for labelled in pictures:
            path = self.find(labelled)
            found[self._split_of(path)].append((labelled, path))
        if len(found) > 1 and None in found:
            raise DataError(f"{found[None][0][1]}: lies outside train/, val/ and test/, in which others do; move it")
        return dict(found)

    def unlabelled_good(self) -> list[tuple[Split | None, Path]]:
        """Pictures without labels that a folder calls good, and their splits. Others are told of, and left out."""
        left = sorted({path for paths in self._by_name.values() for path in paths} - self._taken)
        good = [path for path in left if {part.lower() for part in path.relative_to(self._root).parts[:-1]} & OK_NAMES]
        if forgotten := [path.relative_to(self._root).as_posix() for path in left if path not in set(good)]:
            log.warning(
                "pictures_without_labels",
                count=len(forgotten),
                first=forgotten[:_NAMED_AT_MOST],
                note="left out; label them, without boxes if they are good, or move them to a folder named good",
            )
        return [(self._split_of(path), path) for path in good]

    def _split_of(self, path: Path) -> Split | None:
        parts = path.relative_to(self._root).parts[:-1]
        return next((split for split in SPLITS if split in parts or (split == "val" and "valid" in parts)), None)
