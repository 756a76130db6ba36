"""Everything that can be checked before anything starts: bundles, thresholds, secrets, recordings."""

from __future__ import annotations

from pathlib import Path

from inspectd.capture.probe import check_rois, probe
from inspectd.config import CameraConfig, Settings, read_credentials
from inspectd.errors import CaptureError, ConfigError
from inspectd.model.bundle import Bundle, load_bundle
from inspectd.source_spec import parse_source
from inspectd.verdict.decide import Decider


def check_settings(settings: Settings) -> dict[Path, Bundle]:
    """Load and verify every bundle that is used, and all that can be known of the cameras without them.

    Raises:
        UsageError: the first thing that is wrong.
    """
    used = [roi.model or settings.model.bundle for camera in settings.cameras for roi in camera.rois]
    bundles = {path: load_bundle(path) for path in dict.fromkeys(used)}
    for bundle in bundles.values():
        Decider(bundle.manifest, settings.decision)
    for camera in settings.cameras:
        _check_camera(camera)
    return bundles


def _check_camera(camera: CameraConfig) -> None:
    """Its secrets; and of what is no live camera everything, for a recording cannot come back later."""
    read_credentials(camera)
    if parse_source(camera.source).kind in ("file", "conveyor"):
        try:
            frame = probe(camera)
        except CaptureError as err:
            raise ConfigError(f"camera {camera.name}: {err}") from err
        check_rois(camera, frame)
