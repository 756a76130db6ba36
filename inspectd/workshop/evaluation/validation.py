"""The pictures that an operating point is chosen on: never those that it is then judged by, nor those that trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from inspectd.errors import UsageError
from inspectd.model.bundle import Bundle
from inspectd.workshop.evaluation.admit import Admitted, admit
from inspectd.workshop.evaluation.labelled import Labelled, has_splits
from inspectd.workshop.provenance import Provenance, printable

_NONE = "no validation pictures; give some with --validation, or keep val/ beside test/"


@dataclass(frozen=True, slots=True)
class Validation:
    """`pictures` is None where there are none (`problem` says why), or where they are the judged ones themselves."""

    words: str = ""
    pictures: Labelled | None = None
    problem: str | None = None


def find_validation(
    given: Path | None,
    data: Path,
    bundle: Bundle,
    record: Provenance | None,
    judged: Admitted,
    on_progress: Callable[[int, int], None],
) -> Validation:
    """Those that were asked for, or val/ beside the judged ones, or what the bundle's record says validated it.

    Raises:
        DataError: those that were asked for cannot be used.
        UsageError: some of those that were asked for trained the bundle, or are among the judged ones.
    """
    if given is not None:
        return _read(given, bundle, record, judged, on_progress, sort=False)
    if judged.split == "val":
        return Validation("the very pictures of this report")
    splits = has_splits(data)
    if "val" not in splits and (splits or judged.split != "test"):
        return Validation(problem=_NONE)
    try:
        return _read(data, bundle, record, judged, on_progress, sort=record is not None)
    except UsageError as err:  # nobody asked for them, so the report goes on without
        return Validation(problem=str(err))


def _read(
    where: Path,
    bundle: Bundle,
    record: Provenance | None,
    judged: Admitted,
    on_progress: Callable[[int, int], None],
    *,
    sort: bool,
) -> Validation:
    """`sort`: in a folder without val/, the record says which pictures validated the bundle."""
    if has_splits(where) or sort:
        pictures = admit(where, bundle, record, "val", on_progress, "ignore").pictures
    else:
        pictures = admit(where, bundle, None, None, on_progress).pictures
        _refuse_trained_on(pictures, where, record)
    if both := set(pictures.pixel_hashes) & set(judged.pictures.pixel_hashes):
        raise UsageError(
            f"{len(both)} pictures are among the validation pictures and among those to judge by; "
            "an operating point that was chosen on a picture says nothing about it"
        )
    folder = where / "val" if has_splits(where) else where
    return Validation(f"{len(pictures)} validation pictures in {printable(str(folder))}", pictures)


def _refuse_trained_on(pictures: Labelled, where: Path, record: Provenance | None) -> None:
    if record is None:
        return
    seen = record.overlap(pictures.files, pictures.pixel_hashes)
    if trained := sum(one is not None and one.split == "train" for one in seen):
        raise UsageError(f"{where}: {trained} pictures trained this bundle; choose an operating point on others")
