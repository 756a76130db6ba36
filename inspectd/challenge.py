"""The golden-part challenge: pictures whose verdict is known, judged by the very engine that judges the line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

import cv2
import numpy as np
from pydantic import BaseModel

from inspectd.config import GoldenPicture, RoiConfig, Settings, read_plain_file
from inspectd.engine.batcher import Crop
from inspectd.errors import ConfigError, Stopped
from inspectd.frame import U8, Box, Frame
from inspectd.lineup import CHALLENGER, LineUp
from inspectd.model.preprocess import Preprocessor
from inspectd.observe.ledger import Ticket
from inspectd.verdict.decide import Outcome

MAX_PICTURE_BYTES = 256_000_000
"""Of a golden picture's file: 64 megapixels in 32 bits, not compressed."""
ANSWER_S = 10.0
"""An engine that does not judge one picture in so long has failed the challenge."""


class PictureResult(BaseModel):
    """One golden picture: `got` is null when the engine gave no answer."""

    file: str
    camera: str
    roi: str
    expect: str
    got: str | None
    reason: str | None = None
    label: str | None = None
    score: float | None = None
    ok: bool


class ChallengeResult(BaseModel):
    passed: bool
    pictures: list[PictureResult]


def check_pictures(settings: Settings, step: Callable[[], None]) -> None:
    """Read every golden picture of these settings; `step` is called after each, and may raise.

    Raises:
        ConfigError: one cannot be read, or is neither a whole frame nor the region.
    """
    for golden in settings.challenge.pictures:
        roi = _region(settings, golden)
        _crop(read_golden(golden.file), roi, golden.file)
        step()


def run_challenge(lineup: LineUp, step: Callable[[], None]) -> ChallengeResult:
    """Judge every golden picture of the line-up's settings; passed when there is none. `step` as above.

    The first that gets no answer is the last: an engine that hangs would keep each of the others waiting as long.

    Raises:
        ConfigError: a picture cannot be read any more.
    """
    results: list[PictureResult] = []
    for golden in lineup.settings.challenge.pictures:
        results.append(_judge(lineup, golden))
        step()
        if results[-1].got is None:
            break
    return ChallengeResult(passed=all(result.ok for result in results), pictures=results)


def failures(result: ChallengeResult) -> list[str]:
    """One line per golden picture that was judged wrongly."""
    return [
        f"{Path(picture.file).name} ({picture.camera}/{picture.roi}): expected {picture.expect}, "
        f"got {picture.got or 'no answer'}{_because(picture)}"
        for picture in result.pictures
        if not picture.ok
    ]


def _because(picture: PictureResult) -> str:
    what = [text for text in (picture.reason, picture.label) if text]
    return f" ({', '.join(what)})" if what else ""


def _judge(lineup: LineUp, golden: GoldenPicture) -> PictureResult:
    roi = _region(lineup.settings, golden)
    picture = read_golden(golden.file)
    area = _crop(picture, roi, golden.file)
    answer: SimpleQueue[Outcome] = SimpleQueue()
    outcome: Outcome | None
    try:
        _submit(lineup, roi, picture, area, answer)
        outcome = answer.get(timeout=ANSWER_S)
    except (Stopped, Empty, TimeoutError):
        outcome = None
    decision = None if outcome is None else outcome.decision
    got = None if decision is None else decision.verdict
    label = None if decision is None else decision.label
    return PictureResult(
        file=str(golden.file),
        camera=golden.camera,
        roi=golden.roi,
        expect=golden.expect,
        got=got,
        reason=None if decision is None else decision.reason,
        label=label,
        score=None if decision is None else decision.score,
        # A broken engine is never what was expected, also where no_result was.
        ok=got == golden.expect
        and golden.label in (None, label)
        and decision is not None
        and decision.reason in (None, "uncertain"),
    )


def _submit(lineup: LineUp, roi: RoiConfig, picture: U8, area: Box, answer: SimpleQueue[Outcome]) -> None:
    lane = lineup.lane(roi)
    height, width = picture.shape[:2]
    now = time.monotonic()
    frame = Frame(
        format="bgr24",
        width=width,
        height=height,
        planes=(picture,),
        matrix="bt601",
        full_range=True,
        arrival=now,
        captured_at=time.time(),
        clock="arrival",
    )
    slot = lane.batcher.acquire(CHALLENGER, ANSWER_S)
    try:
        Preprocessor(lane.bundle.manifest.preprocess)(frame, area, slot.pixels)
    except BaseException:
        lane.batcher.give_back(slot)
        raise
    lane.batcher.put(
        Crop(
            ticket=Ticket(CHALLENGER, roi.name),
            slot=slot,
            area=area,
            index=0,
            pts=None,
            clock="arrival",
            captured_at=frame.captured_at,
            arrival=now,
            expires_at=now + ANSWER_S,
            decode_s=0.0,
            asked_by=answer.put,
        )
    )


def read_golden(path: Path) -> U8:
    """A golden picture, uint8 BGR [H, W, 3], upright.

    Raises:
        ConfigError: it cannot be read.
    """
    raw = np.frombuffer(read_plain_file(path, MAX_PICTURE_BYTES, f"challenge: {path}"), np.uint8)
    try:
        picture = cv2.imdecode(raw, cv2.IMREAD_COLOR) if raw.size else None
    except cv2.error:
        picture = None
    if picture is None:
        raise ConfigError(f"challenge: {path}: is no picture that can be read")
    return np.asarray(picture, np.uint8)


def _region(settings: Settings, golden: GoldenPicture) -> RoiConfig:
    return next(
        roi
        for camera in settings.cameras
        for roi in camera.rois
        if (camera.name, roi.name) == (golden.camera, golden.roi)
    )


def _crop(picture: U8, roi: RoiConfig, path: Path) -> Box:
    """Where the region is in the picture: all of it, or the region's box in a whole frame."""
    height, width = picture.shape[:2]
    area = roi.area
    if (width, height) == (area.width, area.height):
        return Box(0, 0, width, height)
    if area.fits(width, height):
        return area
    raise ConfigError(
        f"challenge: {path}: is {width}x{height}, expected a whole frame, or the region alone "
        f"({area.width}x{area.height})"
    )
