"""The other end of the verdict stream: a subscriber, what it may have missed, and `inspectd tail`.

Imports neither the engine nor OpenCV: it starts at once, and runs wherever pyzmq does.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TextIO

import zmq

from inspectd.errors import UsageError
from inspectd.verdict.schema import HEARTBEAT_TOPIC, CameraStatus, Heartbeat, Message, Verdict, decode, to_json

if TYPE_CHECKING:
    from rich.text import Text

SILENCE_S = 1.5
"""Three heartbeats missed in a row: nobody vouches for the line any more."""
MAX_MESSAGE_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Received:
    """One message as it came: its topic, its body as on the wire, and what the body says."""

    topic: str
    body: bytes
    message: Message


class Subscriber:
    """Subscribes to an endpoint and yields typed messages. Owned by one thread; a context manager.

    `topics` are prefixes; "" is everything. It connects in the background and comes back by itself when
    the daemon does. A new subscription is answered by the last value of its topics, marked `replayed`.
    """

    def __init__(self, endpoint: str, topics: Sequence[str] = ("",)) -> None:
        """Connect.

        Raises:
            UsageError: the endpoint is none, or its host has no address.
        """
        ipv6 = _needs_ipv6(endpoint)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPV6, int(ipv6))
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 200)  # ms
        self._socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        try:
            for topic in topics:
                self._socket.subscribe(topic.encode())
            self._socket.connect(endpoint)
        except zmq.ZMQError as err:
            self.close()
            raise UsageError(f"{endpoint!r}: cannot be connected to: {zmq.strerror(err.errno or 0)}") from err

    def receive(self, timeout_s: float) -> Received | None:
        """The next message, or None when none came within `timeout_s`.

        Raises:
            ValueError: what came is no message of the verdict stream; the next may be one.
        """
        if not self._socket.poll(max(0, int(timeout_s * 1000))):
            return None
        frames = self._socket.recv_multipart()
        topic = frames[0].decode(errors="replace")
        if len(frames) != 2:
            raise ValueError(f"{topic[:80]!r}: {len(frames)} frames where topic and body are expected")
        try:
            return Received(topic, frames[1], decode(frames[1]))
        except ValueError as err:
            raise ValueError(f"{topic[:80]!r}: {err}") from None

    def close(self) -> None:
        """Disconnect. May be called twice."""
        self._socket.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(slots=True)
class Continuity:
    """Finds what was missed: by gaps in `seq`, and by the newest `seq` that heartbeats tell.

    A topic counts from the first message seen of it. What a replay shows that was not seen before is
    known again, but everything between is lost.
    """

    boot_id: str | None = None
    seen: dict[str, int] = field(default_factory=dict)  # topic -> newest seq

    def check(self, topic: str, message: Message) -> Iterator[str]:
        """Take note of a message; yields one line for everything that is wrong."""
        if self.boot_id != message.boot_id:
            if self.boot_id is not None:
                yield f"the daemon was restarted: boot {self.boot_id[:8]} is over, {message.boot_id[:8]} has begun"
            self.boot_id = message.boot_id
            self.seen.clear()
        yield from self._missed(topic, message.seq - 1)
        self.seen[topic] = max(self.seen.get(topic, 0), message.seq)
        if isinstance(message, Heartbeat):
            for name, newest in message.topics.items():
                yield from self._missed(name, newest)

    def is_repeat(self, topic: str, message: Message) -> bool:
        """Whether the message was seen before: somebody else's subscription made the daemon repeat it."""
        return message.boot_id == self.boot_id and message.seq <= self.seen.get(topic, 0)

    def _missed(self, topic: str, newest: int) -> Iterator[str]:
        last = self.seen.get(topic)
        if last is not None and newest > last:
            which = f"seq {last + 1}" if newest == last + 1 else f"seq {last + 1} to {newest}"
            yield f"{topic} lost {newest - last} message(s): {which}"
            self.seen[topic] = newest


