"""A source on its own, without its camera: configure it, play it, see how it ends."""

from __future__ import annotations

from pathlib import Path

from inspectd.capture.file import FileSource
from inspectd.capture.source import Source
from inspectd.config import CameraConfig
from inspectd.errors import CaptureError
from inspectd.frame import Frame


def camera(source: str, **settings) -> CameraConfig:
    """A camera's configuration with one ROI that nobody looks at."""
    return CameraConfig(name="cam", source=source, rois=[{"name": "part", "box": (0, 0, 64, 64)}], **settings)


def play(source: Source, limit: int = 10_000) -> tuple[list[Frame], CaptureError | None]:
    """Frames until the limit or the error that ended them; closes the source."""
    frames: list[Frame] = []
    try:
        source.open()
        for frame in source.frames():
            frames.append(frame)
            if len(frames) == limit:
                return frames, None
    except CaptureError as err:
        return frames, err
    finally:
        source.close()
    return frames, None


def play_file(path: Path, query: str = "", limit: int = 10_000) -> tuple[list[Frame], CaptureError | None]:
    return play(FileSource(camera(f"file:{path}{query}")), limit)
