"""The verdict stream: one thread that owns the ZeroMQ sockets, numbers every message and sends it.

    any thread ──publish(), set_status()──> mailbox ──> thread "zeromq" ──> XPUB ──> subscribers
    clients ──> ROUTER ──> thread "zeromq": triggers and status answered there, the rest by `commands`
                                  └──> journal, evidence, ledger, metrics

What full means, place by place:
- the mailbox (10,000 outcomes): `publish` waits for room; after 1 s the publisher counts as broken, the
  outcome is counted as dropped("unpublished") and `on_failure` ends the daemon. Nothing is lost unseen.
- a subscriber's send queue (`publish.send_queue` messages): this subscriber loses messages and sees so by
  the gap in `seq`, or by the heartbeat's newest `seq`; the others lose nothing.
- a camera's triggers (`queue_size`): the next one is refused as `busy`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Event
from typing import Any, Protocol

from pydantic import BaseModel

from inspectd.config import ControlConfig, PublishConfig, SecurityConfig
from inspectd.errors import InspectdError
from inspectd.observe.ledger import Ledger
from inspectd.trigger import TriggerBoard
from inspectd.verdict.control import Asked
from inspectd.verdict.control_schema import ControlError, ReplayRequest, Request, StatusRequest, TriggerRequest
from inspectd.verdict.decide import Outcome
from inspectd.verdict.mailbox import Mailbox
from inspectd.verdict.schema import HEARTBEAT_TOPIC, State, encode
from inspectd.verdict.sockets import Sockets
from inspectd.verdict.stream import MessageJournal, Stream
from inspectd.verdict.teller import Evidence, Roster, Teller, TellerMetrics, Waiting
from inspectd.workers import Deadline, Worker

HEARTBEAT_S = 0.5
CAPACITY = 10_000
BLOCK_S = 1.0
LAST_WORDS_S = 0.1
"""What a stop whose time is over still takes to reach who listens: that no verdict will come."""
TURN = 64
"""Messages sent in one turn of the loop, between two looks at the sockets and the heartbeat: a few ms."""

Answer = Callable[[BaseModel | Mapping[str, Any] | ControlError], None]


class PublisherMetrics(TellerMetrics, Protocol):
    """The part of the metrics that the publisher fills."""

    def set_subscribers(self, n: int) -> None: ...


class Commands(Protocol):
    """What the control socket can ask beyond triggers. Called in the thread "zeromq": must return at once."""

    def status(self, pending_triggers: Callable[[str], int]) -> Mapping[str, Any]: ...
    def replay(self, request: ReplayRequest, answer: Answer) -> None: ...
    def command(self, request: Request, answer: Answer) -> None: ...


@dataclass(frozen=True, slots=True)
class _Status:
    camera: str
    state: State
    reason: str | None


@dataclass(frozen=True, slots=True)
class _Vouched:
    denials: int  # that there had been when this was said
    since: float


@dataclass(frozen=True, slots=True)
class _Reply:
    asked: Asked
    result: BaseModel | Mapping[str, Any] | ControlError


class Publisher:
    """Publishes verdicts, camera states and heartbeats, and answers the control socket.

    `publish`, `set_status`, `set_state`, `vouch` and `use` may be called from any thread, before `start` as well: what
    came before is sent at once when the thread runs. Messages of a topic keep the order of the calls, each
    with the next `seq` from 1. Within one turn a message waits at most for its `TURN - 1` predecessors.

    Until `vouch(True)` every verdict is `no_result(not_ready)`: this is the one place where all of them pass.

    The subscriber count is the number of open connections to the stream, which is what the monitor of the socket
    tells for sure; a peer that does not speak ZeroMQ is disconnected after a few seconds.
    """

    def __init__(
        self,
        config: PublishConfig,
        *,
        boot_id: str,
        roster: Roster,
        ledger: Ledger,
        metrics: PublisherMetrics,
        on_failure: Callable[[BaseException], None],
        control: ControlConfig | None = None,
        security: SecurityConfig | None = None,
        journal: MessageJournal | None = None,
        before_publish: bool = False,
        required: bool = False,
        evidence: Evidence | None = None,
        commands: Commands | None = None,
    ) -> None:
        self.endpoint = config.bind
        self.control_endpoint = ""
        self._config = config
        self._control = control or ControlConfig(bind="tcp://127.0.0.1:*")
        self._security = security or SecurityConfig()
        self._ledger = ledger
        self._journal = journal
        self._before_publish = before_publish
        self._required = required and before_publish
        self._commands = commands
        self._on_failure = on_failure
        self._set_subscribers = metrics.set_subscribers
        self._count_trigger = metrics.trigger
        self._cameras = frozenset(camera.name for camera in roster.cameras)
        self._mailbox: Mailbox[Waiting | _Status | _Vouched | _Reply | Roster] = Mailbox(CAPACITY)
        self.worker = Worker("zeromq", self._run, on_failure)
        self._state: tuple[State, str | None, float] = ("starting", None, math.inf)  # swapped whole, by any thread
        self._denials = 0  # how often `vouch(False)` was called, by one thread at a time; read by any
        self._stop_by = Deadline(0.0)  # written by stop() before it signals
        self._drained = True  # written by the thread as it ends

        # From here on the thread's own, once it runs.
        self._sockets: Sockets
        self._stream: Stream
        self._teller = Teller(
            boot_id, roster, ledger, metrics, self._vouched, journal, evidence, required=self._required
        )
        self._vouched_at: int | None = None  # the denials before the newest word that verdicts may pass
        self._heartbeat_at = 0.0
        self._told_state: tuple[State, str | None] | None = None

    # -- any thread ---------------------------------------------------------------------------------

    @property
    def boards(self) -> Mapping[str, TriggerBoard]:
        """Where the triggered cameras look for triggers."""
        return self._teller.boards

    def start(self) -> None:
        """Bind, then start the thread.

        Raises:
            ConfigError: `publish.bind` or `control.bind` cannot be bound.
        """
        # Bound here, so that the caller gets the error; starting the thread is the hand-over of the sockets.
        try:
            self._sockets = Sockets(
                self._config,
                self._control,
                self._security,
                on_subscriptions=lambda prefixes: self._stream.repeat(prefixes),  # noqa: PLW0108 - there is no stream yet
                set_subscribers=self._set_subscribers,
                on_request=self._on_request,
                on_refused_trigger=self._count_trigger,
            )
        except BaseException:
            self._mailbox.release()
            raise
        self._stream = Stream(
            self._config.encoding, self._sockets.send, self._journal, before_publish=self._before_publish
        )
        self._sockets.on_readable(self._mailbox.fd, self._mailbox.woken)
        self.endpoint = self._sockets.endpoint
        self.control_endpoint = self._sockets.control_endpoint
        self._drained = False
        self._heartbeat_at = time.monotonic()
        self.worker.start()

    def publish(self, outcome: Outcome) -> None:
        """Hand over one outcome; its ticket is settled once it was sent.

        Never raises: after `stop` the ticket is settled as dropped("shutdown"), and when there was no room
        for a second as dropped("unpublished"), which is a failure of the publisher and reported as such.
        """
        try:
            if not self._mailbox.put(Waiting(outcome, time.monotonic()), BLOCK_S):
                self._ledger.dropped(outcome.ticket, "shutdown")
        except TimeoutError:
            self._ledger.dropped(outcome.ticket, "unpublished")
            self._mailbox.close()  # nobody else shall wait for a second
            self._on_failure(InspectdError(f"publisher: {CAPACITY} messages wait and none was sent for {BLOCK_S} s"))

    def set_status(self, camera: str, state: State, reason: str | None) -> None:
        """Publish a camera's state; a repeat of the last one says nothing new and is not sent."""
        if camera not in self._cameras:
            raise KeyError(camera)
        self._mailbox.put(_Status(camera, state, reason))

    def set_state(self, state: State, reason: str | None = None, *, valid_s: float = math.inf) -> None:
        """The state that heartbeats carry from now on, for `valid_s` at most: then it is a fault to say no more."""
        self._state = (state, reason, time.monotonic() + valid_s)

    @property
    def state(self) -> tuple[State, str | None]:
        """The state and its reason, as a heartbeat would say them now."""
        state, reason, valid_until = self._state
        if state != "fault" and time.monotonic() > valid_until:
            return "fault", "main: late"
        return state, reason

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Threads that must run; only after `start`."""
        return (self.worker, *self._sockets.workers)

    def vouch(self, vouched: bool) -> None:
        """Whether verdicts may say pass or fail: the last challenge was passed. By one thread at a time.

        `False` counts at once. `True` counts for what is published after this call: what was handed over before it
        was judged while nobody vouched.
        """
        if vouched:
            self._mailbox.put(_Vouched(self._denials, time.monotonic()))
        else:
            self._denials += 1

    def use(self, roster: Roster) -> None:
        """From what is published after this call on: triggers, parts and heartbeats of another line-up."""
        self._mailbox.put(roster)

    def stop(self, timeout_s: float) -> bool:
        """Send everything that waits and say goodbye; True when all of it went out in time.

        Every open trigger is answered `no_result(not_ready)`, every camera's last status is `fault` with the
        reason `stopped`, the last heartbeat says `fault`: whoever listens learns at once that no verdict will
        come, and not by silence. "Out" means handed to the kernel for every connected subscriber; one that
        does not read costs the whole `timeout_s`. The goodbye is said even where time is over before all waited for it.
        """
        if not self.worker.stopping.is_set():
            self._stop_by = Deadline(timeout_s)
        self.worker.signal()
        self._mailbox.close()
        gone = self.worker.stop(timeout_s + 2 * LAST_WORDS_S)
        if gone:
            self._mailbox.release()  # the thread did, if there ever was one
        return gone and self._drained

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self.worker.alive

    @property
    def holds_passes_back(self) -> bool:
        """Whether no verdict passes at this moment: the journal is required and does not take what is written."""
        return self._required and self._journal is not None and self._journal.state == "failing"

    def _vouched(self) -> bool:
        return self._vouched_at == self._denials

    # -- the thread "zeromq": its loop --------------------------------------------------------------

    def _run(self, stopping: Event) -> None:
        linger_s, all_sent = 0.0, False
        try:
            self._teller.begin(self._stream)
            while not stopping.is_set():
                self._turn()
            all_sent = self._send_the_rest()
            linger_s = max(self._stop_by.left() * 0.9, LAST_WORDS_S)
        finally:
            self._mailbox.release()
            for left in self._mailbox.take(len(self._mailbox)):
                if isinstance(left, Waiting):
                    self._ledger.dropped(left.outcome.ticket, "unpublished")
            self._drained = self._sockets.close(linger_s) and all_sent

    def _turn(self) -> None:
        self.worker.beat()
        now = time.monotonic()
        if now >= self._heartbeat_at or self.state != self._told_state:  # a change does not wait for its beat
            self._send_heartbeat()
        if now >= self._heartbeat_at:
            # By the clock, so that lateness does not add up; beats missed in a pause are not made up for.
            self._heartbeat_at += HEARTBEAT_S
            if self._heartbeat_at <= now:
                self._heartbeat_at = now + HEARTBEAT_S
        wait_s = min(self._heartbeat_at - now, self._teller.wait_s())
        self._sockets.serve(wait_s if self._mailbox.may_sleep() else 0.0)
        self._send_waiting()
        self._teller.due()
        self._stream.flush()

    def _send_waiting(self) -> None:
        for item in self._mailbox.take(TURN):
            match item:
                case Waiting():
                    self._teller.outcome(item)
                case _Status():
                    self._stream.flush()  # what was judged before the camera changed
                    self._teller.status(item.camera, item.state, item.reason)
                case _Reply():
                    self._sockets.reply(item.asked, item.result)
                case _Vouched():
                    if item.denials != self._vouched_at:
                        self._teller.vouched(item.since)
                    self._vouched_at = item.denials
                case Roster():
                    self._stream.flush()  # what the line-up that goes has judged
                    self._teller.use(item)

    def _send_the_rest(self) -> bool:
        """What waits, as far as there is time, and the last words in any case; whether it was everything."""
        while len(self._mailbox) and not self._stop_by.passed:
            self._send_waiting()
            self._stream.flush()
        self._teller.goodbye()
        self._stream.flush()
        self.set_state("fault", "stopped")
        self._send_heartbeat()
        return not len(self._mailbox)

    def _send_heartbeat(self) -> None:
        self._told_state = self.state
        message = self._teller.heartbeat(*self._told_state)
        self._sockets.send(HEARTBEAT_TOPIC.encode(), encode(message, self._config.encoding))

    # -- the control socket -------------------------------------------------------------------------

    def _on_request(self, asked: Asked) -> None:
        def answer(result: BaseModel | Mapping[str, Any] | ControlError) -> None:
            self._mailbox.put(_Reply(asked, result))

        request = asked.request
        try:
            if isinstance(request, TriggerRequest):
                self._teller.accept(request, lambda accepted: self._sockets.reply(asked, accepted))
            elif self._commands is None:
                self._sockets.reply(asked, ControlError("unknown_op", "only triggers are taken here"))
            elif isinstance(request, StatusRequest):
                self._sockets.reply(asked, self._commands.status(self._teller.pending_triggers))
            elif isinstance(request, ReplayRequest):
                self._commands.replay(request, answer)
            else:
                self._commands.command(request, answer)
        except ControlError as refusal:
            self._sockets.reply(asked, refusal)
