"""The daemon's life: startup, main loop, shutdown. It owns every thread; the main thread supervises.

camera threads ──crops──> engine threads ──outcomes──> zeromq thread ──> subscribers, journal, evidence
     main thread: watches all of them, feeds systemd's watchdog, answers for READY
     changeover thread: recipes, re-read configuration, challenges
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import get_args

import cv2
import structlog

from inspectd import __version__
from inspectd.changeover import Changeover
from inspectd.commands import LineCommands
from inspectd.config import Settings
from inspectd.errors import InspectdError
from inspectd.health import Health
from inspectd.heap import TRIM_S, forget_what_stays, give_back
from inspectd.lineup import LineUp, Wiring
from inspectd.observe.http import HttpServer
from inspectd.observe.ledger import NOT_IN_RECIPE, Ledger
from inspectd.observe.logs import Counted
from inspectd.observe.metrics import Metrics
from inspectd.observe.systemd import Notifier
from inspectd.preflight import check_everything, unlearnt
from inspectd.recipe_memory import RecipeMemory
from inspectd.signals import Signals
from inspectd.station import Station
from inspectd.verdict.control_schema import ControlError, ReloadRequest
from inspectd.verdict.decide import Outcome
from inspectd.verdict.evidence import EvidenceStore
from inspectd.verdict.journal import Journal, ReplayDesk
from inspectd.verdict.publisher import Publisher
from inspectd.verdict.schema import NoResultReason, State
from inspectd.workers import LATE_S, Deadline, Worker, leave_behind

log = structlog.get_logger(__name__)

TICK_S = 0.1
STOP_S = 3.0
"""The whole shutdown, in-flight work published, fits into this."""

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
        self.health = Health()
        self._reread = reread
        self._notifier = notifier or Notifier.from_environment()
        self._signals = Signals()
        self._stop = threading.Event()
        self._failure: BaseException | None = None  # first fatal failure of any thread; guarded by the GIL
        self._state: tuple[State, str | None] = ("starting", None)
        self._trim_at = 0.0  # monotonic seconds
        self._workers: list[Worker] = []  # beside those that `health` knows of itself

    def run(self) -> int:
        """Run to the end; 0 after a clean stop.

        Raises:
            UsageError: what the user gave is wrong; nothing was left running.
            InspectdError: a part that cannot be replaced failed.
        """
        before = set(threading.enumerate())
        code = InspectdError.exit_code
        try:
            self._run()
            code = 0
        except InspectdError as err:
            code = err.exit_code
            raise
        finally:
            leave_behind([thread for thread in threading.enumerate() if thread not in before], code)
        return code

    def stop(self) -> None:
        """Ask the daemon to stop, from any thread."""
        self._stop.set()

    def _run(self) -> None:
        with self._signals, ExitStack() as running:
            try:
                self._startup(running)
                self._main_loop()
            finally:
                self._shutdown(running)
        if self._failure is not None:
            raise InspectdError(f"stopped after a failure: {self._failure}") from self._failure

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
        memory = RecipeMemory(self.journal)
        recipe, recipe_known = memory.at_start(self.settings)
        effective = self.settings.with_recipe(recipe)
        for camera in effective.cameras:
            self.ledger.inspect_only(camera.name, [roi.name for roi in camera.rois])
        wiring = Wiring(self._publish, self.metrics, self._on_failure, self.trouble)
        lineup = LineUp(effective, bundles, wiring)
        if self.journal is not None:  # before any message: what follows is this boot's
            self.journal.event("boot", {"version": __version__, "settings": effective.public(), **lineup.identity})
        if self.settings.recipes:
            memory.settle(lineup.identity, known=recipe_known)
        commands = LineCommands(self.boot_id, self._start_replay(running), self.journal)
        self._start_http(running)
        self._start_publisher(lineup, commands, running)
        lineup.start()
        running.callback(lineup.stop)  # whatever else happens; by then it may have been stopped before
        self.station = Station(
            lineup, self.publisher, self.ledger, self.metrics, keep_frames=effective.evidence.dir is not None
        )
        running.callback(self._stop_engines)
        self._start_changeover(wiring, memory, running, recipe_known=recipe_known)
        commands.attach(self.station, self.changeover, lambda: self.publisher.state)
        self._start_cameras(running)
        forget_what_stays()
        self.health.attach(self.station, self.publisher, self.changeover, self._workers)
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
        self._workers.append(self.journal.worker)
        running.callback(self.journal.stop, 0.5)

    def _start_replay(self, running: ExitStack) -> ReplayDesk | None:
        if self.journal is None or self.settings.journal.path is None:
            return None
        desk = ReplayDesk(self.settings.journal.path, self.boot_id, self.journal.flush)
        desk.start()
        self._workers.append(desk.worker)
        running.callback(desk.stop, 0.5)
        return desk

    def _start_http(self, running: ExitStack) -> None:
        self.metrics.ask_ready(lambda: self.health.ready()[0])
        self.http = HttpServer(self.settings.http.bind, self.metrics, health=self.health.alive, ready=self.health.ready)
        self.http.start()
        self._workers.append(self.http.worker)
        running.callback(self.http.stop, 0.5)

    def _start_publisher(self, lineup: LineUp, commands: LineCommands, running: ExitStack) -> None:
        evidence = None
        if self.settings.evidence.dir is not None:
            evidence = EvidenceStore(self.settings.evidence, self.boot_id, self.metrics)
            evidence.start()
            self._workers.append(evidence.worker)
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
            required=self.settings.journal.required,
            evidence=evidence,
            commands=commands,
        )
        self.publisher.start()
        running.callback(self.publisher.stop, 1.0)

    def _start_changeover(
        self, wiring: Wiring, memory: RecipeMemory, running: ExitStack, *, recipe_known: bool
    ) -> None:
        self.changeover = Changeover(
            self.settings,
            self.station,
            wiring,
            reread=self._reread,
            vouch=self.publisher.vouch,
            metrics=self.metrics,
            journal=self.journal,
            memory=memory,
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
            if self.health.moving():
                self._notifier.watchdog()
            self.trouble.flush()
            self._give_back_memory()
            self._stop.wait(TICK_S)

    def _give_back_memory(self) -> None:
        if (now := time.monotonic()) >= self._trim_at:
            self._trim_at = now + TRIM_S
            give_back()

    def _should_stop(self) -> bool:
        if self._failure is not None:
            return True
        if self._signals.stop_asked or self._stop.is_set():
            log.info("stopping", why="signal" if self._signals.stop_asked else "asked to")
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
        if not self._signals.reload_asked():
            return
        try:
            self.changeover.command(ReloadRequest(op="reload"), lambda _: None)  # it logs what came of it
        except ControlError as refusal:
            log.warning("reload_refused", why=str(refusal))

    def _update_state(self) -> None:
        ready, detail = self.health.ready()
        wrong = {name: why for name, why in detail.items() if why != "ok"}
        state: State = "ready" if ready else "starting" if self._only_starting() else "fault"
        reason = "; ".join(f"{name}: {why}" for name, why in wrong.items()) or None
        self.publisher.set_state(state, reason, valid_s=LATE_S)  # on every turn: a loop that hangs is not ready
        if (state, reason) != self._state:
            self._state = (state, reason)
            log.info("state", state=state, **wrong)
            self._notifier.status(" ".join([state, *(f"{name}: {why};" for name, why in wrong.items())]))

    def _only_starting(self) -> bool:
        return (
            self._state[0] == "starting"
            and self.changeover.problem is None
            and not self.publisher.holds_passes_back
            and all(camera.state in ("starting", "ready") for camera in self.station.cameras)
        )

    # -- shutdown -----------------------------------------------------------------------------------

    def _shutdown(self, running: ExitStack) -> None:
        """In the reverse order of starting, so that each part can still hand on what it has.

        1. cameras: all are signalled, then joined, so nothing new comes in
        2. changeover: a change that is under way is given up at its next step, every command answered
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
