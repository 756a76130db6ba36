"""The generated conveyor without its pictures: options, where each part is, and what the station shows.

The belt slows down while a part is at the station and hurries in between, like an indexing conveyor.
Everything is a pure function of the source's options and the frame's index, so that a reader of the
verdict stream can compare each verdict with the truth of its frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from inspectd.frame import Box
from inspectd.model.flange import DEFECTS, RADIUS, SHADOW_REACH, generator
from inspectd.model.synth import DRIFT
from inspectd.source_spec import SourceSpec

CYCLE_S = 2.0  # from one part at the station to the next
PITCH = 2.4  # between parts, in station sides: far enough apart to see the empty belt in between
SLOWING = 0.96  # the belt's speed at the station is 1 - this of its mean, in between 1 + this
JITTER = 0.02  # along the belt, in station sides
MARGIN = 0.01  # a part this near the edge of the station is neither in nor out


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
        return generator(*words)


def default_roi(width: int, height: int) -> Box:
    """The station: a square in the middle, 8/9 of the frame's height; even, so that it fits chroma planes."""
    side = 2 * (min(width, height * 8 // 9) // 2)
    return Box(2 * ((width - side) // 4), 2 * ((height - side) // 4), side, side)


def truth_of(spec: SourceSpec, index: int) -> str | None:
    """`Line.truth` for a parsed `conveyor:` source, for readers of the verdict stream."""
    return Line.from_spec(spec).truth(index)
