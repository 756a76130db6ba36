"""The daemon's life: startup, main loop, shutdown. It owns every thread; the main thread supervises.

camera threads ──crops──> engine threads ──outcomes──> zeromq thread ──> subscribers, journal, evidence
     main thread: watches all of them, feeds systemd's watchdog, answers for READY
     changeover thread: recipes, re-read configuration, challenges
"""

from __future__ import annotations

import gc
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import get_args

import cv2
import structlog

from inspectd import __version__
from inspectd.changeover import Changeover
from inspectd.commands import LineCommands
from inspectd.config import Settings
from inspectd.errors import FatalEngineError, InspectdError
from inspectd.lineup import LineUp, Wiring
from inspectd.observe.http import HttpServer
from inspectd.observe.ledger import NOT_IN_RECIPE, Ledger
from inspectd.observe.logs import Counted
from inspectd.observe.metrics import Metrics
from inspectd.observe.systemd import Notifier
from inspectd.preflight import check_everything, unlearnt
from inspectd.station import Station
from inspectd.verdict.control_schema import ControlError, ReloadRequest
from inspectd.verdict.decide import Outcome
from inspectd.verdict.evidence import EvidenceStore
from inspectd.verdict.journal import Journal, ReplayDesk
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
DROPS = ("max_fps", "untriggered", "late", NOT_IN_RECIPE, "shutdown", "unpublished")


