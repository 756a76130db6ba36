"""Learning what a camera's pictures are like while its line runs as it should: good parts, bad ones and none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from inspectd.capture.probe import check_rois, watch
from inspectd.capture.quality import Limits, Quality, measure
from inspectd.capture.source import Source, make_source
from inspectd.config import CameraConfig
from inspectd.errors import CaptureError, InspectdError
from inspectd.frame import Frame

SETTLE_S: Final = 1.0
"""A live camera's automatic exposure may need so long; what it shows meanwhile is not learnt."""
FEW: Final = 50
IGNORED: Final = 0.005
"""Share of the pictures at each end that is taken for odd: one in 200."""

# How far a picture may be from what was seen. A quarter of luma is about 40 % of light by a camera's gamma: a season or
# an ageing lamp are less, a lamp that fails is more. Focus that is worth a call takes more than a third of sharpness.
DARKER: Final = 0.8
BRIGHTER: Final = 1.25
HEADROOM: Final = 0.5  # but at most this share of what is left up to white
MORE_CLIPPED: Final = 0.05  # of all samples, on top of half as much again as was seen
LESS_CONTRAST: Final = 0.6
LESS_SHARP: Final = 0.65

BLACK_LEVEL: Final = 0.03
WHITE_LEVEL: Final = 0.97
NO_CONTRAST: Final = 0.005
STILL: Final = 0.001


@dataclass
class Lesson:
    """What was seen of each ROI, by its name, in the order of the frames."""

    seen: dict[str, list[Quality]] = field(default_factory=dict)
    broke_off: str | None = None  # why there are fewer frames than were asked for

    @property
    def frames(self) -> int:
        return min((len(seen) for seen in self.seen.values()), default=0)


def observe(
    config: CameraConfig,
    frames: int,
    make_source: Callable[[CameraConfig], Source] = make_source,
    tell: Callable[[int], None] = lambda done: None,
) -> Lesson:
    """Open the camera, measure that many whole frames of it, and close it. `tell` hears how many there are so far.

    Raises:
        CaptureError: the camera cannot be opened, or is lost before the last frame; a recording may end early.
        ConfigError: a ROI lies outside the frame, or its secrets cannot be read.
    """
    pupil = _Pupil(config, frames, tell)
    try:
        watch(config, pupil.take, make_source)
    except CaptureError as err:
        if err.reason != "finished" or not pupil.lesson.frames:
            raise
        pupil.lesson.broke_off = "the recording ended"
    return pupil.lesson


class _Pupil:
    def __init__(self, config: CameraConfig, frames: int, tell: Callable[[int], None]) -> None:
        self.lesson = Lesson({roi.name: [] for roi in config.rois})
        self._config = config
        self._frames = frames
        self._tell = tell
        self._from: float | None = None  # arrival of the first frame that is learnt from

    def take(self, frame: Frame) -> bool:
        """Whether that was the last frame that is wanted."""
        check_rois(self._config, frame)
        if self._from is None:
            self._from = frame.arrival + (SETTLE_S if self._config.live else 0.0)
        if frame.arrival < self._from:
            return False
        for roi in self._config.rois:
            self.lesson.seen[roi.name].append(measure(frame, roi.area))
        self._tell(self.lesson.frames)
        return self.lesson.frames >= self._frames


def learn(seen: Sequence[Quality]) -> Limits:
    """Limits with room around what was seen, but for the oddest half per cent at each end.

    Raises:
        InspectdError: there was nothing to be seen, so that nothing can be told from it; one line.
    """
    level = _ends([one.level for one in seen])
    contrast = _ends([one.contrast for one in seen])
    if level[1] < BLACK_LEVEL:
        raise InspectdError(f"it is black (level {level[1]:.3f} at most): lens cap, lamp, exposure?")
    if level[0] > WHITE_LEVEL:
        raise InspectdError(f"it is white (level {level[0]:.3f} at least): lamp, exposure?")
    if contrast[1] < NO_CONTRAST:
        raise InspectdError(f"there is nothing to be seen (contrast {contrast[1]:.3f} at most): is the lens covered?")
    return Limits(
        level_min=_rounded(DARKER * level[0]),
        level_max=_rounded(min(BRIGHTER * level[1], level[1] + HEADROOM * (1 - level[1]))),
        dark_max=_most_clipped([one.dark for one in seen]),
        bright_max=_most_clipped([one.bright for one in seen]),
        contrast_min=_rounded(LESS_CONTRAST * contrast[0]),
        sharpness_min=_rounded(LESS_SHARP * _ends([one.sharpness for one in seen])[0]),
    )


def doubts(lesson: Lesson) -> list[str]:
    """What is suspicious about what was seen, a line each: the limits hold, but may not be worth much."""
    found = []
    if lesson.broke_off:
        found.append(f"{lesson.broke_off} after {lesson.frames} frames")
    if lesson.frames < FEW:
        found.append(f"only {lesson.frames} frames: let the line run, and take more (--frames)")
    for name, seen in lesson.seen.items():
        low, high = _ends([one.level for one in seen])
        if len(set(seen)) == 1 < len(seen):
            found.append(f"ROI {name!r}: every picture was the same: is the camera frozen?")
        elif high - low < STILL:
            found.append(f"ROI {name!r}: nothing moved: learn while parts come and go, or they count as faults")
        if max(one.bright for one in seen) > 0.25 or max(one.dark for one in seen) > 0.5:
            found.append(f"ROI {name!r}: much of it is clipped, see to the exposure: a fault of the light shows late")
    return found


def widened(old: Limits, new: Limits) -> Limits:
    """Limits that allow whatever either allows."""
    return Limits(
        level_min=min(old.level_min, new.level_min),
        level_max=max(old.level_max, new.level_max),
        dark_max=max(old.dark_max, new.dark_max),
        bright_max=max(old.bright_max, new.bright_max),
        contrast_min=min(old.contrast_min, new.contrast_min),
        sharpness_min=min(old.sharpness_min, new.sharpness_min),
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest, without the oddest `IGNORED` at each end."""
    ordered = sorted(values)
    odd = int(IGNORED * len(ordered))
    return ordered[odd], ordered[-1 - odd]


def _most_clipped(shares: Sequence[float]) -> float:
    return _rounded(min(1.0, 1.5 * _ends(shares)[1] + MORE_CLIPPED))


def _rounded(value: float) -> float:
    return round(value, 4)
