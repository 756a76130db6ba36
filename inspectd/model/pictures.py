"""Reading picture files: whatever a camera, a scanner or an editor wrote becomes RGB uint8."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from inspectd.errors import DataError
from inspectd.frame import U8

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
"""What counts as a picture in a data folder, in lower case."""

_FULL_SCALE_16 = 65535.0


def read_picture(path: Path) -> U8:
    """Read one picture upright, as RGB uint8 [height, width, 3].

    16 bits become 8 by their full scale (never by the content, or a dark picture would turn bright);
    transparent pixels become black; EXIF rotation is applied; of several pages the first counts.

    Raises:
        DataError: no picture, cut off, or of floating point. The message starts with the path.
    """
    try:
        raw = path.read_bytes()
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror}") from err
    return decode_picture(raw, str(path))


def decode_picture(raw: bytes, name: str) -> U8:
    """Like `read_picture`, from the bytes of a file. `name` stands in the error."""
    if not raw:
        raise DataError(f"{name}: is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF, large pictures: either it decodes or it does not
            with Image.open(io.BytesIO(raw)) as picture:
                picture.load()
                return _to_rgb(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError:
        raise DataError(f"{name}: is no picture that can be read") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name}: has more pixels than a camera makes; crop it to the part") from None
    # Pillow's decoders raise nearly anything on damaged input.
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, IndexError, KeyError, struct.error) as err:
        raise DataError(f"{name}: is damaged: {' '.join(str(err).split())[:120]}") from err


def _to_rgb(picture: Image.Image) -> U8:
    if picture.mode.startswith("I"):  # 16-bit gray: I;16 and its byte orders, or I
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > _FULL_SCALE_16:
            raise ValueError("gray values beyond 16 bits")
        gray: U8 = np.rint(values.astype(np.float32) * (255.0 / _FULL_SCALE_16)).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if picture.mode == "F":
        raise ValueError("gray values are floating point; save 8 or 16 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(ground, picture)
    return np.ascontiguousarray(np.asarray(picture.convert("RGB"), dtype=np.uint8))
