"""Which pictures made a bundle: a record inside it, so that none of them is ever used to judge it.

    trained-on.json   {"format": 1, "pictures": [{"split", "name", "file", "pixels", "print"}, …]}

`file` and `pixels` are SHA-256 in hex, of the file's bytes and of the preprocessed uint8 RGB pixels;
`print` is a small thumbnail (`inspectd.model.similar`) that also finds nearly equal pictures. The
manifest lists the file with its hash, like every other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inspectd.errors import BundleError
from inspectd.frame import U8
from inspectd.model.bundle import MANIFEST, Bundle
from inspectd.model.data import Sample, Split
from inspectd.model.similar import decode_print, encode_print, near_duplicates, prints

RECORD = "trained-on.json"
FORMAT = 1

_Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class Seen(BaseModel):
    """One picture that made the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Literal["train", "val"]
    name: str
    file: str = _Sha256
    pixels: str = _Sha256
    print: str = ""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    pictures: tuple[Seen, ...]


@dataclass(frozen=True, slots=True)
class Provenance:
    """The pictures that trained a bundle, and those that its thresholds were chosen on."""

    pictures: tuple[Seen, ...]

    def overlap(self, files: Sequence[str], pixels: Sequence[str]) -> list[Seen | None]:
        """For each picture the one that made the bundle and equals it, by its file or by its pixels, or None.

        `files` and `pixels` are SHA-256 in hex. Where a picture both trained and validated, training counts.
        """
        ordered = sorted(self.pictures, key=lambda seen: seen.split == "train")  # the last one wins
        by_file = {seen.file: seen for seen in ordered}
        by_pixels = {seen.pixels: seen for seen in ordered}
        return [by_file.get(file) or by_pixels.get(pixel) for file, pixel in zip(files, pixels, strict=True)]

    def similar(self, pixels: U8, splits: Collection[str] = ("train", "val")) -> list[tuple[int, Seen]]:
        """(index, picture that made the bundle) for the rows of uint8 [N, height, width, 3] that nearly equal one.

        Compared with pictures of these splits. Each row is named once, with the first that it resembles.

        Raises:
            BundleError: a print in the record is none.
        """
        known = [seen for seen in self.pictures if seen.print and seen.split in splits]
        if not known or not len(pixels):
            return []
        try:
            theirs = np.stack([decode_print(seen.print) for seen in known])
        except ValueError as err:
            raise BundleError(f"{RECORD}: holds a print that cannot be read: {err}; make the bundle again") from None
        found: dict[int, Seen] = {}
        for ours, other in near_duplicates(prints(pixels), theirs):
            found.setdefault(int(ours), known[int(other)])
        return sorted(found.items())


def pixels_sha256(pixels: U8) -> str:
    """SHA-256 in hex of one preprocessed picture, uint8 [height, width, 3]."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def write_provenance(root: Path, entries: Iterable[tuple[Split, Sample, U8]]) -> Path:
    """Write the record into the bundle that is being made at `root`, before its manifest; returns its path.

    Args:
        entries: split, picture, and its preprocessed pixels uint8 [height, width, 3]. Pictures of a test
            split are left out: they made nothing.
    """
    seen = []
    for split, sample, pixels in entries:
        if split == "test":
            continue
        seen.append(
            Seen(
                split=split,
                name=printable(sample.name),
                file=sample.sha256,
                pixels=pixels_sha256(pixels),
                print=encode_print(prints(pixels[np.newaxis])[0]),
            )
        )
    path = root / RECORD
    path.write_text(_Record(format=FORMAT, pictures=tuple(seen)).model_dump_json(indent=0) + "\n", encoding="utf-8")
    return path


def read_provenance(bundle: Bundle) -> Provenance | None:
    """The bundle's record, or None where it has none.

    Raises:
        BundleError: there is a record that the manifest does not vouch for, or that cannot be read.
    """
    path = bundle.path / RECORD
    if RECORD not in bundle.manifest.files:
        if path.exists():
            raise BundleError(f"{path}: is not listed in {MANIFEST}; remove it or make the bundle again")
        return None
    try:
        raw = path.read_bytes()
    except OSError as err:
        raise BundleError(f"{path}: cannot be read: {err.strerror}") from err
    if hashlib.sha256(raw).hexdigest() != bundle.manifest.files[RECORD]:
        raise BundleError(f"{path}: was changed since the bundle was loaded; copy the bundle again")
    try:
        record = _Record.model_validate_json(raw)
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "content"
        raise BundleError(f"{path}: {where}: {first['msg']}; make the bundle again") from None
    if record.format != FORMAT:
        raise BundleError(f"{path}: has format {record.format}, this inspectd reads {FORMAT}; upgrade inspectd")
    return Provenance(record.pictures)


def printable(name: str) -> str:
    """A file's name as text that every encoding and terminal bears: what is no character becomes its escape."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
