"""The generated part: a turned steel flange with four bolt holes, drawn from its relief.

Relief and albedo -> defect -> shading by one lamp -> turned and scaled to a patch that can be laid on a
belt. Lengths are fractions of the picture's shorter side (for the conveyor: of its station), so that a
part looks the same at every resolution; the flange's own features are in flange radii. Geometry and bare
metal do not depend on chance: they are made once per size and kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from inspectd.frame import U8

DEFECTS: tuple[str, ...] = ("scratch", "dent", "stain")
RADIUS = (0.39, 0.41)  # of a flange
TURN = 0.25  # radians either way: a carrier holds the part, loosely
SHADOW_REACH = 0.04  # how far a shadow shows beyond the flange

_MARGIN = 0.06  # of a patch around the flange: shadow and its blur
_HOLES = [(0.725 * math.cos(a), 0.725 * math.sin(a)) for a in (np.arange(4) + 0.5) * math.tau / 4]
_HOLE = 0.078  # radius of a bolt hole
_BORE = 0.27

F32 = npt.NDArray[np.floating[Any]]
"""float32 maps of one size around the part's centre; the type says what the stubs can follow."""


@dataclass(frozen=True, slots=True)
class Light:
    """A ring light that is not quite even: where it is strongest, and how much of it reaches each place."""

    azimuth: float  # radians, towards its strongest side; x to the right, y down
    relief: float  # how strongly slopes show
    gloss: float  # brightness of the highlight on the turned face
    slope: float  # darkening from the lamp's side to the other, per side
    falloff: float  # darkening from its centre outwards

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Light:
        return cls(
            azimuth=math.radians(rng.uniform(-120, -60)),
            relief=rng.uniform(0.65, 0.8),
            gloss=rng.uniform(20, 32),
            slope=rng.uniform(0.05, 0.15),
            falloff=rng.uniform(0.15, 0.3),
        )

    def field(self, width: int, height: int, side: int) -> U8:
        """Share of the light that reaches each pixel, uint8 [height, width], 255 is all of it."""
        columns, rows = -(-width // 8), -(-height // 8)  # light has no fine structure: drawn small and enlarged
        x = (np.arange(columns, dtype=np.float32) - (columns - 1) / 2)[None, :] * (width / columns / side)
        y = (np.arange(rows, dtype=np.float32) - (rows - 1) / 2)[:, None] * (height / rows / side)
        across = x * math.cos(self.azimuth) + y * math.sin(self.azimuth)
        gain = (1 - self.slope * (0.5 - across)) * (1 - self.falloff * (x * x + y * y))
        return to_u8(cv2.resize(np.clip(gain, 0.2, 1) * 255, (width, height), interpolation=cv2.INTER_LINEAR))


@dataclass(frozen=True, slots=True)
class Patch:
    """A part ready to be laid down: `picture = picture * through / 255 + colour` over its square."""

    colour: U8  # [S, S, 3] RGB, already weighted by coverage
    through: U8  # [S, S], how much of the belt shows: none below the part, less in its shadow


def make_patch(kind: str, rng: np.random.Generator, light: Light, side: int, radius: float) -> Patch:
    """A flange of that radius in pixels, turned a little, with the defect that `kind` names (or "good").

    From the same generator state, kinds differ in their defect only.
    """
    shape = _geometry(side)
    turn = rng.uniform(-TURN, TURN)
    towards = (math.cos(light.azimuth - turn), math.sin(light.azimuth - turn))  # the lamp, as the part sees it
    albedo = _albedo(side, int(rng.integers(4))) * np.float32(rng.uniform(0.96, 1.04))
    cast = 1 + rng.uniform(-0.01, 0.01, 3)
    slope_x, slope_y = shape.slope_x, shape.slope_y
    if kind == "dent":
        bowl_x, bowl_y = _dent(shape, rng)
        slope_x, slope_y = slope_x + bowl_x, slope_y + bowl_y
    # A ring light leaves slopes darker, whichever way they fall; that it is stronger on one side tells up from down.
    steep = np.minimum(np.hypot(slope_x, slope_y), 1.2)
    towards_lamp = slope_x * towards[0] + slope_y * towards[1]
    fan = np.square(shape.unit_x * towards[0] + shape.unit_y * towards[1])  # turned metal shines along such radii
    grey = albedo * (1 + light.relief * (0.4 * towards_lamp - 0.5 * steep)) + light.gloss * shape.face * fan * fan
    if kind == "scratch":
        _scratch(shape, rng, grey)
    film, tone = _stain(shape, rng) if kind == "stain" else (None, (0.0, 0.0, 0.0))
    grey = np.maximum(grey, 0) * shape.cover
    channels = []
    for gain, taken in zip(cast, tone, strict=True):
        lit = grey if film is None else grey * (1 - taken * film)
        channels.append(cv2.convertScaleAbs(lit, alpha=gain))
    layers = to_u8(cv2.merge([*channels, cv2.convertScaleAbs(shape.cover, alpha=255)]))
    return _turned(layers, shape, light, turn, radius, side)


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


@lru_cache(maxsize=4)
def _geometry(side: int) -> _Geometry:
    scale = RADIUS[1] * side
    half = math.ceil(scale + _MARGIN * side)
    y, x = (np.mgrid[-half:half, -half:half].astype(np.float32) + np.float32(0.5)) / np.float32(scale)
    r = np.hypot(x, y)
    unit_x, unit_y = x / r, y / r

    def ramp(edge: float, distance: F32 = r) -> F32:  # 0 inside, 1 outside, one pixel soft
        soft: F32 = np.clip((distance - edge) * scale + 0.5, 0, 1)
        return soft

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
    cover = 1 - ramp(1.0)
    shadow = to_u8(255 * cv2.GaussianBlur(cover, (0, 0), side * 0.014))
    return _Geometry(scale, x, y, unit_x, unit_y, slope_x, slope_y, cover, face, shadow)


@lru_cache(maxsize=16)
def _albedo(side: int, variant: int) -> F32:
    """Brightness of the bare metal: turning marks along circles, a few of them deeper; dark in the holes."""
    rng = generator(variant, 11)
    shape = _geometry(side)
    r = np.hypot(shape.x, shape.y) * shape.scale
    marks = rng.standard_normal((r.shape[0],), dtype=np.float32)
    marks = marks + 2.5 * cv2.GaussianBlur(marks[:, None], (0, 0), 3)[:, 0]
    blotch = smooth_noise(rng, r.shape[1], r.shape[0], side * 0.05)
    hub = r < 0.5 * shape.scale
    metal = 132 + 12 * hub + 3.5 * np.interp(r, np.arange(len(marks)), marks) + 2 * blotch
    return np.asarray(metal * shape.face + 26 * (1 - shape.face), np.float32)


def _spot(rng: np.random.Generator, clear: float) -> tuple[float, float]:
    """A place on the outer face, `clear` away from its bolt holes, in flange radii."""
    while True:
        r, a = rng.uniform(0.58, 0.86), rng.uniform(0, math.tau)
        x, y = r * math.cos(a), r * math.sin(a)
        if _from_holes(x, y) > clear:
            return x, y


def _from_holes(x: float, y: float) -> float:
    return min(math.hypot(x - hole_x, y - hole_y) for hole_x, hole_y in _HOLES) - _HOLE


def _dent(shape: _Geometry, rng: np.random.Generator) -> tuple[F32, F32]:
    """A blow on the face: what it adds to the slopes."""
    (x, y), size, depth = _spot(rng, 0.05), rng.uniform(0.28, 0.36), rng.uniform(5.0, 6.5)
    stretch, lie = rng.uniform(0.75, 1.0), rng.uniform(0, math.tau)
    dx, dy = shape.x - np.float32(x), shape.y - np.float32(y)
    along = (dx * math.cos(lie) + dy * math.sin(lie)) / size
    aside = (dy * math.cos(lie) - dx * math.sin(lie)) / (size * stretch)
    bowl = np.exp(-1.5 * (along * along + aside * aside)) * (-depth / size) * shape.face
    return bowl * dx, bowl * dy


def _scratch(shape: _Geometry, rng: np.random.Generator, grey: F32) -> None:
    """A groove across the turning marks: light or dark, whichever shows, with a burr along one side."""
    half = grey.shape[0] / 2
    while True:
        (x, y), a = _spot(rng, 0.0), rng.uniform(0, math.tau)
        length, bend = rng.uniform(0.8, 1.3), rng.uniform(-0.5, 0.5)
        t = np.linspace(-0.5, 0.5, 24)
        heading = a + bend * t
        line = np.stack([x + length * t * np.cos(heading), y + length * t * np.sin(heading)], 1)
        on_metal = [0.3 < math.hypot(*point) < 0.97 and _from_holes(*point) > 0 for point in line]
        if np.mean(on_metal) > 0.75:
            break
    width = max(1.0, rng.uniform(0.035, 0.06) * shape.scale)
    points = np.round((line * shape.scale + half) * 16).astype(np.int32)
    mask = np.zeros(grey.shape, np.uint8)
    cv2.polylines(mask, [points], isClosed=False, color=255, thickness=round(width), lineType=cv2.LINE_AA, shift=4)
    cv2.polylines(mask, [points[6:18]], False, 255, round(width * 1.5), cv2.LINE_AA, 4)
    groove = mask.astype(np.float32) * shape.face / 255
    under = float((grey * groove).sum() / groove.sum())
    strength = rng.uniform(85, 125) * (1 if under < 150 and rng.random() < 0.75 else -1)
    shift = max(1, round(width * 0.8))
    grey += strength * groove
    grey -= 0.45 * strength * np.roll(groove, (shift, shift), (0, 1)) * (1 - groove)


_STAINS = ((0.62, 0.45, 0.28), (0.50, 0.36, 0.30), (0.36, 0.36, 0.38), (0.60, 0.68, 0.98))  # oil, rust, soot, heat


def _stain(shape: _Geometry, rng: np.random.Generator) -> tuple[F32, tuple[float, ...]]:
    """A ragged film with a darker edge: its opacity, and what it takes from red, green and blue."""
    x, y = _spot(rng, -0.02)
    size = rng.uniform(0.3, 0.5)
    coarse = rng.standard_normal((12, 12)).astype(np.float32)
    ragged = cv2.resize(coarse, shape.x.shape[::-1], interpolation=cv2.INTER_CUBIC)
    inside = 5 - np.hypot(shape.x - np.float32(x), shape.y - np.float32(y)) * np.float32(5 / size) + 1.25 * ragged
    film = np.clip(inside, 0, 1) * (1 + 0.35 * np.exp(-np.square(inside - 1))) / 1.35
    tone = _STAINS[rng.integers(len(_STAINS))]
    return rng.uniform(0.75, 1.0) * film * shape.face, tuple(1 - share for share in tone)


def _turned(layers: U8, shape: _Geometry, light: Light, turn: float, radius: float, side: int) -> Patch:
    """The drawn part, turned, scaled to `radius` pixels, and its shadow away from the lamp."""
    half = 2 * math.ceil((radius + _MARGIN * side) / 2)  # even, so that chroma planes line up
    shrink, middle = radius / shape.scale, layers.shape[0] / 2 - 0.5
    cos, sin = shrink * math.cos(turn), shrink * math.sin(turn)
    out = half - 0.5
    move = np.array([[cos, -sin, out - cos * middle + sin * middle], [sin, cos, out - sin * middle - cos * middle]])
    turned = cv2.warpAffine(layers, move, (2 * half, 2 * half), flags=cv2.INTER_LINEAR)
    away = 0.018 * side
    offset = (
        out - shrink * middle - away * math.cos(light.azimuth),
        out - shrink * middle - away * math.sin(light.azimuth),
    )
    drop = np.array([[shrink, 0, offset[0]], [0, shrink, offset[1]]])
    shadow = cv2.warpAffine(shape.shadow, drop, (2 * half, 2 * half), flags=cv2.INTER_LINEAR)
    cover = to_u8(turned[..., 3])
    lit = cv2.convertScaleAbs(shadow, alpha=-0.6, beta=255)
    through = to_u8(cv2.multiply(lit, 255 - cover, scale=1 / 255))
    return Patch(to_u8(np.ascontiguousarray(turned[..., :3])), through)


def smooth_noise(rng: np.random.Generator, width: int, height: int, sigma: float) -> F32:
    """Noise of deviation 1 with structures of about `sigma` pixels, whose left and right ends fit together."""
    step = max(1, int(sigma / 2))  # fine enough: coarse structures are drawn small and enlarged
    small = rng.standard_normal((-(-height // step), -(-width // step)), dtype=np.float32)
    pad = small.shape[1] if sigma / step * 4 > small.shape[1] else math.ceil(sigma / step * 4)
    wrapped = np.hstack([small[:, -pad:], small, small[:, :pad]])
    small = np.asarray(cv2.GaussianBlur(wrapped, (0, 0), max(0.3, sigma / step)), np.float32)
    large = np.asarray(cv2.resize(small[:, pad:-pad], (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    return np.asarray(large / large.std(), np.float32)


def generator(*seed: int) -> np.random.Generator:
    """Random numbers that depend on these numbers only."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


def to_u8(values: npt.NDArray[Any]) -> U8:
    """Rounded and clipped to uint8; an array that is uint8 already passes through."""
    if values.dtype == np.uint8:
        return values
    clipped: F32 = np.clip(np.rint(values), 0, 255)
    return clipped.astype(np.uint8)
