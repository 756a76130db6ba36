"""The daemon's life: startup, main loop, shutdown. It owns every thread; the main thread supervises.

camera threads ──crops──> engine threads ──outcomes──> zeromq thread ──> subscribers
     main thread: watches all of them, feeds systemd's watchdog, answers for READY
"""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import get_args

import cv2
import structlog

from inspectd import __version__
from inspectd.capture.camera import Camera
from inspectd.config import CameraConfig, Settings
from inspectd.engine.base import Engine
from inspectd.engine.batcher import Batcher, QueueSpec, slots_needed
from inspectd.engine.runner import EngineRunner
from inspectd.engine.select import make_engine
from inspectd.errors import FatalEngineError, InspectdError
from inspectd.model.bundle import Bundle
from inspectd.model.preprocess import Preprocessor
from inspectd.observe.http import HttpServer
from inspectd.observe.ledger import Ledger
from inspectd.observe.logs import Counted
from inspectd.observe.metrics import Metrics
from inspectd.observe.systemd import Notifier
from inspectd.pipeline import CropProducer, Judge, RoiLane
from inspectd.preflight import check_settings
from inspectd.verdict.decide import Decider
from inspectd.verdict.publisher import Publisher
from inspectd.verdict.schema import NoResultReason, State
from inspectd.workers import Deadline

log = structlog.get_logger(__name__)

TICK_S = 0.1
ENGINE_HANG_S = 10.0
"""A batch that has been with the device for so long never comes back; READY goes long before that."""
ENGINE_LATE_S = 1.0
ZEROMQ_LATE_S = 2.0
STOP_S = 3.0
"""The whole shutdown, in-flight work published, fits into this."""

SAME_SIGNAL_S = 0.3
"""A terminal's Ctrl-C and a parent that passes it on are one request, not an impatient second one."""

VERDICTS = (
    ("pass", ""),
    ("fail", ""),
    ("no_result", "empty"),
    *(("no_result", why) for why in get_args(NoResultReason)),
)
DROPS = ("max_fps", "shutdown", "unpublished")


class ModelLane:
    """One bundle at work: its engine, the batcher in front of it and the thread between them."""

    def __init__(self, bundle: Bundle, engine: Engine, batcher: Batcher, runner: EngineRunner) -> None:
        self.bundle = bundle
        self.engine = engine
        self.batcher = batcher
        self.runner = runner


