"""The learnt limits of one camera in a JSON file, which `cameras[].quality` names.

Limits are of a camera's name, a ROI's name and its box: they say nothing about any other piece of the picture. The
ROIs of several recipes lie in one file beside each other. It is plain text, so that a limit can be set by hand.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inspectd.capture.quality import Limits
from inspectd.config import CameraConfig, RoiConfig, read_plain_file
from inspectd.errors import ConfigError

FORMAT: Final = "inspectd.quality/1"
HOW: Final = "`inspectd check -c FILE --learn` makes it"
MAX_BYTES: Final = 1_000_000
"""Thousands of ROIs."""


class Region(BaseModel):
    """One ROI: where it lies, and what its pictures may be like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    roi: str
    box: tuple[int, int, int, int]
    frames: Annotated[int, Field(ge=0, description="how many were looked at")]
    limits: Limits

    def of(self, roi: RoiConfig) -> bool:
        """Whether it was learnt for that very region."""
        return (self.roi, self.box) == (roi.name, roi.box)


class QualityFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["inspectd.quality/1"] = FORMAT
    camera: str
    regions: tuple[Region, ...]

    def find(self, roi: RoiConfig) -> Region | None:
        return next((region for region in self.regions if region.of(roi)), None)

    def with_region(self, new: Region) -> QualityFile:
        """The same with that region, in place of what was there for its name and box."""
        others = (region for region in self.regions if (region.roi, region.box) != (new.roi, new.box))
        return self.model_copy(update={"regions": (*others, new)})


def load_limits(camera: CameraConfig) -> Mapping[str, Limits] | None:
    """The limits of each ROI by its name, or None where the camera has no `quality`.

    Raises:
        ConfigError: the file cannot be used, or one of the ROIs is not in it.
    """
    if camera.quality is None:
        return None
    learnt = read_quality(camera.quality, camera.name)
    limits = {}
    for roi in camera.rois:
        region = learnt.find(roi)
        if region is None:
            boxes = [str(list(other.box)) for other in learnt.regions if other.roi == roi.name]
            instead = f", only for {' and '.join(boxes)}" if boxes else ""
            raise ConfigError(
                f"cameras[{camera.name}].quality: {camera.quality} has no limits for ROI {roi.name!r} {roi.area}"
                f"{instead}; `inspectd check -c FILE --learn` learns them"
            )
        limits[roi.name] = region.limits
    return limits


def read_quality(path: Path, camera: str) -> QualityFile:
    """The file of that camera.

    Raises:
        ConfigError: it is missing, cannot be read, is none, is of a newer format, or of another camera.
    """
    where = f"cameras[{camera}].quality: {path}"
    raw = read_plain_file(path, MAX_BYTES, where, missing=f"no such file; {HOW}")
    try:
        learnt = QualityFile.model_validate_json(raw)
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        what = f"is no file of learnt limits that this inspectd knows: {place and place + ': '}{first['msg']}"
        raise ConfigError(f"{where}: {what}") from None
    if learnt.camera != camera:
        raise ConfigError(f"{where}: was learnt by camera {learnt.camera!r}; each camera needs its own file")
    return learnt


def write_quality(path: Path, learnt: QualityFile) -> None:
    """Put it in place in one step: whoever reads sees the old file or the new one, also after a crash.

    Raises:
        ConfigError: it cannot be written; the old one is untouched.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with beside.open("w", encoding="utf-8") as file:
                file.write(learnt.model_dump_json(indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as err:
        raise ConfigError(f"cameras[{learnt.camera}].quality: {path}: cannot be written: {err.strerror}") from None
