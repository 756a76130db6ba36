"""Telling systemd how we are: READY, STOPPING, a status line, and the watchdog.

The protocol (man sd_notify) is one datagram of `KEY=value` lines to the socket that $NOTIFY_SOCKET
names. It is written here because the libraries for it either hide every error or want libsystemd.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping

import structlog

from inspectd.source_spec import redact

log = structlog.get_logger(__name__)

SEND_TIMEOUT_S = 0.1
"""A systemd that is busy for longer loses the message; the next watchdog message is soon enough.
A turn of the main loop may send two, and is late after 0.75 s."""
ONCE_TIMEOUT_S = 0.5
"""For what is said once, outside of the main loop."""
STATUS_LENGTH = 200


class Notifier:
    """Sends to systemd, or does nothing where there is none. Called by the main thread only.

    A message that cannot be sent is logged, once until one gets through again, and never raises: a
    daemon that judges parts does not die of its status line.
    """

    def __init__(self, address: str | None, watchdog_interval_s: float | None = None) -> None:
        """`address` is a path, or a name in the abstract namespace with a leading `@`; None sends nothing."""
        self.address = address
        self.watchdog_interval_s = watchdog_interval_s
        """Call `watchdog` at least this often: half of what systemd allows. None when it does not watch."""
        self._fed_at = -math.inf  # monotonic seconds
        self._failing = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Notifier:
        """What $NOTIFY_SOCKET, $WATCHDOG_USEC and $WATCHDOG_PID say to this very process."""
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET") or None
        if address is not None and address[0] not in "/@":
            log.warning("notify_socket_unknown", address=address, expected="a path or an abstract @name")
            address = None
        return cls(address, _watchdog_interval_s(environ) if address else None)

    @property
    def enabled(self) -> bool:
        """Whether anybody listens."""
        return self.address is not None

    def ready(self, status: str = "") -> None:
        """Startup is complete: units that wait for this one may start."""
        self._send("READY=1", *_status_lines(status), timeout_s=ONCE_TIMEOUT_S)

    def stopping(self, status: str = "") -> None:
        """Shutdown began: systemd waits for it instead of taking silence for a hang."""
        self._send("STOPPING=1", *_status_lines(status), timeout_s=ONCE_TIMEOUT_S)

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows; credentials in URLs are redacted."""
        self._send(*_status_lines(text))

    def watchdog(self) -> None:
        """The main loop turns and the pipeline makes progress.

        May be called on every turn: only a call that comes half an interval after the last one is sent.
        """
        now = time.monotonic()
        if self.watchdog_interval_s is None or now - self._fed_at < self.watchdog_interval_s / 2:
            return
        if self._send("WATCHDOG=1"):
            self._fed_at = now

    def _send(self, *lines: str, timeout_s: float = SEND_TIMEOUT_S) -> bool:
        if self.address is None or not lines:
            return False
        name = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        try:
            # A socket per message: a few times a minute, and nothing to reopen when systemd was restarted.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(timeout_s)
                sender.sendto("\n".join(lines).encode(), name)
        except OSError as err:
            if not self._failing:
                log.warning("notify_failed", address=self.address, error=str(err), message=lines[0])
            self._failing = True
            return False
        self._failing = False
        return True


def _status_lines(text: str) -> list[str]:
    # A line break would start another assignment of the protocol.
    return [f"STATUS={redact(' '.join(text.split()))[:STATUS_LENGTH]}"] if text.strip() else []


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    try:
        limit_us = int(environ.get("WATCHDOG_USEC", "0"))
        watched = int(environ.get("WATCHDOG_PID", str(os.getpid())))
    except ValueError:
        log.warning("watchdog_unreadable", usec=environ.get("WATCHDOG_USEC"), pid=environ.get("WATCHDOG_PID"))
        return None
    if limit_us <= 0 or watched != os.getpid():
        return None
    return limit_us / 2e6
