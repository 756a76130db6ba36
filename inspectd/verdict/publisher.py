"""The verdict stream: one thread that owns the ZeroMQ sockets, numbers every message and sends it.

    any thread ──publish(), set_status()──> mailbox ──> thread "zeromq" ──> XPUB ──> subscribers
                                                              └──> ledger, metrics

What full means, place by place:
- the mailbox (10,000 outcomes): `publish` waits for room; after 1 s the publisher counts as broken, the
  outcome is counted as dropped("unpublished") and `on_failure` ends the daemon. Nothing is lost unseen.
- a subscriber's send queue (`publish.send_queue` messages): this subscriber loses messages and sees so by
  the gap in `seq`, or by the heartbeat's newest `seq`; the others lose nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Literal, Protocol

from inspectd.config import PublishConfig
from inspectd.errors import InspectdError
from inspectd.observe.ledger import Ledger
from inspectd.verdict.decide import Outcome
from inspectd.verdict.mailbox import Mailbox
from inspectd.verdict.message import VerdictMaker
from inspectd.verdict.schema import (
    HEARTBEAT_TOPIC,
    CameraStatus,
    Heartbeat,
    Message,
    State,
    Verdict,
    encode,
    status_topic,
    timestamp,
    verdict_topic,
)
from inspectd.verdict.sockets import Sockets
from inspectd.workers import Deadline, Worker

HEARTBEAT_S = 0.5
CAPACITY = 10_000
BLOCK_S = 1.0
TURN = 64
"""Messages sent in one turn of the loop, between two looks at the sockets and the heartbeat: a few ms."""

Observe = Callable[[float], None]


class PublisherMetrics(Protocol):
    """The part of the metrics that the publisher fills. Seconds."""

    def stage(self, name: Literal["publish"]) -> Observe: ...
    def capture_to_verdict(self, camera: str) -> Observe: ...
    def set_subscribers(self, n: int) -> None: ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    outcome: Outcome
    since: float  # monotonic seconds


@dataclass(frozen=True, slots=True)
class _Status:
    camera: str
    state: State
    reason: str | None


@dataclass(slots=True)
class _Topic:
    wire: bytes
    seq: int = 0
    last: Verdict | CameraStatus | None = None


class Publisher:
    """Publishes verdicts, camera states and the heartbeat. See the module for what full means.

    Subscribers are counted as open connections to the stream, which is what the monitor of the socket
    tells for sure; a peer that does not speak ZeroMQ is disconnected after a few seconds.
    """

    def __init__(
        self,
        config: PublishConfig,
        *,
        boot_id: str,
        config_hash: str,
        cameras: Sequence[str],
        ledger: Ledger,
        metrics: PublisherMetrics,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.endpoint = config.bind
        self.last_beat = time.monotonic()  # of the loop's last turn; written by the thread only
        self._config = config
        self._boot_id = boot_id
        self._cameras = tuple(cameras)
        self._ledger = ledger
        self._on_failure = on_failure
        self._set_subscribers = metrics.set_subscribers
        self._observe_publish = metrics.stage("publish")
        self._observe_total = {camera: metrics.capture_to_verdict(camera) for camera in cameras}
        self._mailbox: Mailbox[_Waiting | _Status] = Mailbox(CAPACITY)
        self._worker = Worker("zeromq", self._run, on_failure)
        self._state: State = "starting"  # one reference, written by any thread, read by the heartbeat
        self._stop_by = Deadline(0.0)  # written by stop() before it signals
        self._drained = True  # written by the thread as it ends

        # From here on the thread's own, once it runs.
        self._sockets: Sockets
        self._topics: dict[str, _Topic] = {}
        self._verdict_topics: dict[tuple[str, str], _Topic] = {}
        self._heartbeat_at = 0.0
        self._heartbeat_seq = 0
        self._maker = VerdictMaker(boot_id, config_hash)

    # -- any thread ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Bind, then start the thread.

        Raises:
            ConfigError: `publish.bind` cannot be bound.
        """
        # Bound here, so that the caller gets the error; starting the thread is the hand-over of the sockets.
        try:
            self._sockets = Sockets(self._config, self._replay, self._set_subscribers)
        except BaseException:
            self._mailbox.release()
            raise
        self._sockets.on_readable(self._mailbox.fd, self._mailbox.woken)
        self.endpoint = self._sockets.endpoint
        self._drained = False
        self.last_beat = self._heartbeat_at = time.monotonic()
        self._worker.start()

    def publish(self, outcome: Outcome) -> None:
        """Hand over one outcome; its ticket is settled once it was sent.

        Never raises: after `stop` the ticket is settled as dropped("shutdown"), and when there was no room
        for a second as dropped("unpublished"), which is a failure of the publisher and reported as such.
        """
        try:
            if not self._mailbox.put(_Waiting(outcome, time.monotonic()), BLOCK_S):
                self._ledger.dropped(outcome.ticket, "shutdown")
        except TimeoutError:
            self._ledger.dropped(outcome.ticket, "unpublished")
            self._mailbox.close()  # nobody else shall wait for a second
            self._on_failure(InspectdError(f"publisher: {CAPACITY} messages wait and none was sent for {BLOCK_S} s"))

    def set_status(self, camera: str, state: State, reason: str | None) -> None:
        """Publish a camera's state; a repeat of the last one says nothing new and is not sent."""
        if camera not in self._observe_total:
            raise KeyError(camera)
        self._mailbox.put(_Status(camera, state, reason))

    def set_state(self, state: State) -> None:
        """The state that heartbeats carry from now on."""
        self._state = state

    def stop(self, timeout_s: float) -> bool:
        """Send everything that waits and say goodbye; True when all of it went out in time.

        Every camera's last status is `fault` with the reason `stopped`, the last heartbeat says `fault`:
        whoever listens learns at once that no verdict will come, and not by silence. "Out" means handed
        to the kernel for every connected subscriber; one that does not read costs the whole `timeout_s`.
        """
        if not self._worker.stopping.is_set():
            self._stop_by = Deadline(timeout_s)
        self._worker.signal()
        self._mailbox.close()
        gone = self._worker.stop(timeout_s)
        if gone:
            self._mailbox.release()  # the thread did, if there ever was one
        return gone and self._drained

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._worker.alive

    # -- the thread "zeromq" ------------------------------------------------------------------------

    def _run(self, stopping: Event) -> None:
        linger_s = 0.0
        try:
            for camera in self._cameras:
                self._send_status(_Status(camera, "starting", None))
            while not stopping.is_set():
                self._turn()
            if self._send_the_rest():
                linger_s = self._stop_by.left() * 0.9
        finally:
            self._mailbox.release()
            for left in self._mailbox.take(len(self._mailbox)):
                if isinstance(left, _Waiting):
                    self._ledger.dropped(left.outcome.ticket, "unpublished")
            self._drained = self._sockets.close(linger_s)

    def _turn(self) -> None:
        now = self.last_beat = time.monotonic()
        if now >= self._heartbeat_at:
            self._send_heartbeat(self._state)
            # By the clock, so that lateness does not add up; beats missed in a pause are not made up for.
            self._heartbeat_at += HEARTBEAT_S
            if self._heartbeat_at <= now:
                self._heartbeat_at = now + HEARTBEAT_S
        self._sockets.serve(self._heartbeat_at - now if self._mailbox.may_sleep() else 0.0)
        self._send_waiting()

    def _send_waiting(self) -> None:
        for item in self._mailbox.take(TURN):
            if isinstance(item, _Waiting):
                self._send_verdict(item)
            else:
                self._send_status(item)

    def _send_the_rest(self) -> bool:
        while len(self._mailbox):
            if self._stop_by.passed:
                return False
            self._send_waiting()
        for camera in self._cameras:
            self._send_status(_Status(camera, "fault", "stopped"))
        self._send_heartbeat("fault")
        return True

    def _send_verdict(self, waiting: _Waiting) -> None:
        outcome = waiting.outcome
        ticket = outcome.ticket
        topic = self._verdict_topics.get((ticket.camera, ticket.roi))
        if topic is None:
            topic = self._topic(verdict_topic(ticket.camera, ticket.roi))
            self._verdict_topics[ticket.camera, ticket.roi] = topic
        message = self._maker.make(outcome, topic.seq + 1)
        self._send(topic, message)
        reason = message.reason or ("empty" if message.verdict == "no_result" else "")
        self._ledger.verdict(ticket, message.verdict, reason, message.label if message.verdict == "fail" else None)
        now = time.monotonic()
        self._observe_publish(now - waiting.since)
        self._observe_total[ticket.camera](now - outcome.arrival)

    def _send_status(self, status: _Status) -> None:
        topic = self._topic(status_topic(status.camera))
        last = topic.last
        if isinstance(last, CameraStatus) and (last.state, last.reason) == (status.state, status.reason):
            return
        message = CameraStatus(
            boot_id=self._boot_id,
            seq=topic.seq + 1,
            camera=status.camera,
            state=status.state,
            reason=status.reason,
            published_at=timestamp(time.time()),
        )
        self._send(topic, message)

    def _send_heartbeat(self, state: State) -> None:
        self._heartbeat_seq += 1
        message = Heartbeat(
            boot_id=self._boot_id,
            seq=self._heartbeat_seq,
            state=state,
            topics={name: topic.seq for name, topic in self._topics.items()},
            published_at=timestamp(time.time()),
        )
        self._sockets.send(HEARTBEAT_TOPIC.encode(), self._encoded(message))

    def _send(self, topic: _Topic, message: Verdict | CameraStatus) -> None:
        self._sockets.send(topic.wire, self._encoded(message))
        topic.seq = message.seq
        topic.last = message

    def _replay(self, prefixes: set[bytes]) -> None:
        """Repeat the last message of every topic that a new subscription asks for, as it was but `replayed`."""
        for topic in self._topics.values():
            if topic.last is not None and topic.wire.startswith(tuple(prefixes)):
                self._sockets.send(topic.wire, self._encoded(topic.last.model_copy(update={"replayed": True})))

    def _encoded(self, message: Message) -> bytes:
        return encode(message, self._config.encoding)

    def _topic(self, name: str) -> _Topic:
        return self._topics.setdefault(name, _Topic(name.encode()))
