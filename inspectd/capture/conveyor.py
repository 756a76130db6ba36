"""`conveyor:` a generated camera: flanges pass an inspection station, and what they are is known.

The belt slows down while a part is at the station and hurries in between, like an indexing conveyor.
Everything is a pure function of the source's options and the frame's index (`Line`), so that a reader of
the verdict stream can compare each verdict with the truth of its frame.

Frames are made as a decoder leaves them, in yuv420p planes (BT.709, limited range): belt and parts are
converted once, and a frame is a few passes over uint8 planes: belt, part, uneven light, noise.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from inspectd.capture.source import Source
from inspectd.config import CameraConfig, SourceSpec, parse_source
from inspectd.errors import CaptureError, Stopped
from inspectd.frame import U8, Box, Frame
from inspectd.model.synth import DEFECTS, DRIFT, RADIUS, SHADOW_REACH, Light, Patch, make_belt, make_patch

CYCLE_S = 2.0  # from one part at the station to the next
PITCH = 2.25  # between parts, in station sides: far enough apart to see the empty belt in between
SLOWING = 0.85  # the belt's speed at the station is 1 - this of its mean, in between 1 + this
JITTER = 0.03  # along the belt, in station sides
MARGIN = 0.01  # a part this near the edge of the station is neither in nor out

_Y_SCALE, _C_SCALE = 219 / 255, 224 / 255  # limited range, ITU-R BT.709
_KR, _KG, _KB = 0.2126, 0.7152, 0.0722
_NOISE_SPAN = (251, 241)  # prime, so that a pair of offsets comes back after 60,491 frames only
_NOISE_SIGMA = 3.5


@dataclass(frozen=True, slots=True)
class PartPlan:
    """What part `number` is and how it lies; lengths in pixels, along and across from its nominal place."""

    number: int
    kind: str
    radius: float
    along: int  # even, like all positions: chroma planes have half the resolution
    across: int


@dataclass(frozen=True, slots=True)
class Line:
    """The conveyor's options, and everything that follows from them without drawing."""

    width: int = 1280
    height: int = 720
    fps: float = 30.0
    seed: int = 0
    frames: int = 0  # 0: endless
    realtime: bool = True
    defects: float = 0.3

    @classmethod
    def from_spec(cls, spec: SourceSpec) -> Line:
        """The line that a `conveyor:` source asks for.

        Raises:
            ValueError: an option is no usable value; the message names it.
        """
        options = dict(spec.options)
        realtime = options.pop("realtime", "1") in ("1", "true", "yes")
        values: dict[str, float] = {}
        for name, text in options.items():
            try:
                values[name] = float(text)
            except ValueError:
                raise ValueError(f"conveyor: {name}={text}: expected a number") from None
            if name not in ("fps", "defects"):
                if not values[name].is_integer():
                    raise ValueError(f"conveyor: {name}={text}: expected a whole number")
                values[name] = int(values[name])
        line = cls(**values, realtime=realtime)  # type: ignore[arg-type]  # each was made what its field wants
        for name in ("width", "height"):
            if not 128 <= (size := getattr(line, name)) <= 8192 or size % 2:
                raise ValueError(f"conveyor: {name}={size}: expected an even number from 128 to 8192")
        if not 0 < line.fps <= 1000:
            raise ValueError(f"conveyor: fps={line.fps:g}: expected more than 0 and at most 1000")
        if line.defects > 1:
            raise ValueError(f"conveyor: defects={line.defects:g}: expected a share from 0 to 1")
        return line

    @property
    def roi(self) -> Box:
        return default_roi(self.width, self.height)

    @property
    def pitch(self) -> int:
        return 2 * round(PITCH * self.roi.width / 2)

    def travelled(self, index: int) -> int:
        """How far the belt has moved at that frame: pixels, even; part k is at the station after k pitches."""
        cycles = index / self.fps / CYCLE_S
        return 2 * round(self.pitch * (cycles - SLOWING * math.sin(math.tau * cycles) / math.tau) / 2)

    def part(self, number: int) -> PartPlan:
        rng = self.generator(number)
        side = self.roi.width
        kind = str(rng.choice(DEFECTS)) if rng.random() < self.defects else "good"
        return PartPlan(
            number,
            kind,
            radius=rng.uniform(*RADIUS) * side,
            along=2 * round(rng.uniform(-JITTER, JITTER) * side / 2),
            across=2 * round(rng.uniform(-DRIFT, DRIFT) * side / 2),
        )

    def parts_at(self, index: int) -> list[tuple[PartPlan, int]]:
        """The parts on the belt in that frame, each with its centre's x in pixels; belt runs to the right."""
        station = self.roi.x + self.roi.width // 2
        travelled, pitch = self.travelled(index), self.pitch
        first = math.ceil((travelled + station - self.width) / pitch) - 1
        last = math.floor((travelled + station) / pitch) + 1
        plans = [self.part(number) for number in range(first, last + 1)]
        return [(plan, station + travelled - plan.number * pitch + plan.along) for plan in plans]

    def truth(self, index: int) -> str | None:
        """What the station shows: the kind of the part wholly inside, "empty", or None while one is partly in."""
        side = self.roi.width
        station = self.roi.x + side // 2
        for plan, x in self.parts_at(index):
            away = abs(x - station)
            if away + plan.radius <= side * (0.5 - MARGIN):
                return plan.kind
            if away - plan.radius < side * (0.5 + SHADOW_REACH + MARGIN):
                return None
        return "empty"

    def generator(self, *key: int) -> np.random.Generator:
        """Random numbers that belong to this line's seed and to `key`, negative numbers allowed."""
        words = [self.seed, *(2 * abs(word) + (word < 0) for word in key)]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def default_roi(width: int, height: int) -> Box:
    """The station: a square in the middle, 8/9 of the frame's height; even, so that it fits chroma planes."""
    side = 2 * (min(width, height * 8 // 9) // 2)
    return Box(2 * ((width - side) // 4), 2 * ((height - side) // 4), side, side)


def truth_of(spec: SourceSpec, index: int) -> str | None:
    """`Line.truth` for a parsed `conveyor:` source, for readers of the verdict stream."""
    return Line.from_spec(spec).truth(index)


class ConveyorSource(Source):
    """The camera above the line. It keeps its pace on the monotonic clock, and makes every frame ahead of time.

    A consumer that is late makes the belt wait: the schedule moves by what is missing, so that no frame is
    left out and none come in a burst afterwards. `decode_s` is 0, because nothing was decoded.
    """

    def __init__(self, camera: CameraConfig) -> None:
        self._spec = parse_source(camera.source)
        self._interrupted = threading.Event()
        self._painter: Painter | None = None
        self.line: Line | None = None  # set by open

    def open(self) -> None:
        try:
            self.line = Line.from_spec(self._spec)
        except ValueError as err:
            raise CaptureError("settings", str(err)) from None
        self._painter = Painter(self.line)

    def truth(self, index: int) -> str | None:
        """What the station shows in that frame; see `Line.truth`."""
        return truth_of(self._spec, index)

    def frames(self) -> Iterator[Frame]:
        line, painter = self.line, self._painter
        if line is None or painter is None:
            raise CaptureError("internal", "conveyor: frames() before open()")
        period = 1 / line.fps
        due = time.monotonic()
        index = 0
        while not line.frames or index < line.frames:
            planes = painter.paint(index)
            if line.realtime:
                self._interrupted.wait(max(0.0, due - time.monotonic()))
            if self._interrupted.is_set():
                raise Stopped("conveyor: interrupted")
            arrival = time.monotonic()
            yield Frame(
                format="yuv420p",
                width=line.width,
                height=line.height,
                planes=planes,
                matrix="bt709",
                full_range=False,
                arrival=arrival,
                captured_at=time.time(),
                clock="arrival",
                pts=index / line.fps,
            )
            index += 1
            due += period
            if due < arrival:  # more than a period late
                due = arrival
        raise CaptureError("finished", f"conveyor: all {line.frames} frames were shown")

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        self._painter = None


Planes = tuple[U8, U8, U8]  # Y [H, W], U [H/2, W/2], V alike


@dataclass(slots=True)
class _PlanarPatch:
    """A `Patch` per plane: `plane * through / 255 + colour`."""

    colour: Planes
    through: tuple[U8, U8]  # full and half resolution


@dataclass(slots=True)
class Painter:
    """Draws the frames of a line. Brightness is kept without its offset of 16 until the noise brings it in."""

    line: Line
    _belt: Planes = field(init=False)  # one turn of the belt and one frame more, so that every view is whole
    _turn: int = field(init=False)
    _light: Light = field(init=False)
    _gain: tuple[U8, U8] = field(init=False)
    _chroma_offset: U8 = field(init=False)  # what the light takes from the neutral 128
    _noise: U8 = field(init=False)  # around 16
    _patches: dict[int, _PlanarPatch] = field(init=False, default_factory=dict)  # of the parts in view

    def __post_init__(self) -> None:
        line, side = self.line, self.line.roi.width
        rng = line.generator(0, 1)
        self._light = Light.draw(rng)
        self._turn = 2 * line.width
        belt = _with_rails(make_belt(line.seed + 100, self._turn, line.height, side), line.roi)
        luma, u, v = _planar(belt)
        half = line.width // 2
        self._belt = (_continued(luma, line.width), _continued(u, half), _continued(v, half))
        gain = self._light.field(line.width, line.height, side)
        small = cv2.resize(gain, (half, line.height // 2), interpolation=cv2.INTER_AREA)
        self._gain = (gain, np.asarray(small, dtype=np.uint8))
        self._chroma_offset = np.rint(128 - 128 * self._gain[1].astype(np.float32) / 255).astype(np.uint8)
        shape = (line.height + _NOISE_SPAN[1], line.width + _NOISE_SPAN[0])
        noise = 16 + _NOISE_SIGMA * rng.standard_normal(shape, dtype=np.float32)
        self._noise = np.clip(np.rint(noise), 0, 255).astype(np.uint8)

    def paint(self, index: int) -> Planes:
        """The planes of a frame, freshly allocated."""
        line = self.line
        luma, u, v = self._belt_at(line.travelled(index))
        for patch, left, top in self._patches_at(index):
            _lay(luma, patch.colour[0], patch.through[0], left, top)
            _lay(u, patch.colour[1], patch.through[1], left // 2, top // 2)
            _lay(v, patch.colour[2], patch.through[1], left // 2, top // 2)
        gain, small = self._gain
        cv2.multiply(luma, gain, dst=luma, scale=1 / 255)
        x, y = index * 74 % _NOISE_SPAN[0], index * 46 % _NOISE_SPAN[1]  # never twice the same in a row
        cv2.add(luma, self._noise[y : y + line.height, x : x + line.width], dst=luma)
        for plane in (u, v):
            cv2.multiply(plane, small, dst=plane, scale=1 / 255)
            cv2.add(plane, self._chroma_offset, dst=plane)
        return luma, u, v

    def _belt_at(self, travelled: int) -> Planes:
        start = -travelled % self._turn
        luma, u, v = self._belt
        width, half = self.line.width, self.line.width // 2
        return (
            luma[:, start : start + width].copy(),
            u[:, start // 2 : start // 2 + half].copy(),
            v[:, start // 2 : start // 2 + half].copy(),
        )

    def _patches_at(self, index: int) -> Iterator[tuple[_PlanarPatch, int, int]]:
        """Parts in view, with the left and top edge of their patches. A part is drawn when it first comes."""
        line = self.line
        drawn: dict[int, _PlanarPatch] = {}
        for plan, x in line.parts_at(index):
            reach = plan.radius + 0.08 * line.roi.width
            if -reach < x < line.width + reach:
                patch = self._patches.get(plan.number)
                if patch is None:
                    rng = line.generator(plan.number, 2)
                    patch = _planar_patch(make_patch(plan.kind, rng, self._light, line.roi.width, plan.radius))
                drawn[plan.number] = patch
                size = patch.through[0].shape[0]
                yield patch, x - size // 2, line.roi.y + line.roi.height // 2 + plan.across - size // 2
        self._patches = drawn


def _planar(rgb: U8) -> Planes:
    """RGB -> Y without its offset (0..219), U and V around 128 at half resolution: BT.709, limited range."""
    colour = rgb.astype(np.float32)
    luma = colour @ np.array([_KR, _KG, _KB], np.float32)
    small = cv2.resize(colour, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    grey = small @ np.array([_KR, _KG, _KB], np.float32)
    u = 128 + _C_SCALE * (small[..., 2] - grey) / (2 * (1 - _KB))
    v = 128 + _C_SCALE * (small[..., 0] - grey) / (2 * (1 - _KR))
    return _round(luma * _Y_SCALE), _round(u), _round(v)


def _planar_patch(patch: Patch) -> _PlanarPatch:
    luma, u, v = _planar(patch.colour)  # weighted by coverage, and U and V around 128 all the same
    small = _round(cv2.resize(patch.through.astype(np.float32), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    missing = np.rint(128 * small.astype(np.float32) / 255).astype(np.uint8)  # the belt brings this much of the 128
    return _PlanarPatch((luma, cv2.subtract(u, missing), cv2.subtract(v, missing)), (patch.through, small))  # type: ignore[arg-type]  # uint8 in, uint8 out


def _lay(plane: U8, colour: U8, through: U8, left: int, top: int) -> None:
    size = colour.shape[0]
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + size, plane.shape[1]), min(top + size, plane.shape[0])
    if x0 < x1 and y0 < y1:
        inside = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        below = plane[y0:y1, x0:x1]
        cv2.multiply(below, through[inside], dst=below, scale=1 / 255)
        cv2.add(below, colour[inside], dst=below)


def _with_rails(belt: U8, roi: Box) -> U8:
    """The belt between two guide rails, which lie outside the station."""
    framed = belt.copy()
    thick = roi.y * 3 // 4
    if thick > 0:
        shape = (90 + 70 * np.sin(np.linspace(0.3, math.pi, thick))).astype(np.uint8)[:, None, None]
        framed[:thick] = shape
        framed[-thick:] = shape
    return framed


def _continued(plane: U8, more: int) -> U8:
    return np.ascontiguousarray(np.hstack([plane, plane[:, :more]]))


def _round(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> U8:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
