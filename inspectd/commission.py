"""Commissioning: what an engineer runs before the daemon, with the cameras and the model in front of him."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from inspectd.capture.learning import doubts, learn, observe, widened
from inspectd.capture.probe import check_rois, meet, probe
from inspectd.capture.quality_file import QualityFile, Region, read_quality, write_quality
from inspectd.config import CameraConfig, Settings
from inspectd.engine.base import Slot
from inspectd.engine.select import make_engine
from inspectd.errors import CaptureError, ConfigError, EngineError, InspectdError, UsageError
from inspectd.frame import U8, Box, Frame
from inspectd.model.bundle import Bundle
from inspectd.model.preprocess import Preprocessor, PreprocessSpec

COLOURS = ((255, 180, 0), (0, 200, 255), (120, 255, 80), (255, 80, 200))  # RGB, one ROI after the other


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a report; `problem` is None where all is well, `exit_code` what it means for the shell."""

    subject: str
    text: str
    problem: str | None = None
    exit_code: int = 0
    warnings: tuple[str, ...] = ()


def probe_models(settings: Settings, bundles: dict[Path, Bundle]) -> Iterator[Finding]:
    """Load each bundle into the engine that would run it, and let it judge one grey picture."""
    for path, bundle in bundles.items():
        try:
            engine = make_engine(bundle, settings.engine)
            pixels = engine.allocate(1)
            pixels[:] = 128
            engine.warm_up()
            engine.submit([Slot(0, pixels[0])], lambda slots: None)
            scores = engine.collect()
            engine.close()
        except EngineError as err:
            yield Finding(f"model {path}", "", str(err), 1)
            continue
        names = [f"{c.name} ({c.role})" for c in bundle.manifest.classes]
        whole = scores.shape == (1, *bundle.manifest.output_shape) and np.isfinite(scores).all()
        problem = None if whole else "its scores are no numbers"
        info = engine.info
        text = f"{bundle.short_hash} on {info.device} with {info.name} {info.precision}: {info.why}; {', '.join(names)}"
        yield Finding(f"model {path}", text, problem, 1 if problem else 0)


def probe_cameras(settings: Settings) -> Iterator[Finding]:
    """Open each camera, take one frame, and see that every ROI lies inside it."""
    for camera in settings.cameras:
        subject = f"camera {camera.name}"
        try:
            frame, identity = meet(camera)
            check_rois(camera, frame)
        except CaptureError as err:
            yield Finding(subject, "", f"{err.reason}: {err}", 1)
        except ConfigError as err:
            yield Finding(subject, "", str(err).removeprefix(f"{subject}: "), 2)
        else:
            known = "" if identity is None else f'; identity = "{identity}"'
            yield Finding(subject, describe(frame, camera) + known)


def describe(frame: Frame, camera: CameraConfig) -> str:
    """A frame in one line."""
    levels = "full range" if frame.full_range else "limited range"
    colour = "" if frame.format in ("bgr24", "rgb24") else f" {frame.matrix} {levels}"
    rois = ", ".join(f"{roi.name} {roi.area}" for roi in camera.rois)
    return (
        f"{frame.width}x{frame.height} {frame.format}{colour}, clock {frame.clock}, "
        f"decode {frame.decode_s * 1000:.1f} ms; {rois}"
    )


