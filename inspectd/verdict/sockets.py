"""The ZeroMQ side of the verdict stream: the sockets, their options, and the one poll that serves them.

One thread owns all of it. It may be made in another one that hands it over before it is used.
"""

from __future__ import annotations

import errno
import math
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from inspectd.config import PublishConfig
from inspectd.errors import ConfigError

MAX_SUBSCRIPTION_BYTES = 1024
MAX_SUBSCRIPTIONS = 1000
"""Longest topic a subscriber may ask for, and how many are read in one turn."""


class Sockets:
    """The bound XPUB socket, its monitor, and the one poll that serves them and whatever else is added."""

    def __init__(
        self,
        config: PublishConfig,
        on_subscriptions: Callable[[set[bytes]], None],
        set_subscribers: Callable[[int], None],
    ) -> None:
        self._on_subscriptions = on_subscriptions
        self._set_subscribers = set_subscribers
        self._connections: set[int] = set()  # file descriptors of accepted peers
        self._handlers: dict[Any, Callable[[], None]] = {}
        self._poller = zmq.Poller()
        self._context = zmq.Context()
        self._xpub = self._context.socket(zmq.XPUB)
        self._monitor = self._xpub.get_monitor_socket(zmq.Event.ACCEPTED | zmq.Event.DISCONNECTED)
        try:
            self._bind(config)
        except BaseException:
            self.close(0.0)
            raise
        self.endpoint = self._xpub.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self.on_readable(self._xpub, self._read_subscriptions)
        self.on_readable(self._monitor, self._read_monitor)
        set_subscribers(0)

    def on_readable(self, source: zmq.Socket[bytes] | int, handler: Callable[[], None]) -> None:
        """Call `handler` from `serve` whenever there is something to read."""
        self._poller.register(source, zmq.POLLIN)
        self._handlers[source] = handler

    def serve(self, timeout_s: float) -> None:
        """Handle what is readable; wait for it at most `timeout_s`."""
        for readable, _ in self._poller.poll(math.ceil(timeout_s * 1000)):
            self._handlers[readable]()

    def send(self, topic: bytes, body: bytes) -> None:
        """Queue one message for every subscriber of the topic that has room; never blocks."""
        self._xpub.send(topic, zmq.SNDMORE | zmq.NOBLOCK)
        self._xpub.send(body, zmq.NOBLOCK)

    def close(self, linger_s: float) -> bool:
        """Close everything; True when all that was sent left within `linger_s`."""
        # libzmq does not say whether the linger ran out; its timer counts in ms, some of them early.
        in_time = time.monotonic() + linger_s - 0.01
        self._xpub.disable_monitor()
        self._monitor.close(linger=0)
        self._xpub.close(linger=int(linger_s * 1000))
        self._context.term()  # waits for the linger, and not longer
        return time.monotonic() < in_time

    def _bind(self, config: PublishConfig) -> None:
        options = {
            zmq.XPUB_VERBOSE: 1,  # every new subscription is told, also to a topic that has one: it is due a replay
            zmq.SNDHWM: config.send_queue,
            zmq.LINGER: 0,
            zmq.MAXMSGSIZE: MAX_SUBSCRIPTION_BYTES,
            zmq.HANDSHAKE_IVL: 5000,  # ms
            zmq.TCP_KEEPALIVE: 1,  # a peer whose cable was pulled is gone after a minute
            zmq.TCP_KEEPALIVE_IDLE: 30,
            zmq.TCP_KEEPALIVE_INTVL: 10,
            zmq.TCP_KEEPALIVE_CNT: 3,
            zmq.IPV6: int("[" in config.bind),
        }
        for option, value in options.items():
            self._xpub.setsockopt(option, value)
        try:
            if config.bind.startswith("ipc://"):
                _refuse_taken_path(config.bind.removeprefix("ipc://"))
            self._xpub.bind(config.bind)
        except (OSError, zmq.ZMQError) as err:
            raise _bind_error(config.bind, err.errno or 0) from err

    def _read_subscriptions(self) -> None:
        prefixes: set[bytes] = set()
        for _ in range(MAX_SUBSCRIPTIONS):
            try:
                frame = self._xpub.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            if frame[:1] == b"\x01":  # 0 is the end of one; everything else is no business of ours
                prefixes.add(frame[1:])
        if prefixes:
            self._on_subscriptions(prefixes)

    def _read_monitor(self) -> None:
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            if event["event"] == zmq.Event.ACCEPTED:
                self._connections.add(event["value"])
            else:
                self._connections.discard(event["value"])
        self._set_subscribers(len(self._connections))


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


def _bind_error(bind: str, number: int) -> ConfigError:
    if number == errno.EADDRINUSE:
        return ConfigError(f"publish.bind: {bind}: address in use; is another inspectd running? choose another address")
    if number == errno.EEXIST:
        return ConfigError(f"publish.bind: {bind}: a file is there that is no socket; choose another path")
    return ConfigError(f"publish.bind: {bind}: cannot be bound: {zmq.strerror(number)}")