class Daemon:
    """`Daemon(settings).run()` runs until SIGTERM, SIGINT, the end of all recordings, or a fatal error.

    `reread` loads the configuration anew, for `reload` and SIGHUP.
    """

    def __init__(
        self,
        settings: Settings,
        notifier: Notifier | None = None,
        *,
        reread: Callable[[], Settings] | None = None,
    ) -> None:
        self.settings = settings  # as loaded
        self.boot_id = uuid.uuid4().hex
        self.started = threading.Event()  # set once startup is complete
        self.trouble = Counted(log)
        self.ledger: Ledger
        self.metrics: Metrics
        self.journal: Journal | None = None
        self.publisher: Publisher
        self.http: HttpServer
        self.station: Station
        self.changeover: Changeover
        self._reread = reread
        self._notifier = notifier or Notifier.from_environment()
        self._signalled_at: float | None = None  # written by the handler, read by the main loop
        self._reload_asked = False  # likewise
        self._stop = threading.Event()
        self._failure: BaseException | None = None  # first fatal failure of any thread; guarded by the GIL
        self._state: tuple[State, str | None] = ("starting", None)

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
        cv2.setNumThreads(1)  # crops are small; a pool per camera thread would only fight with the engine
        bundles = check_everything(self.settings)
        names = [camera.name for camera in self.settings.cameras]
        self.ledger = Ledger((camera.name, roi.name) for camera in self.settings.cameras for roi in camera.rois)
        self.metrics = Metrics(self.ledger, names, verdicts=VERDICTS, drops=DROPS)
        log.info("starting", version=__version__, boot_id=self.boot_id, config=self.settings.sha256[:12])
        for why in unlearnt(self.settings):
            log.warning("recipe_not_learnt", why=why)
        self._start_journal(running)
        recipe, recipe_known = self._recipe()
        effective = self.settings.with_recipe(recipe)
        for camera in effective.cameras:
            self.ledger.inspect_only(camera.name, [roi.name for roi in camera.rois])
        wiring = Wiring(self._publish, self.metrics, self._on_failure, self.trouble)
        lineup = LineUp(effective, bundles, wiring)
        if self.journal is not None:  # before any message: what follows is this boot's
            self.journal.event("boot", {"version": __version__, "settings": effective.public(), **lineup.identity})
        commands = LineCommands(self.boot_id, self._start_replay(running), self.journal)
        self._start_http(running)
        self._start_publisher(lineup, commands, running)
        lineup.start()
        running.callback(lineup.stop)  # whatever else happens; by then it may have been stopped before
        self.station = Station(
            lineup, self.publisher, self.ledger, self.metrics, keep_frames=effective.evidence.dir is not None
        )
        running.callback(self._stop_engines)
        self._start_changeover(wiring, running, recipe_known=recipe_known)
        commands.attach(self.station, self.changeover, lambda: self._state)
        self._start_cameras(running)
        _forget_what_stays()
        self._notifier.ready(f"{len(names)} camera(s)")
        self.started.set()
        log.info(
            "started",
            verdicts=self.publisher.endpoint,
            control=self.publisher.control_endpoint,
            http=self.http.url,
            recipe=lineup.recipe,
        )

    def _start_journal(self, running: ExitStack) -> None:
        config = self.settings.journal
        if config.path is None:
            return
        self.journal = Journal(config, self.boot_id, self.metrics)
        self.journal.start()
        running.callback(self.journal.stop, 0.5)

    def _recipe(self) -> tuple[str | None, bool]:
        """The recipe to begin with, and whether it is known to be right: the one that was in force at the end.

        A journal that cannot be read does not know; then the line must be told before anything passes.
        """
        configured = self.settings.recipe
        if self.journal is None or not self.settings.recipes:
            return configured, True
        last = self.journal.last_event("recipe")
        if last is None:
            return configured, self.journal.state == "ok"
        recipe = last.get("recipe")
        if recipe is None or recipe in self.settings.recipes:
            return recipe, True
        log.warning("recipe_gone", recipe=recipe, instead=configured)
        return configured, False

    def _start_replay(self, running: ExitStack) -> ReplayDesk | None:
        if self.journal is None or self.settings.journal.path is None:
            return None
        desk = ReplayDesk(self.settings.journal.path, self.boot_id, self.journal.flush)
        desk.start()
        running.callback(desk.stop, 0.5)
        return desk

    def _start_http(self, running: ExitStack) -> None:
        self.http = HttpServer(self.settings.http.bind, self.metrics, health=self.health, ready=self.readiness)
        self.http.start()
        running.callback(self.http.stop, 0.5)

    def _start_publisher(self, lineup: LineUp, commands: LineCommands, running: ExitStack) -> None:
        evidence = None
        if self.settings.evidence.dir is not None:
            evidence = EvidenceStore(self.settings.evidence, self.boot_id, self.metrics)
            evidence.start()
            running.callback(evidence.stop, 0.5)
        self.publisher = Publisher(
            self.settings.publish,
            boot_id=self.boot_id,
            roster=lineup.roster,
            ledger=self.ledger,
            metrics=self.metrics,
            on_failure=self._on_failure,
            control=self.settings.control,
            security=self.settings.security,
            journal=self.journal,
            before_publish=self.settings.journal.sync == "before_publish",
            evidence=evidence,
            commands=commands,
        )
        self.publisher.start()
        running.callback(self.publisher.stop, 1.0)

    def _start_changeover(self, wiring: Wiring, running: ExitStack, *, recipe_known: bool) -> None:
        self.changeover = Changeover(
            self.settings,
            self.station,
            wiring,
            reread=self._reread,
            vouch=self.publisher.vouch,
            metrics=self.metrics,
            journal=self.journal,
            on_failure=self._on_failure,
            recipe_known=recipe_known,
        )
        self.changeover.begin()
        self.changeover.start()
        running.callback(self.changeover.stop, 0.5)

    def _start_cameras(self, running: ExitStack) -> None:
        running.callback(self.station.join, 0.5)
        running.callback(self.station.signal)
        self.station.start()

    def _stop_engines(self) -> None:
        self.station.lineup.stop()  # the one at work by then

    def _publish(self, outcome: Outcome) -> None:
        self.publisher.publish(outcome)

    # -- main loop ----------------------------------------------------------------------------------

    def _main_loop(self) -> None:
        while not self._should_stop():
            for camera in self.station.cameras:
                camera.supervise()
            self._reload_if_asked()
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
        if all(camera.finished for camera in self.station.cameras) and not self.ledger.in_flight:
            self._refuse_broken_recordings()
            log.info("stopping", why="every recording was played to its end")
            return True
        return False

    def _refuse_broken_recordings(self) -> None:
        for camera in self.station.cameras:
            if camera.reason != "finished":
                raise InspectdError(f"camera {camera.name}: the recording broke off ({camera.reason}), see the log")

    def _reload_if_asked(self) -> None:
        if not self._reload_asked:
            return
        self._reload_asked = False
        try:
            self.changeover.command(ReloadRequest(op="reload"), lambda _: None)  # it logs what came of it
        except ControlError as refusal:
            log.warning("reload_refused", why=str(refusal))

    def _update_state(self) -> None:
        ready, detail = self.readiness()
        wrong = {name: why for name, why in detail.items() if why != "ok"}
        state: State = "ready" if ready else "starting" if self._only_starting() else "fault"
        reason = "; ".join(f"{name}: {why}" for name, why in wrong.items()) or None
        self.metrics.set_ready(ready)
        if (state, reason) != self._state:
            self._state = (state, reason)
            self.publisher.set_state(state, reason)
            log.info("state", state=state, **wrong)
            self._notifier.status(" ".join([state, *(f"{name}: {why};" for name, why in wrong.items())]))

    def _only_starting(self) -> bool:
        return (
            self._state[0] == "starting"
            and self.changeover.problem is None
            and all(camera.state in ("starting", "ready") for camera in self.station.cameras)
        )

    def _feed_watchdog(self) -> None:
        # Fed by progress, not by being alive: a camera that is away is no hang (its supervisor retries),
        # an engine that does not give back its batch or a silent publisher is.
        now = time.monotonic()
        engines_move = all(lane.runner.busy_s(now) < ENGINE_HANG_S for lane in self.station.lineup.lanes.values())
        if engines_move and now - self.publisher.last_beat < ZEROMQ_LATE_S:
            self._notifier.watchdog()

    def _fail_if_engine_hangs(self) -> None:
        now = time.monotonic()
        for path, lane in self.station.lineup.lanes.items():
            if (busy_s := lane.runner.busy_s(now)) >= ENGINE_HANG_S:
                raise FatalEngineError(f"engine for {path.name}: no answer for {busy_s:.0f} s; only a restart helps")

    # -- health -------------------------------------------------------------------------------------

    def health(self) -> tuple[bool, dict[str, str]]:
        """Alive: every thread that cannot be replaced runs."""
        if not self.started.is_set():
            return True, {"startup": "under way"}
        parts = {f"engine-{path.name}": lane.runner.alive for path, lane in self.station.lineup.lanes.items()}
        parts["zeromq"] = self.publisher.alive
        parts["changeover"] = self.changeover.alive
        return all(parts.values()), {name: "ok" if alive else "dead" for name, alive in parts.items()}

    def readiness(self) -> tuple[bool, dict[str, str]]:
        """Ready: alive, every camera delivers judgeable frames, every engine answers in time."""
        alive, detail = self.health()
        if not self.started.is_set():
            return False, detail
        now = time.monotonic()
        for path, lane in self.station.lineup.lanes.items():
            if lane.runner.busy_s(now) >= ENGINE_LATE_S:
                detail[f"engine-{path.name}"] = "late"
        for camera in self.station.cameras:
            detail[f"camera {camera.name}"] = "ok" if camera.state == "ready" else camera.reason or camera.state
        if problem := self.changeover.problem:
            detail["changeover"] = problem
        ready = alive and all(why == "ok" for why in detail.values())
        return ready, detail

    # -- shutdown -----------------------------------------------------------------------------------

    def _shutdown(self, running: ExitStack) -> None:
        """In the reverse order of starting, so that each part can still hand on what it has.

        1. cameras: all are signalled, then joined, so nothing new comes in
        2. changeover: what is under way comes to its end
        3. engines: judge what is queued and in flight
        4. publisher: sends every verdict that waits, answers every trigger, then the last heartbeat
        5. evidence, HTTP, replay, and the journal last, when nobody writes to it any more
        """
        deadline = Deadline(STOP_S)
        self._notifier.stopping()
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
        """SIGTERM and SIGINT ask for a clean stop, a second one ends the process at once; SIGHUP re-reads."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)
        }
        previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._on_hangup)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        self._reload_asked = True

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # Only notes the time: setting an Event here could deadlock with the main thread inside Event.wait.
        now = time.monotonic()
        if self._signalled_at is None:
            self._signalled_at = now
        elif now - self._signalled_at > SAME_SIGNAL_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def _forget_what_stays() -> None:
    """Modules and models live as long as the process: a full garbage collection need not look at them each time.

    It would hold every thread for some 20 ms, in the middle of somebody's deadline.
    """
    gc.collect()
    gc.freeze()
