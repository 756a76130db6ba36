"""The life of a bridge process: open the port, connect, tell systemd, run until a signal, close."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import signal
import socket
from contextlib import suppress
from typing import Protocol

import structlog

from inspectd.bridge.line import Line
from inspectd.bridge.views import Result
from inspectd.errors import InspectdError, UsageError
from inspectd.observe.systemd import Notifier

log = structlog.get_logger(__name__)

TICK_S = 0.05
"""How late an expiry may show where clients are told instead of asking."""


class Server(Protocol):
    """One protocol's side of a bridge."""

    async def start(self) -> str:
        """Open the port; returns the address that clients connect to."""

    async def heard(self, result: Result | None) -> None:
        """The image has changed; by a live result, or by something else."""

    async def stop(self) -> None:
        """Close the port. May be called twice, and without a start."""


async def run_until_signalled(line: Line, server: Server, notifier: Notifier) -> None:
    """`run_bridge` until SIGTERM or SIGINT. In the main thread.

    Raises:
        UsageError: the port, an endpoint or a key cannot be used.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run_bridge(line, server, notifier, stop)


async def run_bridge(line: Line, server: Server, notifier: Notifier, stop: asyncio.Event) -> None:
    """Open the port, listen to the line, until `stop` is set; then close both.

    Raises:
        UsageError: the port, an endpoint or a key cannot be used.
    """
    line.watcher = server.heard
    listening: asyncio.Task[None] | None = None
    try:
        address = await server.start()
        await line.connect()
        listening = asyncio.create_task(line.run())
        log.info("bridge_ready", address=address, layout=line.layout.fingerprint)
        notifier.ready(f"serving {address}")
        while not stop.is_set():
            if listening.done():
                listening.result()
                raise InspectdError("the client has ended by itself")
            await server.heard(None)
            notifier.watchdog()
            await _wait(stop, TICK_S)
    finally:
        notifier.stopping()
        await server.stop()
        if listening is not None:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        await line.close()


def parse_bind(text: str) -> tuple[str, int]:
    """Host and port of ADDRESS:PORT; an IPv6 address stands in brackets.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\]:(\d{1,5})|([^:\[\]\s]+):(\d{1,5})", text)
    if match is None or int(match[2] or match[4]) > 65535:
        raise UsageError(f"--bind {text}: expected ADDRESS:PORT, for example 127.0.0.1:1502")
    return match[1] or match[3], int(match[2] or match[4])


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_taken(host: str, port: int) -> None:
    """Try to bind, to say precisely why it cannot be done.

    Raises:
        UsageError: it cannot; the message says what to change.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except (socket.gaierror, UnicodeError):  # the latter: a part of the name is empty, or longer than 63 characters
        raise UsageError(f"--bind {host}:{port}: host {host} has no address") from None
    except OSError as err:
        hint = " (ports below 1024 need root, or a redirect)" if isinstance(err, PermissionError) else ""
        raise UsageError(f"--bind {host}:{port}: {(err.strerror or str(err)).lower()}{hint}; choose another") from None


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)
