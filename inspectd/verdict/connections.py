"""The accepted connections of one bound socket: how many there are, whose they are, and how to end one."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
import zmq
from zmq.utils.monitor import recv_monitor_message

from inspectd.verdict.seldom import Seldom

log = structlog.get_logger(__name__)

EVENTS_A_TURN = 200
MAX_CONNECTIONS = 200
"""Of one socket; a further one is ended at once. Each needs a file descriptor, and cameras need some too."""
MAX_UNREAD_BYTES = 4 * 1024 * 1024
PINGS_BYTES_S = 256
"""What a connection may bring without one whole message: a long frame, and ZeroMQ's own heartbeats for ever."""
_FAILED = zmq.Event.HANDSHAKE_FAILED_NO_DETAIL | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
_WHY_FAILED = "the peer speaks no ZeroMQ, no or another security (CURVE), or has the wrong server key"
_TCP_INFO_BYTES_RECEIVED = 128  # offset in Linux' struct tcp_info, 8 bytes


@dataclass(slots=True)
class _Connection:
    keys: set[bytes] = field(default_factory=set)  # of whom messages came over it
    spoke: bool = True  # a whole message came since the last look
    received: int = 0  # bytes that it had brought when it was seen to have spoken
    since: float = 0.0  # when that was, monotonic seconds


class Connections:
    """What the monitor and the messages of a socket tell about its connections. Belongs to the socket's thread.

    libzmq has no call that ends a connection. But the monitor names the file descriptor of each one, and every
    message the descriptor it came from and, with CURVE, the key: a connection that is shut down at its descriptor
    ends for libzmq as if the peer had gone. A descriptor that was closed can be another connection a moment later,
    and what is known of it can be of the one before. So `keep` errs on the side of ending: who has a valid key
    connects again at once. It never touches a descriptor that is no connection to this very socket.
    """

    def __init__(self, bound: zmq.Socket[bytes], name: str) -> None:
        """Watch a socket that is not bound yet. `name` is what the log calls it."""
        self.monitor = bound.get_monitor_socket(zmq.Event.ACCEPTED | zmq.Event.DISCONNECTED | _FAILED)
        self._bound = bound
        self._name = name
        self._open: dict[int, _Connection] = {}  # by file descriptor
        self._failed = Seldom()
        self._full = Seldom()

    def __len__(self) -> int:
        return len(self._open)

    def read_monitor(self) -> bool:
        """Take up what the monitor has to tell, so much in one turn that a storm of strangers delays nothing.

        True when that was all.
        """
        for _ in range(EVENTS_A_TURN):
            if not self.monitor.poll(0):
                return True
            event = recv_monitor_message(self.monitor)
            if event["event"] == zmq.Event.ACCEPTED:
                self._open[event["value"]] = _Connection()
                if len(self._open) > MAX_CONNECTIONS and self._end(event["value"]):
                    self._log_full()
            elif event["event"] == zmq.Event.DISCONNECTED:
                self._open.pop(event["value"], None)
            elif (more := self._failed.due()) is not None:
                log.warning("handshake_failed", socket=self._name, reason=_WHY_FAILED, not_logged_since=more)
        return False

    def seen(self, frame: zmq.Frame) -> bytes | None:
        """Note whose connection a message came over, by its last frame; the public key, None without CURVE."""
        key = _key_of(frame)
        with suppress(zmq.ZMQError):
            number = int(frame.get(zmq.SRCFD))
            if number not in self._open:
                self.read_monitor()  # the message can be faster than the news of its connection
            if connection := self._open.get(number):
                connection.spoke = True
                if key is not None:
                    connection.keys.add(key)
        return key

    def keep(self, valid: Callable[[bytes], bool]) -> bool:
        """End every connection of which it is not certain that all of its keys are valid.

        False when that could not be done in full, and has to be tried again.
        """
        if not self.read_monitor():
            return False
        doubtful = [number for number, peer in self._open.items() if not peer.keys or not all(map(valid, peer.keys))]
        outcomes = [self._end(number) for number in doubtful]
        return None not in outcomes

    def end_endless(self) -> None:
        """End connections over which more and more comes and never a whole message. To be called often.

        libzmq limits the size of a frame and the number of messages, but not the frames of one message, and holds
        them until the last one is there: without this, one peer could fill the memory.
        """
        now = time.monotonic()
        for number, peer in self._open.items():
            received = _bytes_received(number)
            if received is None:
                continue
            if peer.spoke:
                peer.spoke, peer.received, peer.since = False, received, now
            elif received - peer.received > MAX_UNREAD_BYTES + PINGS_BYTES_S * (now - peer.since) and self._end(number):
                peer.spoke = True
                log.warning("connection_ended", socket=self._name, reason="a message without end")

    def close(self) -> None:
        self._bound.disable_monitor()
        self.monitor.close(linger=0)

    def _log_full(self) -> None:
        if (more := self._full.due()) is not None:
            why = f"there are {MAX_CONNECTIONS} already"
            log.warning("connection_refused", socket=self._name, reason=why, not_logged_since=more)

    def _end(self, number: int) -> bool | None:
        """True when it was ended, False when it is gone or none of ours, None when no descriptor is left to do it."""
        try:
            with _copy_of(number) as connection:
                if not _same_place(connection.getsockname(), self._bound.get_string(zmq.LAST_ENDPOINT)):
                    return False
                # With a reset, not a goodbye: a peer whose window is full would not hear the latter.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)
        except OSError as err:
            return None if err.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM) else False
        return True


def _copy_of(number: int) -> socket.socket:
    """A second descriptor of a socket, to be closed by itself.

    Raises:
        OSError: it is closed, no socket, or there are no more descriptors.
    """
    copy = os.dup(number)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _key_of(frame: zmq.Frame) -> bytes | None:
    """The public key (Z85) of the client that a frame came from; None without CURVE."""
    try:
        return str(frame.get("User-Id")).encode()
    except zmq.ZMQError:
        return None


def _same_place(local: object, endpoint: str) -> bool:
    """Whether a socket's local address is of the endpoint: the port, or the path."""
    if isinstance(local, tuple):
        return endpoint.startswith("tcp://") and endpoint.rpartition(":")[2] == str(local[1])
    name = local.decode(errors="surrogateescape") if isinstance(local, bytes) else str(local)
    return endpoint == f"ipc://{name}"


def _bytes_received(number: int) -> int | None:
    """What a TCP connection has brought since it was made; None where the kernel does not tell."""
    try:
        with _copy_of(number) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES_RECEIVED + 8)
        return int(struct.unpack_from("Q", info, _TCP_INFO_BYTES_RECEIVED)[0])
    except (OSError, struct.error):  # gone, of ipc, or a kernel that tells less
        return None
