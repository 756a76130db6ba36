"""The network between a camera and the daemon, with its faults: a TCP relay that understands interleaved RTSP.

    daemon <──> FlakyLink.port <──> camera's port

Only what the camera sends is taken apart, so that packets can be lost and cut short where a bad network does it,
and the daemon still finds its way through the stream.
"""

import contextlib
import random
import socket
import threading
from typing import Literal

from rtsp_server import free_port

Mode = Literal["open", "held", "mute", "refused", "lossy"]
_TURN_S = 0.1


class FlakyLink:
    """Relays to `target` (a port on loopback) in the way that `mode` says. Threads of its own; `close` ends them.

    open: as it should be. held: whatever is connected stays so, and nothing gets through in either direction (packets
    vanish). mute: connections are made, and never answered. refused: nobody listens, what was connected is cut.
    lossy: RTP packets are lost or cut short, at `loss` of them.
    """

    def __init__(self, target: int, seed: int, *, port: int | None = None, loss: float = 0.05) -> None:
        self.port = port or free_port()
        self._target = target
        self._dice = random.Random(seed)
        self._loss = loss
        self._mode: Mode = "open"
        self._passing = threading.Event()
        self._passing.set()
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._connected: set[socket.socket] = set()  # guarded by _lock
        self._listener: socket.socket | None = self._listen()
        threading.Thread(target=self._accept, name="link", daemon=True).start()

    def set_mode(self, mode: Mode) -> None:
        """From now on; what is connected is cut where the new mode has no place for it."""
        before, self._mode = self._mode, mode
        if mode == "held":
            self._passing.clear()
        else:
            self._passing.set()
        if mode in ("mute", "refused") or before == "mute":
            self.cut()
        if mode == "refused":
            listener, self._listener = self._listener, None
            if listener is not None:
                listener.close()
        elif self._listener is None:
            self._listener = self._listen()

    def cut(self) -> None:
        """End every connection."""
        with self._lock:
            connected, self._connected = self._connected, set()
        for end in connected:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._ending.set()
        self._passing.set()
        if self._listener is not None:
            self._listener.close()
        self.cut()

    def _listen(self) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", self.port), backlog=32)
        listener.settimeout(_TURN_S)
        return listener

    def _accept(self) -> None:
        while not self._ending.is_set():
            listener = self._listener
            if listener is None:
                self._ending.wait(_TURN_S)
                continue
            try:
                near, _ = listener.accept()
            except OSError:  # nobody came, or the listener is gone
                continue
            with self._lock:
                self._connected.add(near)
            if self._mode != "mute":
                threading.Thread(target=self._relay, args=(near,), name="link-relay", daemon=True).start()

    def _relay(self, near: socket.socket) -> None:
        self._passing.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            near.close()
            return
        with self._lock:
            self._connected.add(far)
        back = threading.Thread(target=self._pump, args=(far, near, self.damage()), name="link-back", daemon=True)
        back.start()
        self._pump(near, far, None)
        back.join()
        with self._lock:
            self._connected -= {near, far}
        near.close()
        far.close()

    def _pump(self, source: socket.socket, target: socket.socket, damage: "_Damage | None") -> None:
        try:
            source.settimeout(None)
            while data := source.recv(1 << 16):
                self._passing.wait()
                target.sendall(damage.through(data) if damage else data)
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def damage(self) -> "_Damage":
        """For what one camera's connection sends."""
        return _Damage(self)

    def spoil(self, packet: bytes) -> bytes:
        """One interleaved frame (`$`, channel, length, RTP) as it arrives: whole, cut short, or empty (lost)."""
        if self._mode != "lossy" or packet[1] != 0 or len(packet) < 200 or self._dice.random() >= self._loss:
            return packet
        if self._dice.random() < 0.5:
            return b""
        kept = packet[4 : 4 + self._dice.randrange(60, len(packet) - 60)]
        return packet[:2] + len(kept).to_bytes(2, "big") + kept


class _Damage:
    """Takes what a camera sends apart into replies and interleaved frames, and lets `FlakyLink.spoil` at the frames."""

    def __init__(self, link: FlakyLink) -> None:
        self._link = link
        self._rest = b""

    def through(self, data: bytes) -> bytes:
        """What goes on of it; an incomplete frame waits for its end."""
        self._rest += data
        out = []
        while (size := self._next()) is not None:
            piece, self._rest = self._rest[:size], self._rest[size:]
            out.append(self._link.spoil(piece) if piece[:1] == b"$" else piece)
        return b"".join(out)

    def _next(self) -> int | None:
        """Bytes of the first whole piece."""
        rest = self._rest
        if rest[:1] == b"$":
            size = 4 + int.from_bytes(rest[2:4], "big") if len(rest) >= 4 else None
        else:
            head = rest.find(b"\r\n\r\n")
            if head < 0:
                return None
            size = head + 4
            for line in rest[:head].lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    size += int(line.split(b":")[1])
        return size if size is not None and len(rest) >= size else None
