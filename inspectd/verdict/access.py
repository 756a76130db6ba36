"""Who may connect: CURVE on both sockets, and the thread that answers libzmq's question at every handshake.

A thread of its own, because it reads files: a disk that hangs holds up newcomers, never a verdict.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from threading import Event

import structlog
import zmq
from zmq.utils import z85

from inspectd.config import SecurityConfig
from inspectd.errors import ConfigError, UsageError
from inspectd.verdict.keyring import Client, Keyring
from inspectd.verdict.keys import Certificate, load_certificate
from inspectd.verdict.seldom import Seldom
from inspectd.workers import LATE_S, Worker

log = structlog.get_logger(__name__)

LOOK_S = 1.0
"""The folder of keys is looked at so often, and at every handshake."""
DOMAIN = b"inspectd"
"""ZAP domain of both sockets. With an empty one libzmq would let everybody in while nobody answers for it."""
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"  # libzmq asks there, RFC 27


def load_keys(config: SecurityConfig) -> tuple[Certificate, Keyring] | None:
    """The server's key and who may connect, or None where no keys are configured.

    Raises:
        ConfigError: a key or the folder is missing or not usable.
    """
    if config.server_key is None or config.client_keys is None:
        return None
    try:
        server = load_certificate(config.server_key, secret=True)
    except UsageError as err:
        raise ConfigError(f"security.server_key: {err}") from None
    return server, Keyring(config.client_keys)


class Access:
    """The server's key, the clients' keys, and the thread "access" that answers handshakes."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], config: SecurityConfig) -> None:
        """Read the keys and take the place where libzmq asks; from now on handshakes wait for `start`.

        Raises:
            ConfigError: a key or the folder is missing or not usable.
        """
        loaded = load_keys(config)
        if loaded is None:
            raise ValueError("no keys are configured")
        self._server, self._keyring = loaded
        self.revoked = 0  # how often somebody lost a right; written by the thread only
        self._refused = Seldom()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._zap = context.socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind(_ZAP_ENDPOINT)
        self.worker = Worker("access", self._run)

    def protect(self, socket: zmq.Socket[bytes]) -> None:
        """Let a socket that is not bound yet take only clients whose key is known."""
        assert self._server.secret is not None
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._server.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # refuse, where nobody answers

    def start(self) -> None:
        self.worker.start()

    def client(self, key: bytes | None) -> Client | None:
        """Who a public key (Z85) belongs to at this moment; any thread."""
        return None if key is None else self._keyring.clients.get(key)

    def close(self) -> None:
        """End the thread and give everything back; the context can be terminated then."""
        self.worker.signal()
        os.eventfd_write(self._wake, 1)
        self.worker.stop(1.0)  # longer only when a disk hangs
        self._zap.close()
        os.close(self._wake)

    def _run(self, stopping: Event) -> None:
        poller = zmq.Poller()
        poller.register(self._zap, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while not stopping.is_set():
            self.worker.beat(LOOK_S + LATE_S)
            asked = dict(poller.poll(int(LOOK_S * 1000)))
            self.worker.beat(math.inf)  # a disk that hangs holds up newcomers, never a verdict
            if self._keyring.refresh():
                self.revoked += 1
            if self._zap in asked:
                self._answer(self._zap.recv_multipart())

    def _answer(self, question: list[bytes]) -> None:
        """One question: version, request, domain, address, identity, mechanism, and for CURVE the key (32 bytes)."""
        version, request, domain, address, _, mechanism, *credentials = question
        key = b""
        if domain == DOMAIN and mechanism == b"CURVE" and len(credentials) == 1:
            with suppress(ValueError):
                key = z85.encode(credentials[0])
        client = self.client(key)
        if client is None:
            self._log_refused(address, key)
            self._zap.send_multipart([version, request, b"400", b"unknown key", b"", b""])
        else:
            log.debug("client_admitted", client=str(client), address=address.decode(errors="replace"))
            # What is sent as user id here is the "User-Id" of every message that comes over this connection.
            self._zap.send_multipart([version, request, b"200", b"OK", key, b""])

    def _log_refused(self, address: bytes, key: bytes) -> None:
        if (more := self._refused.due()) is not None:
            log.warning(
                "client_refused",
                reason="its public key is not in security.client_keys",
                public_key=key.decode("ascii", "replace"),
                address=address.decode(errors="replace"),
                not_logged_since=more,
            )