def draw_snapshot(frame: Frame, camera: CameraConfig) -> U8:
    """The whole frame as RGB [H, W, 3] with its ROIs drawn, through the daemon's own colour conversion."""
    picture = np.empty((frame.height, frame.width, 3), np.uint8)
    spec = PreprocessSpec.model_construct(width=frame.width, height=frame.height)
    Preprocessor(spec)(frame, Box(0, 0, frame.width, frame.height), picture)
    thickness = max(2, frame.height // 360)
    for number, roi in enumerate(camera.rois):
        colour = COLOURS[number % len(COLOURS)]
        box = roi.area
        cv2.rectangle(picture, (box.x, box.y), (box.x + box.width - 1, box.y + box.height - 1), colour, thickness)
        label = f"{roi.name} {box}" + ("" if box.fits(frame.width, frame.height) else " OUTSIDE")
        scale = max(0.5, frame.height / 1080)
        (width, height), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, 1 + thickness // 2)
        at_x = int(np.clip(box.x, 0, max(0, frame.width - width)))
        at_y = int(np.clip(box.y - thickness - 4, height + 2, frame.height - 4))
        cv2.rectangle(picture, (at_x, at_y - height - 2), (at_x + width, at_y + 4), (0, 0, 0), cv2.FILLED)
        cv2.putText(picture, label, (at_x, at_y), cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1 + thickness // 2)
    return picture


def write_snapshots(settings: Settings, directory: Path) -> Iterator[Finding]:
    """One PNG per camera, named after it. A camera that is away does not stop the others.

    Raises:
        ConfigError: the directory cannot be made or written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"{directory}: cannot be made: {err.strerror}") from None
    for camera in settings.cameras:
        subject = f"camera {camera.name}"
        try:
            frame = probe(camera)
        except CaptureError as err:
            yield Finding(subject, "", f"{err.reason}: {err}", 1)
            continue
        path = directory / f"{camera.name}.png"
        encoded = cv2.imencode(".png", cv2.cvtColor(draw_snapshot(frame, camera), cv2.COLOR_RGB2BGR))[1]
        try:
            path.write_bytes(encoded.tobytes())
        except OSError as err:
            raise ConfigError(f"{path}: cannot be written: {err.strerror}") from None
        try:
            check_rois(camera, frame)
        except ConfigError as err:
            yield Finding(subject, str(path), str(err).removeprefix(f"{subject}: "), 2)
        else:
            yield Finding(subject, f"{path}: {describe(frame, camera)}")


def learn_cameras(
    settings: Settings,
    frames: int,
    tell: Callable[[str, int], None] = lambda camera, done: None,
    *,
    force: bool = False,
    widen: bool = False,
) -> Iterator[Finding]:
    """Learn the limits of every camera that names a `quality` file, and write them into it, beside those of other ROIs.

    Limits that are there already are kept, unless they are to be replaced (`force`) or to make room for what is seen
    now (`widen`).

    Raises:
        UsageError: no camera names a file.
    """
    if all(camera.quality is None for camera in settings.cameras):
        raise UsageError('no camera says where its limits go: set cameras[].quality, for example "line1.quality.json"')
    for camera in settings.cameras:
        subject = f"camera {camera.name}"
        if camera.quality is None:
            yield Finding(subject, "has no key quality, nothing is learnt")
            continue
        try:
            yield _learn_camera(camera, camera.quality, frames, partial(tell, camera.name), force=force, widen=widen)
        except CaptureError as err:
            yield Finding(subject, "", f"{err.reason}: {err}", 1)
        except InspectdError as err:
            yield Finding(subject, "", str(err).removeprefix(f"{subject}: "), err.exit_code)


def _learn_camera(
    camera: CameraConfig, path: Path, frames: int, tell: Callable[[int], None], *, force: bool, widen: bool
) -> Finding:
    learnt = read_quality(path, camera.name) if path.exists() else QualityFile(camera=camera.name, regions=())
    there = {roi.name: region for roi in camera.rois if (region := learnt.find(roi)) is not None}
    if there and not (force or widen):
        names = ", ".join(there)
        raise UsageError(f"{path} has limits for {names}: --force learns them anew, --widen adds what is seen now")
    lesson = observe(camera, frames, tell=tell)
    lines = []
    for roi in camera.rois:
        seen = lesson.seen[roi.name]
        try:
            limits = learn(seen)
        except InspectdError as err:
            raise InspectdError(f"ROI {roi.name!r}: {err} Nothing was written.") from None
        looked_at = len(seen)
        if widen and roi.name in there:
            limits = widened(there[roi.name].limits, limits)
            looked_at += there[roi.name].frames
        learnt = learnt.with_region(Region(roi=roi.name, box=roi.box, frames=looked_at, limits=limits))
        levels = [one.level for one in seen]
        lines.append(
            f"{roi.name} level {limits.level_min:.2f} to {limits.level_max:.2f} (seen {min(levels):.2f} to "
            f"{max(levels):.2f}), black up to {limits.dark_max:.0%}, white up to {limits.bright_max:.0%}, "
            f"contrast from {limits.contrast_min:.3f}, sharpness from {limits.sharpness_min:.3f}"
        )
    write_quality(path, learnt)
    text = f"{path}: {lesson.frames} frames; {'; '.join(lines)}"
    return Finding(f"camera {camera.name}", text, warnings=tuple(doubts(lesson)))
