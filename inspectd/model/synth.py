"""Generated parts: a turned steel flange on a rubber belt, under uneven light, seen by a noisy sensor.

Lengths are fractions of the picture's shorter side (for the conveyor: of its ROI), so that a part looks
the same at every resolution. Everything is drawn from the generator that is passed in; what is slow and
does not depend on it (geometry, belts, noise) is made once per size and kept.

How a picture comes about: relief and albedo of the flange -> defect -> shading by one lamp -> turned,
scaled, laid on the belt with its shadow -> uneven light, blur, sensor noise.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from inspectd.errors import DataError
from inspectd.frame import U8

KINDS: tuple[str, ...] = ("good", "scratch", "dent", "stain", "empty")
DEFECTS: tuple[str, ...] = ("scratch", "dent", "stain")
PICTURE_SIZE = (320, 320)  # width, height of a written picture
MARKER = "synth.json"
RADIUS = (0.305, 0.335)  # of a flange
SHADOW_REACH = 0.04  # how far a shadow shows beyond the flange
DRIFT = 0.05  # across the belt, either way

_MARGIN = 0.06  # of a patch around the flange: shadow and its blur
_HOLES = [(0.725 * math.cos(a), 0.725 * math.sin(a)) for a in np.arange(6) * math.tau / 6]
_HOLE = 0.078  # radius of a bolt hole; like all below in flange radii
_BORE = 0.27

F32 = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Called with pictures written and pictures in all."""


