"""Which pictures of a folder may judge a bundle: none that made it, and, unless asked for, none that nearly did."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inspectd.errors import DataError, UsageError
from inspectd.model.bundle import Bundle, file_sha256
from inspectd.model.folder import files_below
from inspectd.model.pictures import SUFFIXES
from inspectd.workshop.evaluation.figures import Concern, SimilarPair
from inspectd.workshop.evaluation.labelled import Labelled, find_pictures, fingerprint, has_splits, read_labelled
from inspectd.workshop.provenance import Provenance, Seen

Split = Literal["test", "val", "all"]
Similar = Literal["drop", "keep", "ignore"]
_NAMED_AT_MOST = 3


@dataclass(frozen=True, slots=True)
class Admitted:
    """The pictures to judge by, and what speaks against them."""

    pictures: Labelled
    split: Split
    similar: tuple[SimilarPair, ...] = ()
    twice: tuple[str, ...] = ()  # pictures that are there more than once
    concerns: tuple[Concern, ...] = ()


def admit(
    data: Path,
    bundle: Bundle,
    record: Provenance | None,
    split: Literal["test", "val"] | None,
    on_progress: Callable[[int, int], None],
    similar: Similar = "drop",
) -> Admitted:
    """Find, read and check the pictures of one split of `data`, or of the whole folder.

    In a folder without train/, val/ and test/ the bundle's record says which pictures validated it (`val`)
    and which had no part in it (`test`).

    Args:
        similar: what becomes of pictures that nearly equal ones that made the bundle: left out and named,
            counted and named, or not even looked for.

    Raises:
        DataError: no such folder or split, no pictures, an unknown class, or pictures that contradict each other.
        UsageError: pictures that made the bundle are among them.
    """
    folder, chosen = _folder(data, record, split)
    pictures = read_labelled(
        find_pictures(data, folder, bundle.manifest.classes), bundle.manifest.preprocess, on_progress
    )
    twice = _repeats(pictures)
    if record is None:
        concern = Concern(text=_without_record(data, bundle, chosen), grave=True)
        return Admitted(pictures, chosen, (), twice, (concern,))
    seen = record.overlap(pictures.files, pictures.pixel_hashes)
    if folder == data and chosen == "test":
        pictures = _select(pictures, [one is None for one in seen], data, "each of its {} pictures made the bundle")
    elif folder == data and chosen == "val":
        pictures = _select(
            pictures,
            [one is not None and one.split == "val" for one in seen],
            data,
            "none of its {} pictures validated the bundle",
        )
    else:
        _refuse_overlap(data, pictures, seen, {"train"} if chosen == "val" else {"train", "val"})
    if similar == "ignore":
        return Admitted(pictures, chosen, (), twice)
    return _without_similar(pictures, record, chosen, twice, keep=similar == "keep")


def _folder(data: Path, record: Provenance | None, split: Literal["test", "val"] | None) -> tuple[Path, Split]:
    """Where the pictures lie, and what they are."""
    given = has_splits(data)
    if not given:
        if split is not None and record is None and data.is_dir():
            raise DataError(
                f"{data}: has no {split}/, and the bundle does not record which pictures made it; "
                "leave --split out, and give pictures that did not"
            )
        return data, split or "all"
    if split is None and "test" not in given:
        raise DataError(
            f"{data}: has {' and '.join(f'{name}/' for name in given)}, but no test/; "
            "add one, give other pictures, or look at the validation data with --split val"
        )
    chosen = split or "test"
    if chosen not in given:
        raise DataError(f"{data}: has no {chosen}/; it has {', '.join(f'{name}/' for name in given)}")
    return data / chosen, chosen


def _select(pictures: Labelled, wanted: Sequence[bool], data: Path, none: str) -> Labelled:
    rows = [row for row, want in enumerate(wanted) if want]
    if not rows:
        raise DataError(f"{data}: {none.format(len(pictures))}; give others")
    return pictures.only(rows)


def _refuse_overlap(data: Path, pictures: Labelled, seen: Sequence[Seen | None], forbidden: Collection[str]) -> None:
    """Figures on pictures that made the bundle say nothing about others.

    Raises:
        UsageError: some are; the first few are named.
    """
    known = [(name, one) for name, one in zip(pictures.names, seen, strict=True) if one and one.split in forbidden]
    if not known:
        return
    purpose = {"train": "trained", "val": "chose its thresholds"}
    first = ", ".join(f"{name} ({purpose[one.split]}, as {one.name})" for name, one in known[:_NAMED_AT_MOST])
    more = f" and {len(known) - _NAMED_AT_MOST} more" if len(known) > _NAMED_AT_MOST else ""
    advice = "judge it by other pictures"
    if not has_splits(data) and len(known) < len(pictures):
        advice = f"judge it by the {len(pictures) - len(known)} others with --split test"
    raise UsageError(f"{data}: {len(known)} of {len(pictures)} pictures made this bundle: {first}{more}; {advice}")


def _repeats(pictures: Labelled) -> tuple[str, ...]:
    """Pictures that are there more than once, in words.

    Raises:
        DataError: the same picture is in two classes.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, pixels in enumerate(pictures.pixel_hashes):
        rows_of[pixels].append(row)
    repeated = [rows for rows in rows_of.values() if len(rows) > 1]
    for rows in repeated:
        for row in rows:
            if pictures.labels[row] != pictures.labels[rows[0]]:
                first, other = pictures.names[rows[0]], pictures.names[row]
                raise DataError(f"{first} and {other} are the same picture in two classes; remove one")
    return tuple(" = ".join(pictures.names[row] for row in rows) for rows in repeated)


