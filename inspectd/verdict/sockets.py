"""The ZeroMQ side of the line-side contract: verdict stream and control socket, and the one poll that serves them.

One thread owns all of it. It may be made in another one that hands it over before it is used.
"""

from __future__ import annotations

import errno
import math
import socket
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
import zmq
from pydantic import BaseModel

from inspectd.config import ControlConfig, PublishConfig, SecurityConfig
from inspectd.config.sections import is_local
from inspectd.errors import ConfigError
from inspectd.verdict.access import Access
from inspectd.verdict.connections import Connections
from inspectd.verdict.control import MAX_FRAME_BYTES, RECEIVE_QUEUE, SEND_QUEUE, Asked, Control
from inspectd.verdict.control_schema import ControlError, ErrorCode
from inspectd.verdict.keyring import Client
from inspectd.workers import Worker

log = structlog.get_logger(__name__)

MAX_SUBSCRIPTION_BYTES = 1024
MAX_SUBSCRIPTIONS = 1000
"""Longest topic a subscriber may ask for, and how many are read in one turn."""
REPLY_LINGER_S = 0.25
"""How long the last replies have to leave: a peer that reads none shall not hold up the end of the stream."""
GUARD_S = 0.1
"""How often the connections are looked at; `serve` waits no longer than this."""

_COMMON: dict[int, int] = {
    zmq.LINGER: 0,
    zmq.HANDSHAKE_IVL: 5000,  # ms
    zmq.TCP_KEEPALIVE: 1,  # a peer whose cable was pulled is gone after a minute
    zmq.TCP_KEEPALIVE_IDLE: 30,
    zmq.TCP_KEEPALIVE_INTVL: 10,
    zmq.TCP_KEEPALIVE_CNT: 3,
}
_ANYBODY = Client("control")


