"""The camera: supervises one source. It alone knows retry, backoff, stalls and replacement.

Each attempt is a *generation*: one thread, one source, used once. `supervise()`, called by the
daemon's main loop, watches the newest generation, retires it when it is silent for too long, and
starts the next one when its time has come:

    opening ──open()──> streaming ──error, end, stall──> retired ──thread ended, or given up──> next

The race that matters: a thread that was given up may wake up minutes later, with a frame in its
hands. To reach the sink a frame needs its generation to be not retired, checked under `_lock`, which
in the same step marks the generation as delivering; and `supervise()` retires no generation that is
delivering. So at the moment of retirement no frame of the old generation is inside gate or sink, from
then on none enters, and the next generation, started later, is alone there. The lock is held for
these checks and for status changes (whose order it keeps), never while a source, the gate or the sink
works.

Time in the sink is not counted as the camera's silence: a recording waits there for the engine. A live
camera's sink that keeps a frame for that long is a fault that people see, but its thread is not
replaced: the sink is our own code, its next caller would hang as well, and the frame that it holds is
still owed a verdict.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal, Protocol

import structlog

from inspectd.capture.backoff import Backoff
from inspectd.capture.gate import Gate
from inspectd.capture.generation import Generation
from inspectd.capture.quality import Limits, Quality
from inspectd.capture.refusals import Refusals
from inspectd.capture.source import FrameSink, Source, make_source
from inspectd.config import CameraConfig
from inspectd.errors import CaptureReason, InspectdError
from inspectd.frame import Frame
from inspectd.source_spec import redact
from inspectd.verdict.schema import State
from inspectd.workers import HANG_S, LATE_S

log = structlog.get_logger(__name__)

RETRY_FIRST_S: Final = 0.25
RETRY_LIMIT_S: Final = 1.0
"""With a connection, a key frame and a settled clock on top, verdicts are back within 5 s of the camera."""
AUTH_RETRY_S: Final = 30.0
"""Cameras lock an account after a few wrong passwords."""
HEALTHY_S: Final = 10.0
"""A connection that delivered for so long was a good one: the backoff starts anew."""
OPEN_GRACE_S: Final = 1.0
"""On top of `connect_timeout_s`, so that a source's own limit, with its better message, comes first."""
GIVE_UP_S: Final = 1.0
"""How long a retired thread may take to come back from its library and close."""
MAX_ABANDONED: Final = 8
BLIND_S: Final = 1.0
"""`supervise()` was not called for so long: this process itself was held up."""

OnStatus = Callable[[str, State, str | None], None]


class CameraMetrics(Protocol):
    """The part of the metrics that a camera fills."""

    def frame_arrived(self, camera: str, at_monotonic: float) -> None: ...
    def camera_up(self, camera: str, up: bool) -> None: ...
    def reconnect(self, camera: str, reason: CaptureReason) -> None: ...
    def stage(self, name: Literal["decode"]) -> Callable[[float], None]: ...
    def image(self, camera: str, seen: Mapping[str, Quality]) -> None: ...


