"""The way between a camera and its client, for tests: an RTSP proxy that loses, reorders, rewrites and swallows.

Works for both transports: over TCP it takes RTP out of the interleaved connection, over UDP it writes ports of its own
into SETUP, so that the camera sends to them. All sockets belong to one thread; the test only sets what it goes by.
"""

import contextlib
import re
import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Self

from packet_faults import Meddle, leave

LOCAL = "127.0.0.1"
_HEADER = struct.Struct(">cBH")  # before each packet over TCP: "$", channel, length


class RtspProxy:
    """Listens on `port`, forwards to `upstream` (a port too). `meddle` may be replaced at any time."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.meddle: Meddle = leave
        self.swallowing = False
        self._listener = socket.create_server((LOCAL, 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        # The thread's.
        self._sessions: list[_Session] = []
        self._queue: list[socket.socket] = []  # nobody else gets into it
        self._orders: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._bell, self._ear = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._ear, selectors.EVENT_READ, lambda: self._ear.recv(64))
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="rtsp-proxy", daemon=True)

    @property
    def url(self) -> str:
        return f"rtsp://{LOCAL}:{self.port}/camera"

    def swallow(self) -> None:
        """Connections stay open, new ones can be made, and nothing goes through any more."""
        self.swallowing = True

    def pull(self) -> None:
        """Pull the cable: as `swallow`, and whoever tries to connect gets no answer, not even a refusal."""
        self.swallowing = True
        self._do(self._be_deaf)

    def restore(self) -> None:
        """After either. What was connected meanwhile never comes to life again: both ends have lost data."""
        self._do(self._forget)

    def cut(self) -> None:
        """End every connection (RST)."""
        self._do(self._close_sessions)

    def refuse(self) -> None:
        """Nobody listens any more, and every connection ends."""
        self._do(self._close_listener)

    def admit(self) -> None:
        """Listen again."""
        self._do(self._listen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._do(self._stop)
        self._thread.join(10)
        for one in (self._bell, self._ear, self._listener):
            one.close()
        self._selector.close()

    # -- in the thread ---------------------------------------------------------------------------------

    def _do(self, order: Callable[[], None]) -> None:
        """Have it done by the thread, and wait until it is."""
        done = threading.Event()
        self._orders.append((order, done))
        self._bell.send(b"!")
        assert done.wait(10), "the proxy's thread is gone"

    def _run(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select():
                if key.fileobj.fileno() >= 0:  # else closed by what was ready before it
                    key.data()
            while self._orders:
                order, done = self._orders.popleft()
                order()
                done.set()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            camera = socket.create_connection((LOCAL, self.upstream), timeout=5)
        except OSError:
            _reset(client)
            return
        self._sessions.append(_Session(self, client, camera))

    def _be_deaf(self) -> None:
        """The kernel drops a SYN where the queue of those to be accepted is full."""
        self._selector.unregister(self._listener)
        self._listener.close()
        self._listener = socket.create_server((LOCAL, self.port), backlog=0)
        for _ in range(3):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex((LOCAL, self.port))
            self._queue.append(waiting)

    def _forget(self) -> None:
        for session in self._sessions:
            session.dead = True
        self.swallowing = False
        if self._queue:
            self._listener.close()
            self._leave_queue()
            self._listen()

    def _leave_queue(self) -> None:
        while self._queue:
            self._queue.pop().close()

    def _close_sessions(self) -> None:
        for session in self._sessions:
            session.close()
        self._sessions.clear()

    def _close_listener(self) -> None:
        self._selector.unregister(self._listener)
        self._listener.close()
        self._close_sessions()

    def _listen(self) -> None:
        self._listener = socket.create_server((LOCAL, self.port), backlog=64)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _stop(self) -> None:
        self._close_sessions()
        self._leave_queue()
        self._stopping = True


class _Session:
    """One client's connection and the one to the camera on its behalf."""

    def __init__(self, proxy: RtspProxy, client: socket.socket, camera: socket.socket) -> None:
        self.dead = False  # what comes is thrown away
        self._proxy = proxy
        self._client, self._camera = client, camera
        self._unparsed = b""  # of what the camera sent
        self._ports: dict[socket.socket, int] = {}  # ours, and the client's that it stands for
        for one in (client, camera):
            one.settimeout(10)
        self._watch(client, self._from_client)
        self._watch(camera, self._from_camera)

    def close(self) -> None:
        for one in (self._client, self._camera, *self._ports):
            with contextlib.suppress(KeyError, ValueError):
                self._proxy._selector.unregister(one)
        for one in (self._client, self._camera):
            _reset(one)
        for one in self._ports:
            one.close()

    def _watch(self, one: socket.socket, ready: Callable[[], None]) -> None:
        self._proxy._selector.register(one, selectors.EVENT_READ, ready)

    def _read(self, one: socket.socket) -> bytes:
        """What has come, nothing where it is thrown away. The end of one connection is that of the other."""
        try:
            data = one.recv(1 << 16)
        except OSError:
            data = b""
        silent = self.dead or self._proxy.swallowing
        if not data and silent:
            self._proxy._selector.unregister(one)  # not even its end is told
        elif not data:
            self.close()
        return b"" if silent else data

    def _write(self, one: socket.socket, data: bytes) -> None:
        try:
            one.sendall(data)
        except OSError:
            self.close()

    def _from_client(self) -> None:
        data = self._read(self._client)
        if ports := re.search(rb"client_port=(\d+)-(\d+)", data):
            ours = [self._stand_in(int(port)) for port in ports.groups()]
            data = data.replace(ports[0], b"client_port=%d-%d" % tuple(ours))
        if data:
            self._write(self._camera, data)

    def _stand_in(self, port: int) -> int:
        ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ours.bind((LOCAL, 0))
        control = len(self._ports) % 2 == 1
        self._ports[ours] = port
        self._watch(ours, lambda: self._datagram(ours, port, control))
        return int(ours.getsockname()[1])

    def _datagram(self, ours: socket.socket, port: int, control: bool) -> None:
        packet = ours.recv(1 << 16)
        if self.dead or self._proxy.swallowing:
            return
        for each in self._proxy.meddle(packet, control):
            ours.sendto(each, (LOCAL, port))

    def _from_camera(self) -> None:
        self._unparsed += self._read(self._camera)
        passed = b""
        while self._unparsed:
            if self._unparsed[:1] != b"$":
                if not (end := self._end_of_reply()):
                    break
                passed, self._unparsed = passed + self._unparsed[:end], self._unparsed[end:]
                continue
            if len(self._unparsed) < _HEADER.size:
                break
            mark, channel, length = _HEADER.unpack_from(self._unparsed)
            end = _HEADER.size + length
            if len(self._unparsed) < end:
                break
            packet, self._unparsed = self._unparsed[_HEADER.size : end], self._unparsed[end:]
            for each in self._proxy.meddle(packet, channel % 2 == 1):
                passed += _HEADER.pack(mark, channel, len(each)) + each
        if passed:
            self._write(self._client, passed)

    def _end_of_reply(self) -> int:
        """Where the camera's answer that has begun ends, with its body; 0 while it is not all here."""
        head, found, _ = self._unparsed.partition(b"\r\n\r\n")
        if not found:
            return 0
        length = re.search(rb"(?i)content-length:\s*(\d+)", head)
        end = len(head) + len(found) + (int(length[1]) if length else 0)
        return end if len(self._unparsed) >= end else 0


def _reset(one: socket.socket) -> None:
    """Close with RST, as a peer that has lost its state does."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
