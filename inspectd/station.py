"""The station: the cameras, what each frame of theirs is put to, and the line-up at work behind them.

Another line-up takes its place in one step, between two frames of every camera, so that no verdict mixes two.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import structlog

from inspectd.capture.camera import Camera
from inspectd.config import CameraConfig
from inspectd.engine.runner import EngineRunner
from inspectd.errors import ConfigError, InspectdError
from inspectd.lineup import LineUp
from inspectd.observe.ledger import Ledger
from inspectd.observe.metrics import Metrics
from inspectd.pipeline import CropProducer
from inspectd.verdict.publisher import Publisher
from inspectd.workers import Deadline

log = structlog.get_logger(__name__)

PAUSE_S = 5.0
"""So long a switch waits for the frames that are being cropped; a recording's may wait for the engine."""


@dataclass(frozen=True, slots=True)
class _Post:
    camera: Camera
    producer: CropProducer


class Station:
    """Owned by the main thread; `switch` is called by one other at a time."""

    def __init__(
        self, lineup: LineUp, publisher: Publisher, ledger: Ledger, metrics: Metrics, *, keep_frames: bool
    ) -> None:
        lineup.go_to_work()
        self.lineup = lineup  # one reference, swapped whole
        self._publisher = publisher
        self._ledger = ledger
        self._metrics = metrics
        self._left: list[EngineRunner] = []  # swapped whole
        self._posts = [self._post(camera, keep_frames) for camera in lineup.settings.cameras]

    @property
    def cameras(self) -> list[Camera]:
        return [post.camera for post in self._posts]

    @property
    def left_behind(self) -> list[EngineRunner]:
        """Engines of earlier line-ups that have not come to their end: frames may wait for them."""
        return [runner for runner in self._left if runner.worker.alive]

    def start(self) -> None:
        """Let the cameras begin."""
        for camera in self.cameras:
            camera.start()

    def signal(self) -> None:
        """Ask every camera to stop; does not wait."""
        for camera in self.cameras:
            camera.signal()

    def join(self, timeout_s: float) -> None:
        """Wait for the capture threads; afterwards no frame is delivered."""
        deadline = Deadline(timeout_s)
        for camera in self.cameras:
            camera.join(deadline.left())

    def check(self, lineup: LineUp) -> None:
        """Whether its regions lie inside what the cameras deliver.

        Raises:
            ConfigError: one does not.
        """
        for camera in self.cameras:
            if problem := camera.misfit(lineup.camera(camera.name)):
                raise ConfigError(f"camera {camera.name}: {problem}")

    def switch(self, lineup: LineUp) -> None:
        """Put a started line-up to work. The old one judges what it has, then it is stopped.

        Raises:
            InspectdError: a camera's frame was not taken in time; the old line-up goes on.
        """
        deadline = Deadline(PAUSE_S)
        old = self.lineup
        with ExitStack() as paused:
            for camera in self.cameras:
                try:
                    paused.enter_context(camera.paused(deadline.left()))
                except TimeoutError:
                    raise InspectdError(f"camera {camera.name}: a frame is still being worked on") from None
            self.check(lineup)
            lineup.go_to_work()
            self.lineup = lineup
            old.retire()
            runners = (*self._left, *(lane.runner for lane in old.lanes.values()))
            self._left = [runner for runner in runners if runner.worker.alive]
            for post in self._posts:
                config = lineup.camera(post.camera.name)
                self._ledger.inspect_only(config.name, [roi.name for roi in config.rois])
                post.camera.adopt(config, lineup.limits[config.name])
                post.producer.adopt(config, lineup.rois(config))
            self._publisher.use(lineup.roster)  # last: it may answer for a region that the ledger must know by then
        lineup.show()

    def _post(self, config: CameraConfig, keep_frames: bool) -> _Post:
        producer = CropProducer(
            config,
            self.lineup.rois(config),
            self._ledger,
            self._publisher.publish,
            self._metrics,
            board=self._publisher.boards.get(config.name),
            keep_frames=keep_frames,
        )
        limits = self.lineup.limits[config.name]
        return _Post(Camera(config, producer, self._metrics, self._publisher.set_status, limits=limits), producer)