def run_tail(
    endpoint: str,
    *,
    topics: Sequence[str] = (),
    as_json: bool = False,
    count: int | None = None,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Print the stream until `count` messages were shown, Ctrl-C, or the reader of `out` leaves. Returns 0.

    `topics` are prefixes; without any, verdicts and camera states are shown. Heartbeats are listened to in
    any case, and shown if asked for. What is wrong (silence, lost messages, a restart) goes to `err`.

    Raises:
        UsageError: the endpoint is none.
    """
    out, err = out or sys.stdout, err or sys.stderr
    shown = tuple(topics) or ("verdict/", "status/")
    try:
        with Subscriber(endpoint, sorted({*shown, HEARTBEAT_TOPIC})) as subscriber:
            _tail(subscriber, _Printer(out, as_json), _Watch(endpoint, err), shown, count)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        _silence(out)
    return 0


def _tail(subscriber: Subscriber, printer: _Printer, watch: _Watch, shown: tuple[str, ...], count: int | None) -> None:
    continuity = Continuity()
    printed = 0
    while count is None or printed < count:
        try:
            received = subscriber.receive(0)
            if received is None:
                # Only now: what still waits to be read may hold a heartbeat, if `out` held us up.
                watch.look()
                received = subscriber.receive(0.1)
        except ValueError as err:
            watch.say(f"unreadable message: {err}")
            continue
        if received is None:
            continue
        if isinstance(received.message, Heartbeat):
            watch.heard()
        if continuity.is_repeat(received.topic, received.message):
            continue
        for problem in continuity.check(received.topic, received.message):
            watch.say(problem)
        if received.topic.startswith(shown):
            printer.show(received)
            printed += 1


class _Watch:
    """Says when the heartbeat stops, and when it is back."""

    def __init__(self, endpoint: str, err: TextIO) -> None:
        self._endpoint = endpoint
        self._err = err
        self._last = time.monotonic()
        self._ever = self._silent = False

    def heard(self) -> None:
        now = time.monotonic()
        if self._silent:
            self.say(
                f"heartbeat from {self._endpoint} {'again' if self._ever else 'now'}, after {now - self._last:.1f} s"
            )
        self._last, self._silent, self._ever = now, False, True

    def look(self) -> None:
        if not self._silent and time.monotonic() - self._last > SILENCE_S:
            self._silent = True
            hint = "" if self._ever else "; does the daemon run, and is this its publish.bind?"
            self.say(f"no heartbeat from {self._endpoint} for {SILENCE_S} s{hint}")

    def say(self, text: str) -> None:
        self._err.write(f"inspectd: {_printable(text)}\n")
        self._err.flush()


class _Printer:
    """One line per message: raw JSON, or columns that are coloured on a terminal."""

    def __init__(self, out: TextIO, as_json: bool) -> None:
        self._out = out
        self._as_json = as_json
        if not as_json:
            from rich.console import Console

            self._console = Console(file=out, highlight=False, soft_wrap=True)

    def show(self, received: Received) -> None:
        if self._as_json:
            self._out.write(to_json(received.body) + "\n")
        else:
            # Captured, because rich ends the process when it finds the pipe closed.
            with self._console.capture() as line:
                self._console.print(render(received))
            self._out.write(line.get())
        self._out.flush()


_COLOURS = {
    "pass": "green",
    "fail": "bold red",
    "no_result": "yellow",
    "ready": "green",
    "busy": "cyan",
    "starting": "yellow",
    "fault": "bold red",
}


def render(received: Received) -> Text:
    """A message as one line in columns: time (UTC), topic, seq, what it says."""
    from rich.text import Text

    message = received.message
    line = Text(f"{message.published_at[11:23]}Z  {_printable(received.topic):<32} {message.seq:>7}  ")
    match message:
        case Verdict():
            line.append(f"{message.verdict:<9}", _COLOURS[message.verdict])
            why = message.reason or ("empty" if message.verdict == "no_result" else "")
            label = "" if message.score is None else f"{_printable(message.label or '')} {message.score:.3f}"
            line.append(f" {why:<12} {label:<22} {message.latency_ms.total:7.1f} ms")
            if message.frame is not None:
                line.append(f"  frame {message.frame.index}")
        case CameraStatus():
            line.append(f"{message.state:<9}", _COLOURS[message.state])
            line.append(f" {_printable(message.reason or '')}")
        case Heartbeat():
            line.append(f"{message.state:<9}", _COLOURS[message.state])
            line.append(f" {len(message.topics)} topic(s), boot {_printable(message.boot_id[:8])}")
    if not isinstance(message, Heartbeat) and message.replayed:
        line.append("  replayed", "dim")
    line.rstrip()
    return line


def _printable(text: str) -> str:
    """Nothing that came over the wire may steer the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


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


def _silence(out: TextIO) -> None:
    # Python flushes stdout once more at exit, which would complain about the closed pipe again.
    with suppress(OSError, ValueError):  # a stream without a file descriptor needs no silence
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, out.fileno())
        os.close(devnull)