@dataclass(frozen=True, slots=True)
class Light:
    """One lamp: where it stands, how hard it is, and how unevenly it lights the station."""

    azimuth: float  # radians, towards the lamp; x to the right, y down
    relief: float  # how strongly slopes show
    gloss: float  # brightness of the highlight on the turned face
    slope: float  # darkening from the lamp's side to the other, per side
    falloff: float  # darkening from its centre outwards

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Light:
        return cls(
            azimuth=math.radians(rng.uniform(-150, -70)),
            relief=rng.uniform(0.45, 0.75),
            gloss=rng.uniform(35, 90),
            slope=rng.uniform(0.0, 0.3),
            falloff=rng.uniform(0.1, 0.5),
        )

    def field(self, width: int, height: int, side: int) -> U8:
        """Share of the light that reaches each pixel, uint8 [height, width], 255 is all of it."""
        columns, rows = -(-width // 8), -(-height // 8)  # light has no fine structure: drawn small and enlarged
        x = (np.arange(columns, dtype=np.float32) - (columns - 1) / 2)[None, :] * (width / columns / side)
        y = (np.arange(rows, dtype=np.float32) - (rows - 1) / 2)[:, None] * (height / rows / side)
        across = x * math.cos(self.azimuth) + y * math.sin(self.azimuth)
        gain = (1 - self.slope * (0.5 - across)) * (1 - self.falloff * (x * x + y * y))
        return _u8(cv2.resize(np.clip(gain, 0.2, 1) * 255, (width, height), interpolation=cv2.INTER_LINEAR))


@dataclass(frozen=True, slots=True)
class Patch:
    """A part ready to be laid down: `picture = picture * through / 255 + colour` over its square."""

    colour: U8  # [S, S, 3] RGB, already weighted by coverage
    cover: U8  # [S, S], 255 where the part is
    through: U8  # [S, S], how much of the belt shows: none below the part, less in its shadow
    radius: float  # of the flange, pixels


def render_part(kind: str, rng: np.random.Generator, size: tuple[int, int] = PICTURE_SIZE) -> U8:
    """One picture of one part (or of the empty station), uint8 RGB [height, width, 3]; `size` is (width, height)."""
    width, height = size
    side = min(size)
    light = Light.draw(rng)
    belt = make_belt(int(rng.integers(8)), 4 * side, side + side // 2, side)
    x = int(rng.integers(belt.shape[1] - width + 1))
    y = int(rng.integers(belt.shape[0] - height + 1)) if belt.shape[0] > height else 0
    picture = np.ascontiguousarray(belt[y : y + height, x : x + width])
    if kind != "empty":
        radius = rng.uniform(*RADIUS) * side
        patch = make_patch(kind, rng, light, side, radius)
        reach = max(0.0, width / 2 - radius)
        lay(picture, patch, width / 2 + rng.uniform(-reach, reach), height / 2 + rng.uniform(-DRIFT, DRIFT) * side)
    return _expose(picture, light, rng, side)


def make_patch(kind: str, rng: np.random.Generator, light: Light, side: int, radius: float) -> Patch:
    """A flange of that radius in pixels, turned at random, with the defect that `kind` names (or "good")."""
    shape = _geometry(side)
    turn = rng.uniform(0, math.tau)
    towards = (math.cos(light.azimuth - turn), math.sin(light.azimuth - turn))  # the lamp, as the part sees it
    albedo = _albedo(side, int(rng.integers(4))) * np.float32(rng.uniform(0.9, 1.08))
    slope = shape.slope_x * towards[0] + shape.slope_y * towards[1]
    cover = shape.cover
    if kind == "dent":
        slope, cover = _dent(shape, rng, towards, slope)
    radial = shape.unit_x * towards[0] + shape.unit_y * towards[1] + 0.6 * (slope - shape.base_slope(towards))
    fan = radial * radial
    fan *= fan
    grey = albedo * (1 + light.relief * slope) + light.gloss * shape.face * fan
    if kind == "scratch":
        _scratch(shape, rng, grey)
    cast = 1 + rng.uniform(-0.025, 0.025, 3)
    film, tone = _stain(shape, rng) if kind == "stain" else (None, (0.0, 0.0, 0.0))
    grey = np.maximum(grey, 0) * cover
    channels = []
    for gain, taken in zip(cast, tone, strict=True):
        lit = grey if film is None else grey * (1 - taken * film)
        channels.append(cv2.convertScaleAbs(lit, alpha=gain))
    layers = _u8(cv2.merge([*channels, cv2.convertScaleAbs(cover, alpha=255)]))
    return _turned(layers, shape, light, turn, radius, side)


def lay(picture: U8, patch: Patch, x: float, y: float) -> None:
    """Put a part on an RGB picture, in place, its centre at (x, y); what lies outside is cut off."""
    size = patch.cover.shape[0]
    left, top = round(x) - size // 2, round(y) - size // 2
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + size, picture.shape[1]), min(top + size, picture.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    inside = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    through = cv2.cvtColor(patch.through[inside], cv2.COLOR_GRAY2RGB)
    below = cv2.multiply(picture[y0:y1, x0:x1], through, scale=1 / 255)
    picture[y0:y1, x0:x1] = cv2.add(below, patch.colour[inside])


@lru_cache(maxsize=16)
def make_belt(seed: int, length: int, width: int, side: int) -> U8:
    """Dark rubber belt, uint8 RGB [width, length, 3]: weave, streaks along it, scuffs, spots; its ends fit together."""
    rng = _generator(seed, 7)
    grain = _smooth_noise(rng, length, width, side * 0.004)
    cloud = _smooth_noise(rng, length, width, side * 0.12)
    streak = cv2.GaussianBlur(rng.standard_normal((width, 1)).astype(np.float32), (0, 0), side * 0.008)
    streak = streak / streak.std() * (0.6 + 0.4 * cloud)
    rows = np.arange(width, dtype=np.float32)[:, None]
    columns = np.arange(length, dtype=np.float32)[None, :]
    period = length / round(length / (side / 45))
    weave = np.sin(columns * (math.tau / period)) * np.sin(rows * (math.tau / period))
    grey = rng.uniform(52, 82) + 4 * grain + 3.5 * cloud + 3 * streak + 3.5 * weave
    for _ in range(round(3 * length / side)):
        grey += _scuff(rng, length, width, side)
    tint = np.array([0.98, 1.03, 1.01]) + rng.uniform(-0.05, 0.05, 3)
    belt = _u8(grey[..., None] * tint.astype(np.float32))
    belt.setflags(write=False)  # shared by everybody who asks for the same belt
    return belt


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
    try:
        _prepare(directory, overwrite=overwrite)
        (directory / MARKER).write_text(json.dumps({**asked, "complete": False}), encoding="utf-8")
        total, done = sum(counts.values()), 0
        for kind, count in counts.items():
            (directory / kind).mkdir(exist_ok=True)
            for number in range(1, count + 1):
                picture = render_part(kind, _generator(seed, KINDS.index(kind), number), size)
                (directory / kind / f"{kind}_{number:05}.png").write_bytes(_png(picture))
                done += 1
                if progress is not None:
                    progress(done, total)
        (directory / MARKER).write_text(json.dumps({**asked, "complete": True}), encoding="utf-8")
    except OSError as err:
        raise DataError(f"{err.filename or directory}: cannot be written: {err.strerror}") from err


def is_complete(
    directory: Path, per_class: int | dict[str, int], seed: int, size: tuple[int, int] = PICTURE_SIZE
) -> bool:
    """Whether `write_dataset` with these arguments has run to its end there."""
    counts = per_class if isinstance(per_class, dict) else dict.fromkeys(KINDS, per_class)
    return _marker(directory) == {**_asked(counts, seed, size), "complete": True}


def _asked(counts: dict[str, int], seed: int, size: tuple[int, int]) -> dict[str, Any]:
    return {"made_by": "inspectd synth", "counts": dict(counts), "seed": seed, "size": list(size)}


def _marker(directory: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((directory / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("made_by") == "inspectd synth" else None


def _prepare(directory: Path, *, overwrite: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise DataError(f"{directory}: is a file; expected a directory, or a name that is not taken")
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()) and _marker(directory) is None and not overwrite:
        raise DataError(f"{directory}: holds other things; give an empty directory, or --overwrite")
    for kind in KINDS:
        for old in (directory / kind).glob(f"{kind}_*.png"):
            if re.fullmatch(rf"{kind}_\d{{5,}}\.png", old.name):
                old.unlink()


def _png(picture: U8) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def _generator(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


@dataclass(frozen=True, slots=True)
class _Geometry:
    """The flange's form, drawn once per size: float32 [S, S] maps around its centre."""

    scale: float  # pixels per flange radius
    x: F32  # in flange radii
    y: F32
    unit_x: F32  # direction from the centre
    unit_y: F32
    slope_x: F32  # relief: which way the surface falls
    slope_y: F32
    cover: F32  # 1 on the part, soft at its rim
    face: F32  # 1 on metal, 0 in holes and bore
    shadow: U8  # of the whole disc, 255 below it

    def base_slope(self, towards: tuple[float, float]) -> F32:
        return self.slope_x * towards[0] + self.slope_y * towards[1]


@lru_cache(maxsize=4)
def _geometry(side: int) -> _Geometry:
    scale = RADIUS[1] * side
    half = math.ceil(scale + _MARGIN * side)
    y, x = (np.mgrid[-half:half, -half:half].astype(np.float32) + np.float32(0.5)) / np.float32(scale)
    r = np.hypot(x, y)
    unit_x, unit_y = x / r, y / r

    def ramp(edge: float, distance: F32 = r) -> F32:  # 0 inside, 1 outside, one pixel soft
        return np.clip((distance - edge) * scale + 0.5, 0, 1)

    def ring(inner: float, outer: float, distance: F32 = r) -> F32:
        return ramp(inner, distance) * (1 - ramp(outer, distance))

    radial = 0.9 * ring(0.95, 1.1) + 0.7 * ring(0.49, 0.525) - 0.8 * ring(_BORE, 0.30)
    radial += 0.5 * (ring(0.875, 0.89) - ring(0.86, 0.875))  # a turned groove
    slope_x, slope_y, face = radial * unit_x, radial * unit_y, ramp(_BORE)
    for hole_x, hole_y in _HOLES:
        away = np.hypot(x - hole_x, y - hole_y)
        chamfer = ring(_HOLE, _HOLE + 0.022, away) / np.maximum(away, 1e-3)
        slope_x -= chamfer * (x - hole_x)
        slope_y -= chamfer * (y - hole_y)
        face *= ramp(_HOLE, away)
    shadow = cv2.GaussianBlur(1 - ramp(1.0), (0, 0), side * 0.014)
    return _Geometry(scale, x, y, unit_x, unit_y, slope_x, slope_y, 1 - ramp(1.0), face, _u8(shadow * 255))


@lru_cache(maxsize=16)
def _albedo(side: int, variant: int) -> F32:
    """Brightness of the bare metal: turning marks along circles, a few of them deeper; dark in the holes."""
    rng = _generator(variant, 11)
    shape = _geometry(side)
    r = np.hypot(shape.x, shape.y) * shape.scale
    marks = rng.standard_normal(r.shape[0]).astype(np.float32)
    marks = marks + 2.5 * cv2.GaussianBlur(marks[:, None], (0, 0), 3)[:, 0]
    blotch = _smooth_noise(rng, r.shape[1], r.shape[0], side * 0.05)
    hub = np.hypot(shape.x, shape.y) < 0.5
    metal = 132 + 12 * hub + 4.5 * np.interp(r, np.arange(len(marks)), marks) + 2.5 * blotch
    return (metal * shape.face + 26 * (1 - shape.face)).astype(np.float32)


def _spot(rng: np.random.Generator, clear: float) -> tuple[float, float]:
    """A place on the outer face, `clear` away from its bolt holes, in flange radii."""
    while True:
        r, a = rng.uniform(0.58, 0.86), rng.uniform(0, math.tau)
        x, y = r * math.cos(a), r * math.sin(a)
        if all(math.hypot(x - hole_x, y - hole_y) > _HOLE + clear for hole_x, hole_y in _HOLES):
            return x, y


def _dent(
    shape: _Geometry, rng: np.random.Generator, towards: tuple[float, float], slope: F32
) -> tuple[F32, F32]:
    """A blow on the face, or (one in three) a nick in the rim: new slopes and cover."""
    cover = shape.cover
    if nick := rng.random() < 1 / 3:
        a = rng.uniform(0, math.tau)
        centre, size, depth = (math.cos(a), math.sin(a)), rng.uniform(0.09, 0.15), 1.4
    else:
        centre, size, depth = _spot(rng, 0.03), rng.uniform(0.07, 0.14), rng.uniform(1.3, 2.4)
    stretch, lie = rng.uniform(0.75, 1.0), rng.uniform(0, math.tau)
    dx, dy = shape.x - np.float32(centre[0]), shape.y - np.float32(centre[1])
    along = (dx * math.cos(lie) + dy * math.sin(lie)) / size
    aside = (dy * math.cos(lie) - dx * math.sin(lie)) / (size * stretch)
    square = along * along + aside * aside
    if nick:
        cover = cover * np.clip((np.sqrt(square) - 0.75) * size * shape.scale + 0.5, 0, 1)
    bowl = np.exp(-1.5 * square) * (depth / size)
    return slope - bowl * (dx * towards[0] + dy * towards[1]) * shape.face, cover


def _scratch(shape: _Geometry, rng: np.random.Generator, grey: F32) -> None:
    """A groove across the turning marks: light or dark, whichever shows, with a burr along one side."""
    half = grey.shape[0] / 2
    while True:
        (x, y), a = _spot(rng, 0.0), rng.uniform(0, math.tau)
        length, bend = rng.uniform(0.4, 1.1), rng.uniform(-0.5, 0.5)
        t = np.linspace(-0.5, 0.5, 24)
        heading = a + bend * t
        line = np.stack([x + length * t * np.cos(heading), y + length * t * np.sin(heading)], 1)
        on_metal = np.hypot(line[:, 0], line[:, 1])
        if ((on_metal < 0.97) & (on_metal > 0.3)).mean() > 0.75:
            break
    width = max(1.0, rng.uniform(0.012, 0.03) * shape.scale)
    points = np.round((line * shape.scale + half) * 16).astype(np.int32)
    mask = np.zeros(grey.shape, np.uint8)
    cv2.polylines(mask, [points], isClosed=False, color=255, thickness=round(width), lineType=cv2.LINE_AA, shift=4)
    cv2.polylines(mask, [points[6:18]], False, 255, round(width * 1.5), cv2.LINE_AA, 4)
    groove = mask.astype(np.float32) * shape.face / 255
    under = float((grey * groove).sum() / max(groove.sum(), 1.0))
    strength = rng.uniform(45, 100) * (1 if under < 150 and rng.random() < 0.75 else -1)
    shift = max(1, round(width * 0.8))
    grey += strength * groove
    grey -= 0.45 * strength * np.roll(groove, (shift, shift), (0, 1)) * (1 - groove)


_STAINS = ((0.62, 0.45, 0.28), (0.50, 0.36, 0.30), (0.36, 0.36, 0.38), (0.60, 0.68, 0.98))  # oil, rust, soot, heat


def _stain(shape: _Geometry, rng: np.random.Generator) -> tuple[F32, tuple[float, ...]]:
    """A ragged film with a darker edge: its opacity, and what it takes from red, green and blue."""
    x, y = _spot(rng, -0.02)
    size = rng.uniform(0.14, 0.34)
    coarse = rng.standard_normal((12, 12)).astype(np.float32)
    ragged = cv2.resize(coarse, shape.x.shape[::-1], interpolation=cv2.INTER_CUBIC)
    inside = 5 - np.hypot(shape.x - np.float32(x), shape.y - np.float32(y)) * np.float32(5 / size) + 1.25 * ragged
    film = np.clip(inside, 0, 1) * (1 + 0.35 * np.exp(-np.square(inside - 1))) / 1.35
    tone = _STAINS[rng.integers(len(_STAINS))]
    return rng.uniform(0.5, 1.0) * film * shape.face, tuple(1 - share for share in tone)


def _turned(layers: U8, shape: _Geometry, light: Light, turn: float, radius: float, side: int) -> Patch:
    """The drawn part, turned, scaled to `radius` pixels, and its shadow away from the lamp."""
    half = 2 * math.ceil((radius + _MARGIN * side) / 2)  # even, so that chroma planes line up
    shrink, middle = radius / shape.scale, layers.shape[0] / 2 - 0.5
    cos, sin = shrink * math.cos(turn), shrink * math.sin(turn)
    out = half - 0.5
    move = np.array([[cos, -sin, out - cos * middle + sin * middle], [sin, cos, out - sin * middle - cos * middle]])
    turned = cv2.warpAffine(layers, move, (2 * half, 2 * half), flags=cv2.INTER_LINEAR)
    away = 0.018 * side
    offset = (out - shrink * middle - away * math.cos(light.azimuth), out - shrink * middle - away * math.sin(light.azimuth))
    drop = np.array([[shrink, 0, offset[0]], [0, shrink, offset[1]]])
    shadow = cv2.warpAffine(shape.shadow, drop, (2 * half, 2 * half), flags=cv2.INTER_LINEAR)
    cover = np.ascontiguousarray(turned[..., 3])
    lit = cv2.convertScaleAbs(shadow, alpha=-0.6, beta=255)
    through = cv2.multiply(lit, 255 - cover, scale=1 / 255)
    return Patch(_u8(turned[..., :3]), cover, _u8(through), radius)


def _expose(picture: U8, light: Light, rng: np.random.Generator, side: int) -> U8:
    """Uneven light, a lens that is not quite sharp, sensor noise."""
    height, width = picture.shape[:2]
    field = cv2.cvtColor(light.field(width, height, side), cv2.COLOR_GRAY2RGB)
    picture = _u8(cv2.multiply(picture, field, scale=rng.uniform(0.85, 1.25) / 255))
    if (blur := rng.uniform(0, 0.0028) * side) > 0.3:
        picture = _u8(cv2.GaussianBlur(picture, (0, 0), blur))
    bank = _noise_bank(width + 256, height + 256)
    x, y = rng.integers(256, size=2)
    strength = rng.uniform(1.0, 4.5) / 24
    return _u8(cv2.addWeighted(picture, 1, bank[y : y + height, x : x + width], strength, -128 * strength))


@lru_cache(maxsize=4)
def _noise_bank(width: int, height: int) -> U8:
    """Sensor noise around 128 with a deviation of 24, mostly in brightness, uint8 [height, width, 3]."""
    rng = _generator(13)
    luma = rng.standard_normal((height, width, 1), dtype=np.float32)
    chroma = rng.standard_normal((height, width, 3), dtype=np.float32)
    return _u8(128 + 24 * (0.9 * luma + 0.43 * chroma))


def _smooth_noise(rng: np.random.Generator, width: int, height: int, sigma: float) -> F32:
    """Noise of deviation 1 with structures of about `sigma` pixels, whose left and right ends fit together."""
    step = max(1, int(sigma / 2))  # fine enough: coarse structures are drawn small and enlarged
    small = rng.standard_normal((-(-height // step), -(-width // step)), dtype=np.float32)
    pad = small.shape[1] if sigma / step * 4 > small.shape[1] else math.ceil(sigma / step * 4)
    small = cv2.GaussianBlur(np.hstack([small[:, -pad:], small, small[:, :pad]]), (0, 0), max(0.3, sigma / step))
    large = cv2.resize(small[:, pad:-pad], (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(large / large.std(), dtype=np.float32)


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


def _u8(values: npt.NDArray[Any]) -> U8:
    """Rounded and clipped to uint8; an array that is uint8 already passes through."""
    if values.dtype == np.uint8:
        return values
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
