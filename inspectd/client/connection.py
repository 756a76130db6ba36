"""How a client connects: endpoints, keys, and the options of its two sockets."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from inspectd.errors import UsageError
from inspectd.verdict.keys import load_certificate

VERDICTS = "tcp://127.0.0.1:5556"
CONTROL = "tcp://127.0.0.1:5557"
MAX_MESSAGE_BYTES = 1_000_000
MAX_REPLY_BYTES = 16_000_000
_PENDING_REQUESTS = 1000
_UNACKNOWLEDGED_MS = 1000
"""What the network has not taken for so long is given up with its connection, and does not arrive when it is back."""

Socket = zmq.Socket[bytes]


@dataclass(frozen=True, slots=True)
class Keys:
    """CURVE certificates: the daemon's public one (`*.key`) and this client's own secret one (`*.key_secret`)."""

    server: Path
    client: Path


def subscriber(context: zmq.Context[Socket], endpoint: str, topics: Sequence[str], keys: Keys | None) -> Socket:
    """A connected SUB socket. It connects in the background and comes back by itself when the daemon does.

    Raises:
        UsageError: the endpoint is none, its host has no address, or a key cannot be used.
    """
    made = _connected(context, zmq.SUB, endpoint, keys, {zmq.MAXMSGSIZE: MAX_MESSAGE_BYTES})
    for topic in topics:
        made.subscribe(topic.encode())
    return made


def requester(context: zmq.Context[Socket], endpoint: str, keys: Keys | None) -> Socket:
    """A connected DEALER socket. It takes no request while nobody answers, and keeps none while the network is away:
    a trigger must not be carried out later.

    Raises:
        UsageError: as with `subscriber`.
    """
    options = {
        zmq.IMMEDIATE: 1,
        zmq.TCP_MAXRT: _UNACKNOWLEDGED_MS,
        zmq.MAXMSGSIZE: MAX_REPLY_BYTES,
        zmq.SNDHWM: _PENDING_REQUESTS,
    }
    return _connected(context, zmq.DEALER, endpoint, keys, options)


def _connected(
    context: zmq.Context[Socket], kind: int, endpoint: str, keys: Keys | None, options: Mapping[Any, int]
) -> Socket:
    common: dict[Any, int] = {
        zmq.LINGER: 0,
        zmq.IPV6: int(_needs_ipv6(endpoint)),
        # Milliseconds. A daemon that stopped in the middle of anything is left, and tried again.
        zmq.RECONNECT_IVL: 200,
        zmq.CONNECT_TIMEOUT: 2000,
        zmq.HANDSHAKE_IVL: 2000,
        zmq.HEARTBEAT_IVL: 1000,
        zmq.HEARTBEAT_TIMEOUT: 3000,
    }
    server, own = (None, None) if keys is None else (load_certificate(keys.server), _own(keys.client))
    made: Socket = context.socket(kind)
    try:
        for option, value in {**common, **options}.items():
            made.setsockopt(option, value)
        if server is not None and own is not None:
            made.curve_serverkey = server.public
            made.curve_publickey, made.curve_secretkey = own
        made.connect(endpoint)
    except zmq.ZMQError as err:
        made.close()
        raise UsageError(f"{endpoint!r}: cannot be connected to: {zmq.strerror(err.errno or 0)}") from err
    return made


def _own(path: Path) -> tuple[bytes, bytes]:
    certificate = load_certificate(path, secret=True)
    assert certificate.secret is not None, "asked for"
    return certificate.public, certificate.secret


def _needs_ipv6(endpoint: str) -> bool:
    if endpoint.startswith("ipc://") and len(endpoint) > len("ipc://"):
        return False
    match = re.fullmatch(r"tcp://(\[[^\]]+\]|[^:/\[\]]+):(\d{1,5})", endpoint)
    if match is None or not 0 < int(match[2]) <= 65535:
        raise UsageError(f"{endpoint!r}: expected an endpoint like tcp://127.0.0.1:5556 or ipc://PATH")
    try:
        found = socket.getaddrinfo(match[1].strip("[]"), int(match[2]))
    except (OSError, UnicodeError):
        raise UsageError(f"{endpoint!r}: host {match[1]} has no address") from None
    return all(family == socket.AF_INET6 for family, *_ in found)
