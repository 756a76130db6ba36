"""The line-up: the settings in force, their bundles, and each bundle's engine at work.

Built whole, challenged, put into the cameras in one step, and stopped whole: a recipe, another model and a
re-read configuration are all just another line-up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from inspectd.capture.quality import Limits
from inspectd.capture.quality_file import load_limits
from inspectd.config import CameraConfig, RoiConfig, Settings
from inspectd.engine.base import Engine
from inspectd.engine.batcher import Batcher, QueueSpec, slots_needed
from inspectd.engine.runner import EngineRunner
from inspectd.engine.select import make_engine
from inspectd.errors import InspectdError
from inspectd.model.bundle import Bundle
from inspectd.model.preprocess import Preprocessor
from inspectd.observe.logs import Counted
from inspectd.observe.metrics import Metrics
from inspectd.pipeline import Judge, Publish, RoiLane
from inspectd.verdict.decide import Decider, Origin
from inspectd.verdict.part_stream import RoiParts
from inspectd.verdict.teller import Roster

log = structlog.get_logger(__name__)

CHALLENGER = ""
"""Whose queue golden pictures wait in; no camera can have that name."""
DRAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Wiring:
    """What every line-up of a daemon is connected to."""

    publish: Publish
    metrics: Metrics
    on_failure: Callable[[BaseException], None]
    trouble: Counted


class ModelLane:
    """One bundle at work: its engine, the batcher in front of it and the thread between them."""

    def __init__(self, bundle: Bundle, engine: Engine, batcher: Batcher, runner: EngineRunner) -> None:
        self.bundle = bundle
        self.engine = engine
        self.batcher = batcher
        self.runner = runner


class LineUp:
    """`settings` are those in force (`Settings.with_recipe`). Immutable but for `start` and `stop`.

    Raises:
        ConfigError: a camera's image quality is to be watched, and a ROI of it has no learnt limits.
    """

    def __init__(self, settings: Settings, bundles: Mapping[Path, Bundle], wiring: Wiring) -> None:
        self.settings = settings
        self.limits: dict[str, Mapping[str, Limits] | None] = {c.name: load_limits(c) for c in settings.cameras}
        self.recipe = settings.recipe
        self.config = settings.sha256[:12]
        self.lanes: dict[Path, ModelLane] = {}
        self._bundles = {path: bundles[path] for path in settings.bundles}
        self._origins = {
            path: Origin(bundle.short_hash, self.config, self.recipe) for path, bundle in self._bundles.items()
        }
        self._wiring = wiring
        self._running = ExitStack()
        self._at_work = False

    def start(self) -> None:
        """Compile every model and warm it up.

        Raises:
            InspectdError: one cannot be run; nothing is left running.
        """
        try:
            for path, bundle in self._bundles.items():
                self.lanes[path] = self._start_lane(path, bundle)
        except BaseException:
            self.stop()
            raise

    def go_to_work(self) -> None:
        """From now on the daemon depends on it: the failure of an engine is the daemon's.

        Raises:
            InspectdError: an engine has failed already.
        """
        self._at_work = True
        for path, lane in self.lanes.items():
            if not lane.runner.worker.alive:
                self._at_work = False
                raise InspectdError(f"the engine for {path.name} has failed, see the log")

    def retire(self) -> None:
        """Another took its place: it judges what it has and ends; nothing depends on it any more."""
        self._at_work = False
        self.stop()

    def stop(self) -> None:
        """Judge what is queued and in flight, then end every engine. May be called twice."""
        self._running.close()

    def rois(self, camera: CameraConfig) -> list[RoiLane]:
        """A lane for each ROI of one of this line-up's cameras, with preprocessing of its own."""
        return [self._roi_lane(roi) for roi in camera.rois]

    def camera(self, name: str) -> CameraConfig:
        """The configuration of a camera in this line-up."""
        return next(camera for camera in self.settings.cameras if camera.name == name)

    def lane(self, roi: RoiConfig) -> ModelLane:
        """The model that judges a ROI."""
        return self.lanes[self._path(roi)]

    @property
    def identity(self) -> dict[str, Any]:
        """What is in force, for the journal and for acknowledgements."""
        models = [bundle.short_hash for bundle in self._bundles.values()]
        return {"recipe": self.recipe, "config": self.config, "models": models}

    @property
    def roster(self) -> Roster:
        """What the publisher has to know."""
        cameras = self.settings.cameras
        return Roster(
            config=self.config,
            recipe=self.recipe,
            cameras=cameras,
            origins={c.name: {roi.name: self._origins[self._path(roi)] for roi in c.rois} for c in cameras},
            parts={
                (camera.name, roi.name): RoiParts(roi.part, frozenset(self._labels(roi, "empty")))
                for camera in cameras
                for roi in camera.rois
                if roi.part is not None
            },
        )

    def show(self) -> None:
        """Say in metrics what is at work now."""
        metrics = self._wiring.metrics
        metrics.show_models(
            {
                lane.bundle.short_hash: {
                    "architecture": lane.bundle.manifest.architecture,
                    "engine": lane.engine.info.name,
                    "device": lane.engine.info.device,
                    "precision": lane.engine.info.precision,
                }
                for lane in self.lanes.values()
            }
        )
        for camera in self.settings.cameras:
            for roi in camera.rois:
                metrics.expect_defects(camera.name, roi.name, self._labels(roi, "defect"))

    def _on_failure(self, err: BaseException) -> None:
        if self._at_work:
            self._wiring.on_failure(err)

    def _path(self, roi: RoiConfig) -> Path:
        return roi.model or self.settings.model.bundle

    def _labels(self, roi: RoiConfig, role: str) -> list[str]:
        return [spec.name for spec in self._bundles[self._path(roi)].manifest.classes if spec.role == role]

    def _roi_lane(self, roi: RoiConfig) -> RoiLane:
        lane = self.lane(roi)
        return RoiLane(roi, self._origins[self._path(roi)], lane.batcher, Preprocessor(lane.bundle.manifest.preprocess))

    def _start_lane(self, path: Path, bundle: Bundle) -> ModelLane:
        engine = make_engine(bundle, self.settings.engine)
        try:
            lane = self._lane_of(path, bundle, engine)
        except BaseException:
            engine.close()
            raise
        lane.runner.start()
        self._running.callback(lane.runner.stop, DRAIN_S)
        return lane

    def _lane_of(self, path: Path, bundle: Bundle, engine: Engine) -> ModelLane:
        settings, wiring = self.settings, self._wiring
        queues = {CHALLENGER: QueueSpec(capacity=1, live=False)}
        for camera in settings.cameras:
            if count := sum(self._path(roi) == path for roi in camera.rois):
                queues[camera.name] = QueueSpec(capacity=camera.queue_size * count, live=camera.live)
        memory = engine.allocate(slots_needed(queues, engine.max_batch_size, engine.depth))
        engine.warm_up()
        batcher = Batcher(memory, queues, engine.max_batch_size, settings.engine.max_wait_ms / 1000)
        judge = Judge(self._origins[path], Decider(bundle.manifest, settings.decision), wiring.publish, wiring.metrics)
        runner = EngineRunner(
            f"engine-{path.name}",
            engine,
            batcher,
            judge,
            on_batch=wiring.metrics.batch,
            on_failure=self._on_failure,
            trouble=wiring.trouble,
        )
        info = engine.info
        log.info(
            "engine_ready",
            bundle=str(path),
            model=bundle.short_hash,
            engine=info.name,
            device=info.device,
            precision=info.precision,
            why=info.why,
        )
        return ModelLane(bundle, engine, batcher, runner)
