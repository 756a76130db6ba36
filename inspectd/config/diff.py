"""What a re-read configuration changes: key by key, and what of it can be taken while running."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from inspectd.config.sections import CameraConfig
from inspectd.config.settings import Settings
from inspectd.errors import ConfigError
from inspectd.source_spec import redact

LIVE_SECTIONS = ("model", "engine", "decision", "recipe", "recipes", "challenge")
LIVE_CAMERA_KEYS = (
    "max_fps",
    "max_age_ms",
    "queue_size",
    "connect_timeout_s",
    "stall_timeout_s",
    "frozen_after_s",
    "frozen_level",
    "quality",
    "trigger_delay_ms",
    "rois",
)
_ABSENT = "absent"
_SHOWN = 80
_BEFORE = 20
"""Characters of a value that are shown, and of these before the first that is another now."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key; its values as text, without credentials."""

    key: str
    old: str
    new: str
    live: bool

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def changes(old: Settings, new: Settings) -> list[Change]:
    """Every key whose value differs, as it is written in the file; cameras and ROIs by their names."""
    before, after = _flat(old), _flat(new)
    return [
        Change(key, *_shown(before.get(key, _ABSENT), after.get(key, _ABSENT)), _is_live(key, old, new))
        for key in dict.fromkeys([*before, *after])
        if before.get(key, _ABSENT) != after.get(key, _ABSENT)
    ]


def _shown(old: Any, new: Any) -> tuple[str, str]:
    """Two values that differ, as people may see them: without credentials, and cut to where they differ."""
    before, after = redact(str(old)), redact(str(new))
    if before == after:
        return _cut(before, 0), "the same with other credentials"
    alike = next((at for at, pair in enumerate(zip(before, after, strict=False)) if len(set(pair)) > 1), 0)
    return _cut(before, alike), _cut(after, alike)


def _cut(text: str, alike: int) -> str:
    start = max(0, alike - _BEFORE) if len(text) > _SHOWN else 0
    end = start + _SHOWN
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"


def take_live(old: Settings, new: Settings) -> Settings:
    """The old settings with everything new that needs no restart.

    Raises:
        ConfigError: the two do not fit each other: what is new presupposes what only a restart can change.
    """
    theirs = {camera.name: camera for camera in new.cameras}
    update: dict[str, Any] = {section: getattr(new, section) for section in LIVE_SECTIONS}
    try:
        cameras = tuple(_take_live_keys(camera, theirs.get(camera.name, camera)) for camera in old.cameras)
        # Copies are not validated by themselves, and each half was valid on its own only.
        taken = old.model_copy(update=update | {"cameras": cameras})
        taken.check()
    except ValueError as err:
        why = err.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(err, ValidationError) else str(err)
        raise ConfigError(f"a restart is needed for all of it: {why}") from None
    return taken


def _take_live_keys(old: CameraConfig, new: CameraConfig) -> CameraConfig:
    return CameraConfig.model_validate(old.model_dump() | {key: getattr(new, key) for key in LIVE_CAMERA_KEYS})


def _is_live(key: str, old: Settings, new: Settings) -> bool:
    if not key.startswith("cameras["):
        return key.partition(".")[0].partition("[")[0] in LIVE_SECTIONS
    name, _, rest = key.removeprefix("cameras[").partition("].")
    in_both = all(name in {camera.name for camera in settings.cameras} for settings in (old, new))
    return in_both and rest.partition(".")[0].partition("[")[0] in LIVE_CAMERA_KEYS


def _flat(settings: Settings) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    _flatten("", settings.model_dump(mode="json"), flat)
    return flat


def _flatten(key: str, value: Any, flat: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _flatten(f"{key}.{name}" if key else name, item, flat)
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            _flatten(f"{key}[{_name(item, number)}]", item, flat)
    else:
        flat[key] = value


def _name(item: Mapping[str, Any], number: int) -> str:
    """What stands for an item of a list: its name; a recipe's ROIs have theirs per camera."""
    if "name" not in item:
        return str(number)
    return f"{item['camera']}/{item['name']}" if "camera" in item else str(item["name"])