class Camera:
    """One configured camera, from its first attempt to the end of the process.

    `on_status(name, state, reason)` is called on every change, in order, from several threads and with
    the camera's lock held: it must return at once and not call back. `fault` carries a `CaptureReason`,
    the gate's reason, or an `ImageFault`. `finished` becomes true, in the state `fault`, when nothing comes
    any more: with the reason `finished` when a recording was played to its end and all of it was delivered,
    with another when it could not be read on.
    """

    def __init__(
        self,
        config: CameraConfig,
        sink: FrameSink,
        metrics: CameraMetrics,
        on_status: OnStatus,
        make_source: Callable[[CameraConfig], Source] = make_source,
        *,
        limits: Mapping[str, Limits] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = config.name
        # Written under _lock, read anywhere.
        self.state: State = "starting"
        self.reason: str | None = None
        self.finished = False

        self._config = config
        self._sink = sink
        self._metrics = metrics
        self._observe_decode = metrics.stage("decode")
        self._on_status = on_status
        self._make_source = make_source
        self._clock = clock
        self._stopping = threading.Event()

        # Held while a frame is with the gate and the sink. Before _lock where both are.
        self._passing = threading.Lock()
        # Touched only by the generation that is delivering, or while paused.
        self._gate = Gate(config, limits)
        self._refusals = Refusals(clock())

        self._lock = threading.Lock()
        # Guarded by _lock.
        self._generation: Generation | None = None
        self._given_up: list[Generation] = []
        self._identity = config.identity  # that of the first connection where none is configured
        self._backoff = Backoff(RETRY_FIRST_S, RETRY_LIMIT_S)
        self._retry_at = 0.0
        self._retry_reason: CaptureReason = "internal"
        self._supervised_at = 0.0

    # -- called by the owner --------------------------------------------------------------------------

    def start(self) -> None:
        """Report `starting` and begin the first attempt. Once."""
        now = self._clock()
        with self._lock:
            self._supervised_at = now
            self._metrics.camera_up(self.name, up=False)
            self._on_status(self.name, self.state, self.reason)
            self._start_generation(now)

    def supervise(self) -> None:
        """Watch the capture thread, replace it, retry. To be called about ten times a second; never blocks.

        Raises:
            InspectdError: more than `MAX_ABANDONED` threads hang in libraries, or one in our own code; only a new
                process helps.
        """
        now = self._clock()
        silent = False
        with self._lock:
            generation = self._generation
            if generation is None or self._stopping.is_set() or self.finished:
                return
            self._forgive_blindness(generation, now)
            self._given_up = [given_up for given_up in self._given_up if given_up.worker.alive]
            if not generation.retired:
                silent = self._retire_if_silent(generation, now)
            else:
                self._give_up_if_hung(generation, now)
                if now >= self._retry_at and (generation.abandoned or not generation.worker.alive):
                    self._metrics.reconnect(self.name, self._retry_reason)
                    self._start_generation(now)
            abandoned = len(self._given_up)
        if silent:
            generation.signal()  # not under the lock: it reaches into a library
        if refused := self._refusals.summary(now):
            log.warning("frames_refused", camera=self.name, **refused)
        if self._config.quality is not None:
            self._metrics.image(self.name, {} if generation.retired else self._gate.seen)
        if abandoned > MAX_ABANDONED:
            raise InspectdError(
                f"camera {self.name}: {abandoned} capture threads hang in library calls; "
                "the process must be restarted, check the camera and its driver"
            )

    @contextmanager
    def paused(self, timeout_s: float) -> Iterator[None]:
        """While it lasts no frame is with the gate or the sink, and none gets there: they may be changed.

        Raises:
            TimeoutError: a frame was not taken for so long.
        """
        if not self._passing.acquire(timeout=timeout_s):
            raise TimeoutError
        try:
            yield
        finally:
            self._passing.release()

    def adopt(self, config: CameraConfig, limits: Mapping[str, Limits] | None) -> None:
        """Go by other regions and limits; the source goes on. Only while `paused`."""
        assert self._passing.locked()
        self._config = config
        self._gate.adopt(config, limits)
        self._metrics.image(self.name, self._gate.seen)

    def misfit(self, config: CameraConfig) -> str | None:
        """What of another configuration's regions does not fit the frames of this camera, or None."""
        return self._gate.unfit(config)

    def signal(self) -> None:
        """Ask to stop, from anywhere, any number of times; takes no lock and does not wait.

        A generation that `supervise()` starts at the same time cannot be missed: here the flag is set
        before the generation is read, there the generation is stored before the flag is read.
        """
        self._stopping.set()
        generation = self._generation
        if generation is not None:
            generation.signal()

    def join(self, timeout_s: float) -> bool:
        """Wait for the capture thread; False when it is still alive. Afterwards no new frame is delivered.

        Threads that were given up are not waited for.
        """
        generation = self._generation
        if generation is None or generation.abandoned or generation.worker.join(timeout_s):
            return True
        with self._lock:
            generation.retired = True
        return False

    @property
    def abandoned(self) -> int:
        """Threads that were given up and still hang."""
        with self._lock:
            return sum(given_up.worker.alive for given_up in self._given_up)

    # -- supervision: in the owner's thread, under the lock ---------------------------------------------

    def _start_generation(self, now: float) -> None:
        assert self._lock.locked()
        config = self._config.model_copy(update={"identity": self._identity})
        generation = self._generation = Generation(config, self._make_source, self, now)
        if self._stopping.is_set():
            generation.worker.signal()
        generation.worker.start()

    def _forgive_blindness(self, generation: Generation, now: float) -> None:
        """Time in which this process did not run (stopped, suspended) is not the camera's silence.

        Excused once between two frames, so that a main loop that is always late still finds a stall.
        """
        blind_s = now - self._supervised_at
        self._supervised_at = now
        if blind_s > BLIND_S and not generation.forgiven:
            generation.forgiven = True
            generation.since = min(now, generation.since + blind_s)

    def _retire_if_silent(self, generation: Generation, now: float) -> bool:
        """Retire a generation that is silent for too long, or lost its thread. True when that was so."""
        silent_s = now - generation.since
        reason: CaptureReason
        if generation.delivering:
            if self._config.live and silent_s > self._config.stall_timeout_s:
                self._set_state("fault", "hung", f"a frame has not been taken for {silent_s:.1f} s")
                if silent_s > self._config.stall_timeout_s + LATE_S + HANG_S:
                    # Nobody can take the frame out of its hands, so nobody can take its place.
                    raise InspectdError(
                        f"camera {self.name}: a frame has not been taken for {silent_s:.0f} s; only a restart helps"
                    )
            return False
        if not generation.worker.alive:
            reason, detail = "internal", "the capture thread is gone"
        elif generation.opened_at is None and silent_s > self._config.connect_timeout_s + OPEN_GRACE_S:
            reason, detail = "timeout", f"not open after {silent_s:.1f} s"
        elif generation.opened_at is not None and silent_s > self._config.stall_timeout_s:
            reason, detail = "stall", f"no frame for {silent_s:.1f} s"
        else:
            return False
        self._lose(generation, reason, detail)
        return True

    def _give_up_if_hung(self, generation: Generation, now: float) -> None:
        if generation.abandoned or now < generation.give_up_at or not generation.worker.alive:
            return
        generation.abandoned = True
        self._given_up.append(generation)
        self._retry_reason = "hung"
        detail = f"the capture thread did not end within {GIVE_UP_S} s and was given up, {len(self._given_up)} so far"
        self._set_state("fault", "hung", detail)

    # -- told by the capture thread -----------------------------------------------------------------------

    def opened(self, generation: Generation) -> bool:
        """Its source is open; False when the generation was retired in the meantime."""
        with self._lock:
            if generation.retired:
                return False
            generation.opened_at = generation.since = self._clock()
            self._gate.restart()
            self._refusals.over()
            if self._identity is None and generation.source is not None:
                self._identity = generation.source.identity
            return True

    def deliver(self, generation: Generation, frame: Frame) -> bool:
        """Hand a frame to the gate and the sink; False when the generation was retired in the meantime."""
        with self._lock:
            if generation.retired:
                return False
            generation.delivering = True
            generation.since = self._clock()
        try:
            self._metrics.frame_arrived(self.name, frame.arrival)
            self._observe_decode(frame.decode_s)
            with self._passing:
                self._pass_on(frame)
        finally:
            with self._lock:
                generation.delivering = generation.forgiven = False
                generation.since = self._clock()
        return True

    def _pass_on(self, frame: Frame) -> None:
        # The state is read without the lock: nobody else changes it while a generation delivers, but for
        # the fault of a sink that hangs, and that is set long after it was read here.
        now = self._clock()
        admission = self._gate.admit(frame, now)
        if admission == "admitted":
            self._refusals.over()
            if self.state != "ready":
                self._change("ready", None, f"{frame.width}x{frame.height} {frame.format}")
            self._sink.inspect(frame)
        elif admission == "max_fps":
            self._sink.skip(frame, admission)
        else:
            self._sink.refuse(frame, admission)
            self._refusals.count(admission, now)
            fault = self._gate.fault(admission)
            if (self.state, self.reason) != ("fault", fault) and self._refusals.is_fault(admission, now):
                self._change("fault", fault, self._gate.detail(frame, admission))
            if self._config.live:
                self._refusals.raise_if_hopeless(admission, now)

    def _change(self, state: State, reason: str | None, detail: str) -> None:
        with self._lock:
            self._set_state(state, reason, detail)

    def ended(self, generation: Generation, reason: CaptureReason, detail: str, err: Exception | None) -> None:
        """The source raised: unless that was our doing, the camera is away, or a recording is done."""
        with self._lock:
            if generation.retired or self._stopping.is_set():
                return
            if reason == "finished" or not self._config.live:
                # Also a recording that cannot be read on: playing it again from its start would judge it twice.
                generation.retired = True
                self.finished = True
                self._set_state("fault", reason, detail, err)
            else:
                self._lose(generation, reason, detail, err)

    # -- state: under the lock ------------------------------------------------------------------------------

    def _lose(self, generation: Generation, reason: CaptureReason, detail: str, err: Exception | None = None) -> None:
        """Retire the generation, say why, and plan the next attempt."""
        assert self._lock.locked()
        assert not generation.delivering
        now = self._clock()
        generation.retired = True
        generation.give_up_at = now + GIVE_UP_S
        if generation.opened_at is not None and generation.since - generation.opened_at >= HEALTHY_S:
            self._backoff.reset()
        self._retry_at = now + (AUTH_RETRY_S if reason == "auth" else self._backoff.next_s())
        self._retry_reason = reason
        self._set_state("fault", reason, detail, err)

    def _set_state(self, state: State, reason: str | None, detail: str, err: Exception | None = None) -> None:
        """Report a change: status, metric, and one log line. The same state again is no news."""
        assert self._lock.locked()
        if (state, reason) == (self.state, self.reason):
            return
        self.state, self.reason = state, reason
        self._metrics.camera_up(self.name, up=state == "ready")
        self._on_status(self.name, state, reason)
        if state == "ready":
            log.info("camera_ready", camera=self.name, detail=detail)
        elif reason == "finished":
            log.info("camera_finished", camera=self.name)
        else:
            log.warning("camera_fault", camera=self.name, reason=reason, detail=redact(detail), exc_info=err)