class Sockets:
    """The bound XPUB and ROUTER sockets, their monitors, and the one poll that serves them and whatever else is added.

    Without keys whoever can connect has the role `control`: the addresses are loopback then, or `security.insecure` is
    written out. With keys a client that lost its right loses its open connections too, within about two seconds.
    """

    def __init__(
        self,
        publish: PublishConfig,
        control: ControlConfig,
        security: SecurityConfig,
        *,
        on_subscriptions: Callable[[set[bytes]], None],
        set_subscribers: Callable[[int], None],
        on_request: Callable[[Asked], None],
        on_refused_trigger: Callable[[str, ErrorCode], None],
    ) -> None:
        """Bind both.

        Raises:
            ConfigError: an address cannot be bound, or a key is not usable; the message begins with the key.
        """
        self._on_subscriptions = on_subscriptions
        self._set_subscribers = set_subscribers
        self._handlers: dict[Any, Callable[[], object]] = {}
        self._poller = zmq.Poller()
        self._context = zmq.Context()
        self._xpub = self._context.socket(zmq.XPUB)
        self._router = self._context.socket(zmq.ROUTER)
        self._subscribers = Connections(self._xpub, "publish")
        self._clients = Connections(self._router, "control")
        self._access: Access | None = None
        self._guard_at = 0.0
        self._revoked = 0  # how many revocations were carried out on open connections
        self._control = Control(self._router, self._client_of, on_request, on_refused_trigger)
        try:
            if security.server_key is not None:
                self._access = Access(self._context, security)
            self._bind_both(publish, control)
            if self._access is not None:
                self._access.start()
        except BaseException:
            self.close(0.0)
            raise
        self.endpoint = self._xpub.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self.control_endpoint = self._router.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self.on_readable(self._xpub, self._read_subscriptions)
        self.on_readable(self._subscribers.monitor, self._count_subscribers)
        self.on_readable(self._router, self._control.read)
        self.on_readable(self._clients.monitor, self._clients.read_monitor)
        set_subscribers(0)

    def on_readable(self, source: zmq.Socket[bytes] | int, handler: Callable[[], object]) -> None:
        """Call `handler` from `serve` whenever there is something to read."""
        self._poller.register(source, zmq.POLLIN)
        self._handlers[source] = handler

    def serve(self, timeout_s: float) -> None:
        """Handle what is readable; wait for it at most `timeout_s`."""
        for readable, _ in self._poller.poll(math.ceil(min(timeout_s, GUARD_S) * 1000)):
            self._handlers[readable]()
        self._guard()
        if self._access is not None:
            self._carry_out_revocations(self._access)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Threads that must run beside the one that serves: without them nobody new can connect."""
        return () if self._access is None else (self._access.worker,)

    def _guard(self) -> None:
        now = time.monotonic()
        if now >= self._guard_at:
            self._guard_at = now + GUARD_S
            self._subscribers.end_endless()
            self._clients.end_endless()

    def send(self, topic: bytes, body: bytes) -> None:
        """Queue one message for every subscriber of the topic that has room; never blocks."""
        self._xpub.send(topic, zmq.SNDMORE | zmq.NOBLOCK)
        self._xpub.send(body, zmq.NOBLOCK)

    def reply(self, asked: Asked, result: BaseModel | Mapping[str, Any] | ControlError) -> None:
        """Answer a request, once; never blocks. A peer that has left is no error.

        Raises:
            RuntimeError: it was answered already.
        """
        self._control.reply(asked, result)

    def close(self, linger_s: float) -> bool:
        """Close everything; True when all that was sent left within `linger_s`."""
        # libzmq does not say whether the linger ran out; its timer counts in ms, some of them early.
        in_time = time.monotonic() + linger_s - 0.01
        self._subscribers.close()
        self._clients.close()
        self._xpub.close(linger=int(linger_s * 1000))
        self._router.close(linger=int(min(linger_s, REPLY_LINGER_S) * 1000))
        if self._access is not None:
            self._access.close()
        self._context.term()  # waits for the linger, and not longer
        return time.monotonic() < in_time

    def _bind_both(self, publish: PublishConfig, control: ControlConfig) -> None:
        if control.bind == publish.bind and not publish.bind.endswith(":*"):
            raise ConfigError(f"control.bind: {control.bind} is publish.bind too; choose another address for one")
        for_stream: dict[int, int] = {
            zmq.XPUB_VERBOSE: 1,  # every new subscription is told, also to a topic that has one: it is due a replay
            zmq.SNDHWM: publish.send_queue,
            zmq.MAXMSGSIZE: MAX_SUBSCRIPTION_BYTES,
        }
        self._bind(self._xpub, "publish.bind", publish.bind, for_stream)
        for_requests: dict[int, int] = {
            zmq.ROUTER_MANDATORY: 1,  # a reply that finds no peer or no room is told and not dropped in silence
            zmq.ROUTER_HANDOVER: 1,  # a peer that chose its identity and lost its cable is not locked out by itself
            zmq.RCVHWM: RECEIVE_QUEUE,
            zmq.SNDHWM: SEND_QUEUE,
            zmq.MAXMSGSIZE: MAX_FRAME_BYTES,
        }
        self._bind(self._router, "control.bind", control.bind, for_requests)

    def _bind(self, bound: zmq.Socket[bytes], key: str, bind: str, options: Mapping[int, int]) -> None:
        for option, value in {**_COMMON, **options, zmq.IPV6: int("[" in bind)}.items():
            bound.setsockopt(option, value)
        if self._access is not None:
            self._access.protect(bound)
        elif not is_local(bind):
            log.warning("anybody_can_connect", socket=key, endpoint=bind, reason="security.insecure")
        try:
            if bind.startswith("ipc://"):
                _refuse_taken_path(bind.removeprefix("ipc://"))
            bound.bind(bind)
        except (OSError, zmq.ZMQError) as err:
            raise _bind_error(key, bind, err.errno or 0) from err

    def _read_subscriptions(self) -> None:
        prefixes: set[bytes] = set()
        for _ in range(MAX_SUBSCRIPTIONS):
            try:
                frame = self._xpub.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            self._subscribers.seen(frame)
            data = frame.bytes
            if data[:1] == b"\x01":  # 0 is the end of one; everything else is no business of ours
                prefixes.add(data[1:])
        if prefixes:
            self._on_subscriptions(prefixes)

    def _count_subscribers(self) -> None:
        self._subscribers.read_monitor()
        self._set_subscribers(len(self._subscribers))

    def _client_of(self, frame: zmq.Frame) -> Client | None:
        key = self._clients.seen(frame)
        return _ANYBODY if self._access is None else self._access.client(key)

    def _carry_out_revocations(self, access: Access) -> None:
        revoked = access.revoked
        if revoked == self._revoked:
            return
        done = [each.keep(lambda key: access.client(key) is not None) for each in (self._subscribers, self._clients)]
        if all(done):
            self._revoked = revoked


def _refuse_taken_path(path: str) -> None:
    """libzmq removes whatever lies at an ipc path before it binds, a living daemon's socket included.

    Raises:
        OSError: something lies there that is not a dead socket.
    """
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            raise FileExistsError(errno.EEXIST, path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(path) == 0:
            raise OSError(errno.EADDRINUSE, path)


def _bind_error(key: str, bind: str, number: int) -> ConfigError:
    if number == errno.EADDRINUSE:
        return ConfigError(f"{key}: {bind}: address in use; is another inspectd running? choose another address")
    if number == errno.EEXIST:
        return ConfigError(f"{key}: {bind}: a file is there that is no socket; choose another path")
    return ConfigError(f"{key}: {bind}: cannot be bound: {zmq.strerror(number)}")
