"""Generated pictures of parts: a flange on a rubber belt, under uneven light, seen by a noisy sensor.

Everything is drawn from the generator that is passed in; what is slow and does not depend on it (belts,
noise) is made once per size and kept. Lengths are fractions of the picture's shorter side.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from inspectd.errors import DataError
from inspectd.frame import U8
from inspectd.model.flange import DEFECTS, F32, RADIUS, Light, Patch, generator, make_patch, smooth_noise, to_u8

KINDS: tuple[str, ...] = ("good", *DEFECTS, "empty")
DRAWING = 2  # counts up when the same seed draws other pictures, so that kept ones are drawn anew
PICTURE_SIZE = (320, 320)  # width, height of a written picture
DRIFT = 0.03  # of parts across the belt, either way
MARKER = "synth.json"

_BELTS = 8

Progress = Callable[[int, int], None]
"""Called with pictures written and pictures in all."""


def render_part(kind: str, rng: np.random.Generator, size: tuple[int, int] = PICTURE_SIZE) -> U8:
    """One picture of one part (or of the empty station), uint8 RGB [height, width, 3]; `size` is (width, height)."""
    width, height = size
    side = min(size)
    light = Light.draw(rng)
    belt = _belt(int(rng.integers(_BELTS)), width, height, side)
    x, y = int(rng.integers(belt.shape[1] - width)), int(rng.integers(belt.shape[0] - height))
    picture = np.ascontiguousarray(belt[y : y + height, x : x + width])
    if kind != "empty":
        radius = rng.uniform(*RADIUS) * side
        patch = make_patch(kind, rng, light, side, radius)
        reach = max(0.0, width / 2 - radius)
        lay(picture, patch, width / 2 + rng.uniform(-reach, reach), height / 2 + rng.uniform(-DRIFT, DRIFT) * side)
    return _expose(picture, light, rng, side)


def lay(picture: U8, patch: Patch, x: float, y: float) -> None:
    """Put a part on an RGB picture, in place, its centre at (x, y); what lies outside is cut off."""
    size = patch.through.shape[0]
    left, top = round(x) - size // 2, round(y) - size // 2
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + size, picture.shape[1]), min(top + size, picture.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    inside = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    through = cv2.cvtColor(patch.through[inside], cv2.COLOR_GRAY2RGB)
    below = cv2.multiply(picture[y0:y1, x0:x1], through, scale=1 / 255)
    picture[y0:y1, x0:x1] = cv2.add(below, patch.colour[inside])


def make_belt(seed: int, length: int, width: int, side: int) -> U8:
    """Dark rubber belt, uint8 RGB [width, length, 3]: weave, streaks along it, scuffs, spots; its ends fit together."""
    rng = generator(seed, 7)
    grain = smooth_noise(rng, length, width, side * 0.004)
    cloud = smooth_noise(rng, length, width, side * 0.12)
    rough = rng.standard_normal((width, 1), dtype=np.float32)
    lines = np.asarray(cv2.GaussianBlur(rough, (0, 0), side * 0.008), np.float32)
    streak = lines / lines.std() * (0.6 + 0.4 * cloud)
    rows = np.arange(width, dtype=np.float32)[:, None]
    columns = np.arange(length, dtype=np.float32)[None, :]
    period = length / round(length / (side / 45))
    weave = np.sin(columns * (math.tau / period)) * np.sin(rows * (math.tau / period))
    grey = rng.uniform(58, 72) + 4 * grain + 3.5 * cloud + 3 * streak + 3.5 * weave
    for _ in range(round(3 * length / side)):
        grey += _scuff(rng, length, width, side)
    tint = np.array([0.98, 1.03, 1.01]) + rng.uniform(-0.015, 0.015, 3)
    return to_u8(grey[..., None] * tint.astype(np.float32))


def write_dataset(
    directory: Path,
    per_class: int | dict[str, int],
    seed: int,
    size: tuple[int, int] = PICTURE_SIZE,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write `directory/<kind>/<kind>_00001.png` and so on. A picture depends on (seed, kind, number, size) only.

    A marker file says what was asked for and, written last, that everything is there (`is_complete`).
    A directory of ours is written anew; what other people put beside our pictures stays.

    Raises:
        DataError: `directory` holds other things and `overwrite` is not set, or cannot be written.
    """
    counts = per_class if isinstance(per_class, dict) else dict.fromkeys(KINDS, per_class)
    if unknown := sorted(set(counts) - set(KINDS)):
        raise DataError(f"{unknown[0]}: no kind of part; known: {', '.join(KINDS)}")
    if min(size) < 64 or any(count < 0 for count in counts.values()):
        raise DataError(f"pictures of {size[0]}x{size[1]}: expected sides from 64 and counts from 0")
    asked = _asked(counts, seed, size)
    total, done = sum(counts.values()), 0
    try:
        _take(directory, overwrite=overwrite)
        _mark(directory, {**asked, "complete": False})
        _clear(directory)
        for kind, count in counts.items():
            (directory / kind).mkdir(exist_ok=True)
            for number in range(1, count + 1):
                picture = render_part(kind, generator(seed, KINDS.index(kind), number), size)
                (directory / kind / f"{kind}_{number:05}.png").write_bytes(_png(picture))
                done += 1
                if progress is not None:
                    progress(done, total)
        _mark(directory, {**asked, "complete": True})
    except OSError as err:
        raise DataError(f"{err.filename or directory}: cannot be written: {err.strerror}") from err


