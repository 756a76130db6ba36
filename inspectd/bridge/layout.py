"""Which camera and region stands where, and which number a label has: known before anything is heard.

A PLC program has addresses in it. They follow from the layout alone, which is a file, or is derived from the
daemon's configuration: cameras and regions in their order, labels in the order of the bundles' classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from inspectd.config import CameraConfig, Name, RoiConfig, Settings
from inspectd.config.toml import read_toml
from inspectd.errors import BundleError, ConfigError

MAX_CAMERAS = 64
MAX_ROIS = 49
"""As many as have addresses: a camera has a thousand registers, a region twenty of them."""

Source = Literal["verdict", "part"]
"""What drives a region's outputs: the verdict of each frame or trigger, or that of each part in free run."""

Label = Annotated[str, Field(min_length=1, max_length=64)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True)


class RoiLayout(_Table):
    name: Name
    source: Source = Field("verdict", alias="from")
    labels: tuple[Label, ...] = Field((), max_length=1000)

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        _refuse_repeated(labels, "label")
        return labels


class CameraLayout(_Table):
    name: Name
    rois: tuple[RoiLayout, ...] = Field(min_length=1, max_length=MAX_ROIS)

    @field_validator("rois")
    @classmethod
    def _distinct(cls, rois: tuple[RoiLayout, ...]) -> tuple[RoiLayout, ...]:
        _refuse_repeated([roi.name for roi in rois], "ROI")
        return rois


class Layout(_Table):
    """Cameras and their regions, in the order of their addresses."""

    cameras: tuple[CameraLayout, ...] = Field(min_length=1, max_length=MAX_CAMERAS)

    @field_validator("cameras")
    @classmethod
    def _distinct(cls, cameras: tuple[CameraLayout, ...]) -> tuple[CameraLayout, ...]:
        _refuse_repeated([camera.name for camera in cameras], "camera")
        return cameras

    @property
    def fingerprint(self) -> int:
        """16 bits that are another number for another layout (but for one in 65535), never 0."""
        digest = hashlib.sha256(self.model_dump_json().encode()).digest()
        return int.from_bytes(digest[:8], "big") % 0xFFFF + 1

    def driven_by(self, source: Source | None) -> Layout:
        """The same places, every region driven by `source`; None leaves them as they are."""
        if source is None:
            return self
        cameras = tuple(
            camera.model_copy(update={"rois": tuple(roi.model_copy(update={"source": source}) for roi in camera.rois)})
            for camera in self.cameras
        )
        return self.model_copy(update={"cameras": cameras})

    def to_toml(self) -> str:
        """As `load_layout` reads it."""
        lines = ["# Where cameras and regions stand in the bridges. Append; what is inserted moves what follows."]
        for camera in self.cameras:
            lines += ["", "[[cameras]]", f"name = {json.dumps(camera.name)}"]
            for roi in camera.rois:
                labels = ", ".join(json.dumps(label, ensure_ascii=False) for label in roi.labels)
                lines += ["", "[[cameras.rois]]", f"name = {json.dumps(roi.name)}"]
                lines += [f'from = "{roi.source}"', f"labels = [{labels}]"]
        return "\n".join(lines) + "\n"


def load_layout(path: Path) -> Layout:
    """Read and validate a layout file.

    Raises:
        ConfigError: one line that names the file and the key.
    """
    data = read_toml(path, "`inspectd bridge layout -c FILE` writes one")
    try:
        return Layout.model_validate(data)
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        message = {"extra_forbidden": "unknown key", "missing": "missing, but required"}.get(
            first["type"], first["msg"].removeprefix("Value error, ")
        )
        raise ConfigError(f"{path}: {where or 'layout'}: {message}") from None


def layout_of(settings: Settings) -> Layout:
    """From the daemon's configuration: its cameras and regions in their order, those of recipes behind them.

    Raises:
        BundleError: a bundle's classes cannot be read.
        ConfigError: more cameras or regions than have addresses.
    """
    variants = [settings.with_recipe(name) for name in (None, *settings.recipes)]
    cameras = []
    for camera in settings.cameras:
        rois: dict[str, tuple[Source, dict[str, None]]] = {}
        for variant in variants:
            for roi in _rois_of(variant, camera.name):
                labels = rois.setdefault(roi.name, ("part" if roi.part else "verdict", {}))[1]
                labels.update(dict.fromkeys(_labels(roi.model or variant.model.bundle)))
        cameras.append(
            {
                "name": camera.name,
                "rois": [
                    {"name": name, "from": source, "labels": list(labels)} for name, (source, labels) in rois.items()
                ],
            }
        )
    try:
        return Layout.model_validate({"cameras": cameras})
    except ValidationError as err:
        raise ConfigError(f"the configuration does not fit a bridge: {err.errors()[0]['msg']}") from None


def _rois_of(settings: Settings, camera: str) -> Iterable[RoiConfig]:
    return next(each.rois for each in _cameras(settings) if each.name == camera)


def _cameras(settings: Settings) -> tuple[CameraConfig, ...]:
    return settings.cameras


def _labels(bundle: Path) -> list[str]:
    # Not by inspectd.model.bundle: that needs OpenCV, and a bridge has no picture to handle.
    path = bundle / "bundle.json"
    try:
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
        return [str(each["name"]) for each in manifest["classes"]]
    except OSError as err:
        raise BundleError(f"{path}: cannot be read: {err.strerror}; or name the labels by --layout") from None
    except (ValueError, LookupError, TypeError):
        raise BundleError(f"{path}: holds no classes; is it a bundle's?") from None


def _refuse_repeated(names: Iterable[str], what: str) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} is there twice")
        seen.add(name)