def _without_similar(
    pictures: Labelled, record: Provenance, split: Split, twice: tuple[str, ...], *, keep: bool
) -> Admitted:
    """Leave out what nearly equals a picture that made the bundle; or keep it, and say so."""
    pairs = record.similar(pictures.pixels, ("train",) if split == "val" else ("train", "val"))
    similar = tuple(
        SimilarPair(name=pictures.names[row], trained_on=f"{seen.split}: {seen.name}") for row, seen in pairs
    )
    if not similar:
        return Admitted(pictures, split, (), twice)
    total = len(pictures)
    what = f"{len(similar)} of {total} pictures nearly equal pictures that the bundle was made from"
    if keep:
        concern = Concern(text=f"{what}, and are counted (--keep-similar): the figures flatter it.", grave=True)
        return Admitted(pictures, split, similar, twice, (concern,))
    left = set(range(total)) - {row for row, _ in pairs}
    if not left:
        raise UsageError(
            f"all {total} pictures nearly equal ones that the bundle was made from, the first {similar[0].name} and "
            f"{similar[0].trained_on}; give pictures of other parts, or judge by these with --keep-similar"
        )
    concern = Concern(text=f"{what}, and are left out; --keep-similar would count them.")
    return Admitted(pictures.only(left), split, similar, twice, (concern,))


def _without_record(data: Path, bundle: Bundle, split: Split) -> str:
    """What to say of a bundle that does not record which pictures made it.

    Raises:
        UsageError: the manifest's fingerprint says that it was this very folder as a whole.
    """
    trained_on = bundle.manifest.training.get("data_sha256")
    warning = "The bundle does not record which pictures made it: whether it was trained on these cannot be checked"
    if not isinstance(trained_on, str):
        return f"{warning}."
    if trained_on != _folder_fingerprint(data):
        return f"{warning}. Its data had another fingerprint than this folder, which tells little."
    if split == "all":
        raise UsageError(
            f"{data}: is the very folder that this bundle was trained on (fingerprint {trained_on[:12]}); "
            "judge it by other pictures"
        )
    return f"{warning} picture by picture. It was trained on this very folder, whose {split}/ is judged here."


def _folder_fingerprint(data: Path) -> str:
    """The fingerprint that training would give this folder as a whole."""
    found = []
    for path in files_below(data):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            try:
                found.append((path.relative_to(data).as_posix(), file_sha256(path)))
            except OSError as err:
                raise DataError(f"{path}: cannot be read: {err.strerror or os.strerror(err.errno or 0)}") from err
    return fingerprint(found)