def is_complete(
    directory: Path, per_class: int | dict[str, int], seed: int, size: tuple[int, int] = PICTURE_SIZE
) -> bool:
    """Whether `write_dataset` with these arguments has run to its end there, and nothing is missing since."""
    counts = per_class if isinstance(per_class, dict) else dict.fromkeys(KINDS, per_class)
    return _marker(directory) == {**_asked(counts, seed, size), "complete": True} and all(
        sum(1 for _ in _ours(directory, kind)) == count for kind, count in counts.items()
    )


def _asked(counts: dict[str, int], seed: int, size: tuple[int, int]) -> dict[str, Any]:
    return {"made_by": "inspectd synth", "drawing": DRAWING, "counts": dict(counts), "seed": seed, "size": list(size)}


def _marker(directory: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((directory / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("made_by") == "inspectd synth" else None


def _mark(directory: Path, content: dict[str, Any]) -> None:
    temporary = directory / f".{MARKER}.new"
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(directory / MARKER)


def _take(directory: Path, *, overwrite: bool) -> None:
    """Make sure of a directory that is empty, ours, or given away."""
    if directory.exists() and not directory.is_dir():
        raise DataError(f"{directory}: is a file; expected a directory, or a name that is not taken")
    directory.mkdir(parents=True, exist_ok=True)
    foreign = any(entry.name != f".{MARKER}.new" for entry in directory.iterdir()) and _marker(directory) is None
    if foreign and not overwrite:
        raise DataError(f"{directory}: holds other things; give an empty directory, or --overwrite")


def _ours(directory: Path, kind: str) -> Iterator[Path]:
    name = re.compile(rf"{kind}_\d{{5,}}\.png")
    return (path for path in (directory / kind).glob("*.png") if name.fullmatch(path.name))


def _clear(directory: Path) -> None:
    """Remove pictures of ours, and the folders that are empty then."""
    for kind in KINDS:
        for old in list(_ours(directory, kind)):
            old.unlink()
        if (directory / kind).is_dir() and not any((directory / kind).iterdir()):
            (directory / kind).rmdir()


def _png(picture: U8) -> bytes:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def _expose(picture: U8, light: Light, rng: np.random.Generator, side: int) -> U8:
    """Uneven light, a lens that is not quite sharp, sensor noise."""
    height, width = picture.shape[:2]
    field = cv2.cvtColor(light.field(width, height, side), cv2.COLOR_GRAY2RGB)
    picture = to_u8(cv2.multiply(picture, field, scale=rng.uniform(0.95, 1.1) / 255))
    if (blur := rng.uniform(0, 0.002) * side) > 0.3:
        picture = to_u8(cv2.GaussianBlur(picture, (0, 0), blur))
    bank = _noise_bank(width + 256, height + 256)
    x, y = rng.integers(256, size=2)
    strength = rng.uniform(1.0, 4.0) / 24
    return to_u8(cv2.addWeighted(picture, 1, bank[y : y + height, x : x + width], strength, -128 * strength))


@lru_cache(maxsize=2 * _BELTS)
def _belt(seed: int, width: int, height: int, side: int) -> U8:
    return make_belt(seed, width + 2 * side, height + side // 2, side)


@lru_cache(maxsize=4)
def _noise_bank(width: int, height: int) -> U8:
    """Sensor noise around 128 with a deviation of 24, mostly in brightness, uint8 [height, width, 3]."""
    rng = generator(13)
    luma = rng.standard_normal((height, width, 1), dtype=np.float32)
    chroma = rng.standard_normal((height, width, 3), dtype=np.float32)
    return to_u8(128 + 24 * (0.9 * luma + 0.43 * chroma))


def _scuff(rng: np.random.Generator, length: int, width: int, side: int) -> F32:
    """A rubbed mark along the belt, or a spot."""
    mask = np.zeros((width, length), np.float32)
    x, y = int(rng.integers(side // 4, length - side // 4)), int(rng.integers(width))
    if rng.random() < 0.6:
        end = (x + int(rng.uniform(0.05, 0.2) * side), y + int(rng.uniform(-0.01, 0.01) * side))
        cv2.line(mask, (x, y), end, 1.0, max(1, round(0.006 * side)), cv2.LINE_AA)
    else:
        cv2.circle(mask, (x, y), max(1, round(rng.uniform(0.006, 0.02) * side)), 1.0, -1, cv2.LINE_AA)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), 0.004 * side) * rng.uniform(-18, 22), dtype=np.float32)
