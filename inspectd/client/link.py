"""The client's own thread: it owns both sockets, watches the heartbeat, and never waits for the user.

    verdict stream ──SUB──>  thread "inspectd-client"  ──> Inbox ──> receive()
    control socket <─DEALER─>         │ ^
                               fail_safe  requests of the user's threads

What full means, place by place:
- the inbox (`queue_size`): see `Continuity`; messages are turned away and asked for later, or told as lost;
- the SUB socket: the daemon keeps `publish.send_queue` messages for us, then drops; found as a hole;
- requests of the user (100 at a time): the next is refused with `busy`.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Event as Flag
from typing import Any, TypeVar

import structlog
import zmq

from inspectd.client.commands import Command, ControlRefused, ControlTimeout, Reply, replay
from inspectd.client.connection import Keys, requester, subscriber
from inspectd.client.continuity import REPLAY_S, Ask, Continuity
from inspectd.client.events import Health, Received, Unreadable
from inspectd.client.exchange import Exchange
from inspectd.client.inbox import Inbox
from inspectd.client.supervision import SILENCE_S, Pace, Supervision
from inspectd.client.transit import unix_s
from inspectd.client.wire import parsed, recovered
from inspectd.errors import UsageError
from inspectd.verdict.control_schema import ReplayPage
from inspectd.verdict.schema import HEARTBEAT_TOPIC, Heartbeat, Message
from inspectd.workers import Worker

log = structlog.get_logger(__name__)

T = TypeVar("T")
FailSafe = Callable[[str | None], None]

TURN_S = 0.05
"""Longest sleep of the loop: how exactly it knows when something arrived, and that it stood still itself."""
TURN_MESSAGES = 500
"""Messages read in one turn, between two looks at the heartbeat: a few ten ms."""
MAX_REQUESTS = 100
STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class Wiring:
    """What a client was made with."""

    verdicts: str
    control: str
    topics: tuple[str, ...]
    keys: Keys | None
    fail_safe: FailSafe | None
    replay: bool
    queue_size: int

    def __post_init__(self) -> None:
        if self.queue_size < 1:
            raise UsageError(f"queue_size is {self.queue_size}; it has to be at least 1")


@dataclass(frozen=True, slots=True)
class _Request:
    command: Command[Any]
    answer: Future[Reply]
    asked_at: float  # not when the thread took it: a trigger must not be sent late


class Link:
    """See the module. `start` once, `stop` from anywhere and as often as one likes."""

    def __init__(self, wiring: Wiring, inbox: Inbox) -> None:
        self._wiring = wiring
        self._inbox = inbox
        self._fail_safe = wiring.fail_safe or (lambda reason: None)
        self._worker = Worker("inspectd-client", self._run)
        self._lock = threading.Lock()
        # Guarded by _lock.
        self._requests: deque[_Request] = deque()
        self._under_way = 0
        self._open = False
        self._started = False  # written by start() only

        # Written by the thread only, one reference or number each; any thread may read them.
        self.reason: str | None = "connecting"
        self.heard_at: float | None = None
        self.unreadable = 0
        self.failure: BaseException | None = None  # what ended the thread

        # The thread's own, once it runs; but _wake_in, which is guarded by _lock and writable while _open.
        self._wake_in: socket.socket
        self._wake_out: socket.socket
        self._context: zmq.Context[zmq.Socket[bytes]]
        self._stream: zmq.Socket[bytes]
        self._exchange: Exchange
        self._poller = zmq.Poller()
        self._supervision = Supervision()
        self._pace: Pace
        self._continuity = Continuity(
            wiring.topics, replay=wiring.replay, capacity=wiring.queue_size, emit=inbox.put, room=inbox.room
        )

    # -- any thread ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, then start the thread.

        Raises:
            UsageError: an endpoint is none, its host has no address, or a key cannot be used.
        """
        # Made here, so that the caller gets the error; starting the thread is the hand-over of the sockets.
        self._context = zmq.Context()
        try:
            topics = sorted({*self._wiring.topics, HEARTBEAT_TOPIC})
            self._stream = subscriber(self._context, self._wiring.verdicts, topics, self._wiring.keys)
            control = requester(self._context, self._wiring.control, self._wiring.keys)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._exchange = Exchange(control, self._wiring.control)
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        for source in (self._stream, self._wake_out):
            self._poller.register(source, zmq.POLLIN)
        self._open = self._started = True
        self._worker.start()

    def ask(self, command: Command[T]) -> Future[Reply]:
        """Have a request sent; its future gets the reply, a refusal too, or ControlTimeout.

        Raises:
            ControlRefused: too many are under way (`busy`), or the client is closed (`stopping`).
        """
        answer: Future[Reply] = Future()
        with self._lock:
            if not self._open:
                raise ControlRefused("stopping", "this client is closed, or was not started")
            if self._under_way >= MAX_REQUESTS:
                raise ControlRefused("busy", f"{MAX_REQUESTS} requests of this client have no answer yet")
            self._under_way += 1
            self._requests.append(_Request(command, answer, time.monotonic()))
            self._wake()
        return answer

    @property
    def alive(self) -> bool:
        """Whether a heartbeat was heard just now."""
        heard_at = self.heard_at
        return self._worker.alive and heard_at is not None and time.monotonic() - heard_at <= SILENCE_S

    def stop(self) -> None:
        """End the thread; the last word to `fail_safe` is "closed"."""
        self._worker.signal()
        with self._lock:
            if self._open:
                self._wake()
        if not self._worker.stop(STOP_S) or not self._started:
            self._inbox.close()  # else the thread does, after its last word

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # full of wake-ups that were not read yet
            self._wake_in.send(b"\0")

    # -- the thread "inspectd-client" ---------------------------------------------------------------

    def _run(self, stopping: Flag) -> None:
        try:
            self._pace = Pace(time.monotonic())
            self._tell("connecting")
            while not stopping.is_set():
                self._turn()
        except BaseException as err:
            self.failure = err  # before anybody is told that nothing more will come
            raise
        finally:
            self._end("failed" if self.failure else "closed")

    def _turn(self) -> None:
        due = self._supervision.due
        sleep_s = TURN_S if due is None else min(TURN_S, max(0.0, due - time.monotonic()))
        self._register_control()
        readable = dict(self._poller.poll(math.ceil(sleep_s * 1000)))
        if self._wake_out.fileno() in readable:
            self._wake_out.recv(4096)
        self._read_stream()
        now = time.monotonic()
        self._take_requests()
        self._continuity.tick(now)
        for ask in self._continuity.asks(now):
            self._ask_replay(ask, now)
        self._exchange.turn(now)
        self._look()

    def _register_control(self) -> None:
        self._poller.register(self._exchange.socket, zmq.POLLIN | zmq.POLLOUT * self._exchange.unsent)

    def _read_stream(self) -> None:
        for _ in range(TURN_MESSAGES):
            before = time.monotonic()
            try:
                frames = self._stream.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                self._pace.look(time.monotonic())
                self._pace.read_all(before)
                return
            # The time after, for each message: this process may stand still between any two lines.
            now = time.monotonic()
            self._pace.look(now)
            try:
                self._message(*parsed(frames), now)
            except ValueError as err:
                self._cannot_read(str(err))

    def _message(self, topic: str, body: bytes, message: Message, now: float) -> None:
        if isinstance(message, Heartbeat):
            self._heartbeat(message, now)
        event = Received(topic, message, body, self._pace.arrived(now), recovered=self._pace.stalled)
        if not isinstance(message, Heartbeat):
            self._continuity.message(event)
        elif topic.startswith(self._wiring.topics) and self._inbox.room():
            self._inbox.put(event)

    def _heartbeat(self, beat: Heartbeat, now: float) -> None:
        self._pace.heartbeat(unix_s(beat.published_at), now)
        if self._continuity.heartbeat(beat) and not self._pace.stalled:
            self._supervision.heartbeat(beat.state, beat.reason, now)
            self.heard_at = now
            self._look()  # before any message behind it is handed over

    def _cannot_read(self, why: str) -> None:
        self.unreadable += 1
        if self._inbox.room():
            self._inbox.put(Unreadable(why))

    def _look(self) -> None:
        self._supervision.look(time.monotonic())
        if self._supervision.reason != self.reason:
            self._tell(self._supervision.reason)

    def _tell(self, reason: str | None) -> None:
        self.reason = reason
        self._inbox.put(Health(reason))
        try:
            self._fail_safe(reason)
        except Exception:  # the user's; supervision goes on
            log.exception("fail_safe_raised", reason=reason)

    def _end(self, reason: str) -> None:
        with self._lock:
            self._open = False
            left = list(self._requests)
        try:
            self._tell(reason)
        finally:
            for request in left:
                self._answer(request, ControlTimeout("the client was closed before an answer came"))
            self._exchange.end()
            self._inbox.close()
            self._context.destroy(linger=0)
            self._wake_in.close()
            self._wake_out.close()

    # -- requests -----------------------------------------------------------------------------------

    def _take_requests(self) -> None:
        with self._lock:
            taken = list(self._requests)
            self._requests.clear()
        for request in taken:
            command = request.command
            self._exchange.ask(command.request, command.timeout_s, request.asked_at, partial(self._answer, request))

    def _answer(self, request: _Request, reply: Reply | ControlTimeout) -> None:
        with self._lock:
            self._under_way -= 1
        if not request.answer.set_running_or_notify_cancel():
            return  # nobody waits any more
        if isinstance(reply, ControlTimeout):
            request.answer.set_exception(reply)
        else:
            request.answer.set_result(reply)

    def _ask_replay(self, ask: Ask, now: float) -> None:
        command = replay(ask.topic, ask.from_seq, ask.boot_id, ask.limit, REPLAY_S)
        self._exchange.ask(command.request, REPLAY_S, now, partial(self._replayed, ask, command))

    def _replayed(self, ask: Ask, command: Command[ReplayPage], reply: Reply | ControlTimeout) -> None:
        now = time.monotonic()
        if isinstance(reply, ControlTimeout):
            self._continuity.refused(ask, "timeout", now)
            return
        try:
            page = command.result(reply)
        except ControlRefused as err:
            self._continuity.refused(ask, err.code, now)
            return
        messages = [event for fields in page.messages if (event := self._recovered(fields, now)) is not None]
        self._continuity.answered(ask, messages, page.next_seq, page.next_boot_id, time.monotonic())

    def _recovered(self, fields: Mapping[str, Any], now: float) -> Received | None:
        try:
            return recovered(fields, now)
        except ValueError as err:
            self._cannot_read(str(err))
            return None