class Daemon:
    """`Daemon(settings).run()` runs until SIGTERM, SIGINT, the end of all recordings, or a fatal error."""

    def __init__(self, settings: Settings, notifier: Notifier | None = None) -> None:
        self.settings = settings
        self.boot_id = uuid.uuid4().hex
        self.started = threading.Event()  # set once startup is complete
        self.ledger = Ledger((camera.name, roi.name) for camera in settings.cameras for roi in camera.rois)
        self.metrics = Metrics(
            self.ledger, [camera.name for camera in settings.cameras], verdicts=VERDICTS, drops=DROPS
        )
        self.trouble = Counted(log)
        self.cameras: list[Camera] = []
        self.lanes: dict[Path, ModelLane] = {}
        self.publisher: Publisher
        self.http: HttpServer
        self._notifier = notifier or Notifier.from_environment()
        self._signalled_at: float | None = None  # written by the handler, read by the main loop
        self._stop = threading.Event()
        self._failure: BaseException | None = None  # first fatal failure of any thread; guarded by the GIL
        self._state: State = "starting"

    def run(self) -> int:
        """Run to the end; 0 after a clean stop.

        Raises:
            UsageError: what the user gave is wrong; nothing was left running.
            InspectdError: a part that cannot be replaced failed.
        """
        with self._signal_handlers(), ExitStack() as running:
            try:
                self._startup(running)
                self._main_loop()
            finally:
                self._shutdown(running)
        if self._failure is not None:
            raise InspectdError(f"stopped after a failure: {self._failure}") from self._failure
        return 0

    def stop(self) -> None:
        """Ask the daemon to stop, from any thread."""
        self._stop.set()

    # -- startup ------------------------------------------------------------------------------------

    def _startup(self, running: ExitStack) -> None:
        settings = self.settings
        cv2.setNumThreads(1)  # crops are small; a pool per camera thread would only fight with the engine
        bundles = check_settings(settings)
        log.info("starting", version=__version__, boot_id=self.boot_id, config=settings.sha256[:12])
        self._start_http(running)
        self._start_publisher(running)
        for path, bundle in bundles.items():
            self.lanes[path] = self._start_lane(bundle, path, running)
        for camera in settings.cameras:
            self._start_camera(camera, running)
        self._notifier.ready(f"{len(self.cameras)} camera(s)")
        self.started.set()
        log.info("started", verdicts=self.publisher.endpoint, http=self.http.url)

    def _start_http(self, running: ExitStack) -> None:
        self.http = HttpServer(self.settings.http.bind, self.metrics, health=self.health, ready=self.readiness)
        self.http.start()
        running.callback(self.http.stop, 0.5)

    def _start_publisher(self, running: ExitStack) -> None:
        self.publisher = Publisher(
            self.settings.publish,
            boot_id=self.boot_id,
            config_hash=self.settings.sha256[:12],
            cameras=[camera.name for camera in self.settings.cameras],
            ledger=self.ledger,
            metrics=self.metrics,
            on_failure=self._on_failure,
        )
        self.publisher.start()
        running.callback(self.publisher.stop, 1.0)

    def _start_lane(self, bundle: Bundle, path: Path, running: ExitStack) -> ModelLane:
        engine = make_engine(bundle, self.settings.engine)
        queues = {
            camera.name: QueueSpec(capacity=camera.queue_size * count, live=camera.live)
            for camera in self.settings.cameras
            if (count := sum((roi.model or self.settings.model.bundle) == path for roi in camera.rois))
        }
        memory = engine.allocate(slots_needed(queues, engine.max_batch_size, engine.depth))
        engine.warm_up()
        batcher = Batcher(memory, queues, engine.max_batch_size, self.settings.engine.max_wait_ms / 1000)
        judge = Judge(bundle, Decider(bundle.manifest, self.settings.decision), self.publisher.publish, self.metrics)
        runner = EngineRunner(
            f"engine-{path.name}",
            engine,
            batcher,
            judge,
            on_batch=self.metrics.batch,
            on_failure=self._on_failure,
            trouble=self.trouble,
        )
        runner.start()
        running.callback(runner.stop, 1.0)
        info = engine.info
        self.metrics.set_model(
            bundle=bundle.short_hash,
            architecture=bundle.manifest.architecture,
            engine=info.name,
            device=info.device,
            precision=info.precision,
        )
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

    def _start_camera(self, config: CameraConfig, running: ExitStack) -> None:
        lanes = []
        for roi in config.rois:
            lane = self.lanes[roi.model or self.settings.model.bundle]
            labels = [spec.name for spec in lane.bundle.manifest.classes if spec.role == "defect"]
            self.metrics.expect_defects(config.name, roi.name, labels)
            preprocess = Preprocessor(lane.bundle.manifest.preprocess)
            lanes.append(RoiLane(roi, lane.bundle, lane.batcher, preprocess))
        sink = CropProducer(config, lanes, self.ledger, self.publisher.publish, self.metrics)
        camera = Camera(config, sink, self.metrics, self.publisher.set_status)
        camera.start()
        self.cameras.append(camera)
        running.callback(camera.join, 0.5)
        running.callback(camera.signal)

    # -- main loop ----------------------------------------------------------------------------------

    def _main_loop(self) -> None:
        while not self._should_stop():
            for camera in self.cameras:
                camera.supervise()
            self._update_state()
            self._feed_watchdog()
            self._fail_if_engine_hangs()
            self.trouble.flush()
            self._stop.wait(TICK_S)

    def _should_stop(self) -> bool:
        if self._failure is not None:
            return True
        signalled = self._signalled_at is not None
        if signalled or self._stop.is_set():
            log.info("stopping", why="signal" if signalled else "asked to")
            return True
        if all(camera.finished for camera in self.cameras) and not self.ledger.in_flight:
            self._refuse_broken_recordings()
            log.info("stopping", why="every recording was played to its end")
            return True
        return False

    def _refuse_broken_recordings(self) -> None:
        for camera in self.cameras:
            if camera.reason != "finished":
                raise InspectdError(f"camera {camera.name}: the recording broke off ({camera.reason}), see the log")

    def _update_state(self) -> None:
        ready, detail = self.readiness()
        state: State = "ready" if ready else "starting" if self._only_starting() else "fault"
        self.metrics.set_ready(ready)
        if state != self._state:
            self._state = state
            self.publisher.set_state(state)
            wrong = {name: why for name, why in detail.items() if why != "ok"}
            log.info("state", state=state, **wrong)
            self._notifier.status(" ".join([state, *(f"{name}: {why};" for name, why in wrong.items())]))

    def _only_starting(self) -> bool:
        return self._state == "starting" and all(camera.state in ("starting", "ready") for camera in self.cameras)

    def _feed_watchdog(self) -> None:
        # Fed by progress, not by being alive: a camera that is away is no hang (its supervisor retries),
        # an engine that does not give back its batch or a silent publisher is.
        now = time.monotonic()
        engines_move = all(lane.runner.busy_s(now) < ENGINE_HANG_S for lane in self.lanes.values())
        if engines_move and now - self.publisher.last_beat < ZEROMQ_LATE_S:
            self._notifier.watchdog()

    def _fail_if_engine_hangs(self) -> None:
        now = time.monotonic()
        for path, lane in self.lanes.items():
            if (busy_s := lane.runner.busy_s(now)) >= ENGINE_HANG_S:
                raise FatalEngineError(f"engine for {path.name}: no answer for {busy_s:.0f} s; only a restart helps")

    # -- health -------------------------------------------------------------------------------------

    def health(self) -> tuple[bool, dict[str, str]]:
        """Alive: every thread that cannot be replaced runs."""
        parts = {f"engine-{path.name}": lane.runner.alive for path, lane in self.lanes.items()}
        if self.started.is_set():
            parts["zeromq"] = self.publisher.alive
        return all(parts.values()), {name: "ok" if alive else "dead" for name, alive in parts.items()}

    def readiness(self) -> tuple[bool, dict[str, str]]:
        """Ready: alive, every camera delivers judgeable frames, every engine answers in time."""
        alive, detail = self.health()
        now = time.monotonic()
        for path, lane in self.lanes.items():
            if lane.runner.busy_s(now) >= ENGINE_LATE_S:
                detail[f"engine-{path.name}"] = "late"
        for camera in self.cameras:
            detail[f"camera {camera.name}"] = "ok" if camera.state == "ready" else camera.reason or camera.state
        ready = alive and self.started.is_set() and all(why == "ok" for why in detail.values())
        return ready, detail

    # -- shutdown -----------------------------------------------------------------------------------

    def _shutdown(self, running: ExitStack) -> None:
        """In the reverse order of starting, so that each part can still hand on what it has.

        1. cameras: all are signalled, then joined, so nothing new comes in
        2. engines: judge what is queued and in flight
        3. publisher: sends every verdict that waits, then the last heartbeat
        4. HTTP
        """
        deadline = Deadline(STOP_S)
        self._notifier.stopping()
        for camera in self.cameras:
            camera.signal()
        running.close()
        self.trouble.close()
        if self.started.is_set():
            log.info("stopped", took_s=round(STOP_S - deadline.left(), 2), in_flight=self.ledger.in_flight)

    def _on_failure(self, err: BaseException) -> None:
        if self._failure is None:
            self._failure = err
        self._stop.set()

    @contextmanager
    def _signal_handlers(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for a clean stop; a second one ends the process at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # Only notes the time: setting an Event here could deadlock with the main thread inside Event.wait.
        now = time.monotonic()
        if self._signalled_at is None:
            self._signalled_at = now
        elif now - self._signalled_at > SAME_SIGNAL_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
