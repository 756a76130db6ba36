"""journald's own socket: a log line with fields, so that `journalctl INSPECTD_CAMERA=cam1` finds it.

The protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL) is one datagram of `FIELD=value` lines; a value with a line break
goes with its length before it.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")
PREFIX: Final = "INSPECTD_"
FIELD_LENGTH: Final = 64
"""journald drops a whole line for one name that is longer."""
MAX_VALUE: Final = 8192
"""Bytes of a field; the message itself has all of it."""
MAX_FIELDS: Final = 64


class JournalSocket:
    """Sends lines to journald and never waits for it. One caller at a time; logging's lock sees to that."""

    def __init__(self, path: Path = JOURNAL_SOCKET) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def send(self, message: str, priority: int, fields: Mapping[str, Any]) -> None:
        """One line; `fields` are plain JSON data and become `INSPECTD_KEY`.

        Raises:
            BlockingIOError: journald does not keep up; the line is lost.
            OSError: it is not there, or the line is too long for a datagram.
        """
        lines = {"MESSAGE": message, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": "inspectd"}
        for key, value in list(fields.items())[:MAX_FIELDS]:
            lines.setdefault(field_name(key), _text(value))
        # By path each time: there is nothing to reopen when the socket is made anew.
        self._socket.sendto(b"".join(_line(name, text) for name, text in lines.items()), self._path)

    def close(self) -> None:
        self._socket.close()


def field_name(key: str) -> str:
    """A key of the log as journald's: capitals, digits and `_` only."""
    return (PREFIX + re.sub(r"[^A-Z0-9_]", "_", key.upper()))[:FIELD_LENGTH]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace")[:MAX_VALUE].decode("utf-8", "ignore")


def _line(name: str, text: str) -> bytes:
    value = text.encode("utf-8", "replace")
    if b"\n" in value:
        return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return f"{name}=".encode() + value + b"\n"
