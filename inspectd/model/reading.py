"""One pass over picture files: read once, and learn what training, survey and split want to know of each."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from inspectd.errors import DataError
from inspectd.frame import U8
from inspectd.model.pictures import decode_picture
from inspectd.model.preprocess import PreprocessSpec, preprocess_picture
from inspectd.model.similar import print_of

_READERS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What a decoded picture looks like. Levels are of 8 bits; `print` is uint8 [256], see `model.similar`."""

    width: int
    height: int
    sixteen_bit: bool
    darkest: int
    brightest: int
    print: U8


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One file: the hash of its bytes and its look, or why it cannot be used (starts with the path)."""

    sha256: str
    look: Look | None
    error: str | None = None


def read_all(
    paths: Sequence[Path],
    spec: PreprocessSpec | None = None,
    pixels: U8 | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Reading]:
    """Read the files, a few at a time. With `spec`, pixels[i] (uint8 [N, height, width, 3]) becomes picture i as the
    network sees it; rows of unusable pictures are left as they are.
    """

    def read(index: int) -> Reading:
        return _read(paths[index], spec, None if pixels is None else pixels[index])

    readings = []
    with ThreadPoolExecutor(_READERS, thread_name_prefix="picture-reader") as pool:
        for reading in pool.map(read, range(len(paths))):
            readings.append(reading)
            if on_progress is not None:
                on_progress(len(readings), len(paths))
    return readings


def _read(path: Path, spec: PreprocessSpec | None, out: U8 | None) -> Reading:
    try:
        raw = path.read_bytes()
    except OSError as err:
        return Reading("", None, f"{path}: cannot be read: {err.strerror}")
    sha256 = hashlib.sha256(raw).hexdigest()
    try:
        rgb = decode_picture(raw, str(path))
    except DataError as err:
        return Reading(sha256, None, str(err))
    if spec is not None and out is not None:
        out[:] = preprocess_picture(rgb, spec)
    height, width = rgb.shape[:2]
    return Reading(sha256, Look(width, height, _is_sixteen_bit(raw), int(rgb.min()), int(rgb.max()), print_of(rgb)))


def _is_sixteen_bit(raw: bytes) -> bool:
    with Image.open(io.BytesIO(raw)) as picture:  # the header only; it was decoded before
        if picture.mode.startswith("I"):
            return True
        # Colours are 8-bit to Pillow whatever the file has; how it decodes them tells: RGB;16B, or a PPM's full level.
        return any(
            ";16" in str(args) or (codec.startswith("ppm") and isinstance(args, tuple) and args[-1] > 255)
            for codec, _, _, args in picture.tile
        )
