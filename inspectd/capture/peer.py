"""The socket inside a library that offers none: found among this process's own, to be shut down from outside."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Final

_FDS: Final = Path("/proc/self/fd")
_claims_lock: Final = threading.Lock()
_claimed: Final[set[str]] = set()  # sockets of all sources that were told apart; guarded by _claims_lock


class PeerSocket:
    """The TCP connection that a library opens to `port` between `remember()` and `claim()`.

    Only a connection that is the sole candidate is taken: of two that were opened at the same moment to
    the same port it would be a guess whose is whose. A duplicate of the descriptor is kept, so that a
    descriptor number that was closed and used again is never hit.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        # Guarded by _lock.
        self._before: frozenset[str] | None = None
        self._name: str | None = None
        self._socket: socket.socket | None = None

    def remember(self) -> None:
        """The connection is about to be opened."""
        with self._lock:
            self._before = frozenset(_open_sockets())

    def claim(self) -> None:
        """The connection is open: find it."""
        with self._lock:
            if self._before is None or self._socket is not None:
                return
            with _claims_lock:
                new = {name: fd for name, fd in _open_sockets().items() if name not in self._before | _claimed}
                found = [(name, peer) for name, fd in new.items() if (peer := _duplicate(fd, name, self._port))]
                if len(found) == 1:
                    self._name, self._socket = found.pop()
                    _claimed.add(self._name)
            for _, other in found:
                other.close()

    def shut_down(self) -> None:
        """End the connection, from any thread; also one that is still in its first exchange."""
        self.claim()
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Forget the connection, which the library closes."""
        with self._lock:
            if self._socket is not None and self._name is not None:
                self._socket.close()
                with _claims_lock:
                    _claimed.discard(self._name)
            self._before = self._name = self._socket = None


def _open_sockets() -> dict[str, int]:
    """This process's sockets: kernel name (`socket:[inode]`) -> descriptor."""
    sockets: dict[str, int] = {}
    for entry in _FDS.iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            name = str(entry.readlink())
            if name.startswith("socket:"):
                sockets[name] = int(entry.name)
    return sockets


def _duplicate(fd: int, name: str, port: int) -> socket.socket | None:
    """A duplicate of the descriptor if it still is that socket, and connected to that port."""
    try:
        copy = socket.socket(fileno=os.dup(fd))
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if str((_FDS / str(copy.fileno())).readlink()) == name and copy.type == socket.SOCK_STREAM:
            address = copy.getpeername()
            if isinstance(address, tuple) and address[1] == port:
                return copy
    copy.close()
    return None
