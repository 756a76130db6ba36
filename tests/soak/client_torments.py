"""What clients do to the daemon, by accident or otherwise. Nobody but they should notice."""

import contextlib
import select
import signal
import socket
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import zmq
from schedule import Kind
from torment import Torment

SLEEPER = """
import sys, zmq
stream = zmq.Context.instance().socket(zmq.SUB)
stream.subscribe("")
stream.connect(sys.argv[1])
stream.recv_multipart()
print("listening", flush=True)
while True:
    stream.recv_multipart()
"""
STORM_OF = 200
LISTENING_S = 10.0


class _Unseen(Torment):
    """Nobody but who does it should notice: the belts' verdicts go on."""

    group = "consumer"

    def begin(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_on, name="torment", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a torment does not end"

    def _keep_on(self) -> None:
        done = 0
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                self.once()
                done += 1
            self._over.wait(0.02)
        self.remark = f"{done} times"

    def once(self) -> None:
        raise NotImplementedError


class SubscriberStops(Torment):
    kind = Kind("subscriber stops reading (SIGSTOP)", 4, 60)
    group = "consumer"

    def begin(self) -> None:
        self._sleeper = subprocess.Popen(
            [sys.executable, "-c", SLEEPER, self.line.daemon.endpoint], stdout=subprocess.PIPE, text=True
        )
        select.select(
            [self._sleeper.stdout], [], [], LISTENING_S
        )  # the first message: the next heartbeat at the latest
        self._sleeper.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        self._sleeper.kill()
        self._sleeper.wait()
        self._sleeper.stdout.close()


class SubscriberStorm(_Unseen):
    kind = Kind("subscribers come and go", 2, 10)

    def once(self) -> None:
        with zmq.Context() as context:
            sockets = [context.socket(zmq.SUB) for _ in range(STORM_OF // 10)]
            for socket_ in sockets:
                socket_.set(zmq.LINGER, 0)
                socket_.subscribe("")
                socket_.connect(self.line.daemon.endpoint)
            sockets[-1].poll(500)
            for socket_ in sockets:
                socket_.close()


class Crowd(Torment):
    kind = Kind("200 subscribers at once", 3, 15)
    group = "consumer"

    def begin(self) -> None:
        self._context = zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, 2 * STORM_OF)
        self._crowd = [self._context.socket(zmq.SUB) for _ in range(STORM_OF)]
        for socket_ in self._crowd:
            socket_.set(zmq.LINGER, 0)
            socket_.set(zmq.RCVHWM, 10)
            socket_.subscribe("heartbeat/")
            socket_.connect(self.line.daemon.endpoint)

    def end(self) -> None:
        for socket_ in self._crowd:
            socket_.close()
        self._context.term()


class ControlGarbage(_Unseen):
    kind = Kind("garbage at both sockets", 2, 10)

    def once(self) -> None:
        junk = self.dice.randbytes(self.dice.randrange(1, 4000))
        requests = [junk, b"{}", b"[" * 5000, b'{"op":"trigger","camera":"nobody","deadline_ms":1e9}', b"\x00" * 70_000]
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket_:
            socket_.set(zmq.LINGER, 0)
            socket_.connect(self.line.daemon.control)
            for request in requests:
                socket_.send(request)
            for _ in requests:
                socket_.poll(1000) and socket_.recv()
        for endpoint in (self.line.daemon.endpoint, self.line.daemon.control):
            with socket.create_connection(_address(endpoint), timeout=2) as raw:
                raw.sendall(junk)


class HttpGarbage(_Unseen):
    kind = Kind("garbage and slow clients at HTTP", 2, 10)

    def once(self) -> None:
        address = (urlsplit(self.line.daemon.url).hostname, urlsplit(self.line.daemon.url).port)
        with contextlib.ExitStack() as open_:
            for number in range(8):
                raw = open_.enter_context(socket.create_connection(address, timeout=2))
                raw.sendall(b"GET /metrics HT" if number % 2 else self.dice.randbytes(300))
            self._over.wait(0.3)


class Replays(_Unseen):
    kind = Kind("replay of the journal, without a pause", 2, 15)

    def once(self) -> None:
        topic = self.dice.choice(["verdict/belt1/part/", "verdict/belt2/part/", "heartbeat/", "nothing/"])
        self.line.ask("replay", topic=topic, from_seq=self.dice.randrange(1, 20_000), limit=500)


def _address(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return host, int(port)
