"""Both sockets of the line-side contract on free ports, served by one thread, and peers that talk to them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from inspectd.config import ControlConfig, PublishConfig, SecurityConfig
from inspectd.verdict.control import Asked
from inspectd.verdict.keys import Certificate, load_certificate, write_pair, write_public
from inspectd.verdict.sockets import Sockets
from inspectd.workers import Deadline

Handler = Callable[[Sockets, Asked], None]


def say_who(sockets: Sockets, asked: Asked) -> None:
    """Answers every request with who asked it."""
    sockets.reply(asked, {"role": asked.role, "client": str(asked.client)})


class Line:
    """The served sockets. Every turn sends one message on the topic `tick/`."""

    def __init__(self, security: SecurityConfig, handler: Handler, bind: str, control: str) -> None:
        self.handler = handler
        self.failure: BaseException | None = None
        self.subscribers = 0
        self.subscribed = threading.Event()
        self.refused_triggers: list[tuple[str, str]] = []  # what each named as its camera, and the code
        self.sockets = Sockets(
            PublishConfig(bind=bind),
            ControlConfig(bind=control),
            security,
            on_subscriptions=lambda _: self.subscribed.set(),
            set_subscribers=lambda n: setattr(self, "subscribers", n),
            on_request=lambda asked: self.handler(self.sockets, asked),
            on_refused_trigger=lambda *refused: self.refused_triggers.append(refused),
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.sockets.serve(0.02)
                self.sockets.send(b"tick/", b"tick")
        except BaseException as err:
            self.failure = err

    def join(self, timeout_s: float = 10) -> None:
        """Wait until the thread ended by itself, which it does when it fails."""
        self._thread.join(timeout_s)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)
        self.sockets.close(0.0)


@contextmanager
def serving(
    security: SecurityConfig | None = None,
    handler: Handler = say_who,
    bind: str = "tcp://127.0.0.1:*",
    control: str = "tcp://127.0.0.1:*",
) -> Iterator[Line]:
    line = Line(security or SecurityConfig(), handler, bind, control)
    try:
        yield line
    finally:
        line.close()
    assert line.failure is None, line.failure


class Peer:
    """A ZeroMQ socket of somebody else, with CURVE when it has a key."""

    _FAILED = (
        zmq.Event.DISCONNECTED
        | zmq.Event.HANDSHAKE_FAILED_AUTH
        | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
        | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    )

    def __init__(
        self, kind: int, endpoint: str, *, key: Certificate | None = None, server: bytes | None = None, **options: Any
    ) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(kind)
        self.socket.linger = 0
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name), value)
        if key is not None and server is not None:
            assert key.secret is not None
            self.socket.curve_serverkey = server
            self.socket.curve_publickey = key.public
            self.socket.curve_secretkey = key.secret
        self._ended = self.socket.get_monitor_socket(self._FAILED)
        self.socket.connect(endpoint)
        if kind == zmq.SUB:
            self.socket.subscribe(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.disable_monitor()
        self._ended.close(linger=0)
        self.socket.close()
        self.context.term()

    def ask(self, request: dict[str, Any] | bytes, timeout_s: float = 10) -> dict[str, Any]:
        """One request and its reply; works for REQ and DEALER."""
        self.socket.send(request if isinstance(request, bytes) else json.dumps(request).encode())
        return self.answer(timeout_s)

    def answer(self, timeout_s: float = 10) -> dict[str, Any]:
        assert self.socket.poll(int(timeout_s * 1000)), "no reply came"
        reply = json.loads(self.socket.recv_multipart()[-1].decode("utf-8"))
        assert isinstance(reply, dict)
        return reply

    def listen(self, count: int = 1, timeout_s: float = 10) -> None:
        """Wait for so many messages."""
        deadline = Deadline(timeout_s)
        for _ in range(count):
            assert self.socket.poll(int(deadline.left() * 1000)), "the stream is silent"
            self.socket.recv_multipart()

    def silent(self) -> bool:
        return not self.socket.poll(0)

    def await_end(self, timeout_s: float = 10) -> None:
        """Wait until the connection ended or its handshake failed."""
        assert self._ended.poll(int(timeout_s * 1000)), "the connection goes on"
        recv_monitor_message(self._ended)

    @property
    def unbroken(self) -> bool:
        return not self._ended.poll(0)


class Keys:
    """A server key and a folder of client keys on disk, as `inspectd keys` leaves them."""

    def __init__(self, folder: Path) -> None:
        public, secret = write_pair(folder, "server")
        self.folder = folder
        self.server = load_certificate(public).public
        self.clients = folder / "clients"
        for role in ("read", "control"):
            (self.clients / role).mkdir(parents=True)
        self.config = SecurityConfig(server_key=secret, client_keys=self.clients)

    def new(self, name: str, role: str | None = None) -> Certificate:
        """A client's pair; admitted when it has a role."""
        _, secret = write_pair(self.folder / name, name)
        pair = load_certificate(secret, secret=True)
        if role is not None:
            write_public(self.clients / role / f"{name}.key", pair.public)
        return pair

    def peer(self, kind: int, endpoint: str, key: Certificate, **options: Any) -> Peer:
        return Peer(kind, endpoint, key=key, server=self.server, **options)


def resident_mb() -> float:
    """What this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
