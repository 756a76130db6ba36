"""Everything that can be checked before anything starts: bundles, thresholds, secrets, recordings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from inspectd.capture.probe import check_rois, probe
from inspectd.capture.quality_file import load_limits
from inspectd.challenge import check_pictures
from inspectd.config import CameraConfig, RoiConfig, Settings, read_credentials
from inspectd.engine.select import check_device
from inspectd.errors import CaptureError, ConfigError, UsageError
from inspectd.lineup import LineUp
from inspectd.model.bundle import Bundle, load_bundle
from inspectd.source_spec import parse_source
from inspectd.verdict.decide import Decider


def check_settings(settings: Settings, step: Callable[[], None] = lambda: None) -> dict[Path, Bundle]:
    """Load and verify every bundle that is used, under one recipe: the one that these settings name.

    `step` is called between its steps, and may raise.

    Raises:
        UsageError: the first thing that is wrong.
    """
    bindings = settings.bindings
    bundles = {path: load_bundle(path, bindings.get(path)) for path in settings.bundles}
    for bundle in bundles.values():
        Decider(bundle.manifest, settings.decision)
    for camera in settings.cameras:
        for roi in camera.rois:
            if roi.part is not None:
                _check_part(camera, roi, bundles[roi.model or settings.model.bundle])
    check_pictures(settings, step)
    return bundles


def changed_content(lineup: LineUp, settings: Settings, step: Callable[[], None]) -> list[str]:
    """A line for each bundle, and each camera's learnt limits, that is another than at work, under the same name.

    Raises:
        UsageError: something that these settings name cannot be used.
    """
    at_work = {path: lane.bundle.sha256 for path, lane in lineup.lanes.items()}
    models = [
        f"{path}: model {at_work[path][:12]} -> {bundle.short_hash}"
        for path, bundle in check_settings(settings, step).items()
        if path in at_work and at_work[path] != bundle.sha256
    ]
    learnt = [
        f"{camera.quality}: limits of camera {camera.name}"
        for camera in settings.cameras
        if camera.quality == lineup.camera(camera.name).quality and load_limits(camera) != lineup.limits[camera.name]
    ]
    return models + learnt


def check_everything(settings: Settings) -> dict[Path, Bundle]:
    """Every recipe, and all that can be known of the cameras without them. Returns every bundle of theirs.

    Raises:
        UsageError: the first thing that is wrong.
    """
    check_device(settings.engine)
    for camera in settings.cameras:
        read_credentials(camera)
    for camera in settings.with_recipe(settings.recipe).cameras:
        load_limits(camera)
    bundles: dict[Path, Bundle] = {}
    for recipe in (None, *settings.recipes):
        under = settings.with_recipe(recipe)
        try:
            bundles |= check_settings(under)
            for camera in under.cameras:
                _check_recording(camera)
        except UsageError as err:
            raise err if recipe is None else type(err)(f"recipes.{recipe}: {err}") from err
    return bundles


def told_hashes(settings: Settings, bundles: Mapping[Path, Bundle]) -> list[str]:
    """A line for each bundle with what to bind it to, and whether it is."""
    bound: set[Path] = set().union(*(settings.with_recipe(recipe).bindings for recipe in (None, *settings.recipes)))
    return [
        f'{path}: sha256 = "{bundle.sha256}" ({"bound" if path in bound else "not bound"})'
        for path, bundle in bundles.items()
    ]


def unlearnt(settings: Settings) -> list[str]:
    """A line for each recipe that cannot be switched to before its limits are learnt (`check --learn --recipe`)."""
    found = []
    for recipe in settings.recipes:
        for camera in settings.with_recipe(recipe).cameras:
            try:
                load_limits(camera)
            except ConfigError as err:
                found.append(f"recipes.{recipe}: {err}, with --recipe {recipe}")
    return found


def _check_part(camera: CameraConfig, roi: RoiConfig, bundle: Bundle) -> None:
    if not any(spec.role == "empty" for spec in bundle.manifest.classes):
        raise ConfigError(
            f"cameras[{camera.name}].rois[{roi.name}].part: {bundle.path} has no class of the role empty, "
            "so nothing tells one part from the next"
        )


def _check_recording(camera: CameraConfig) -> None:
    """Of what is no live camera everything, for a recording cannot come back later."""
    if parse_source(camera.source).kind in ("file", "conveyor"):
        try:
            frame = probe(camera)
        except CaptureError as err:
            raise ConfigError(f"camera {camera.name}: {err}") from err
        check_rois(camera, frame)
