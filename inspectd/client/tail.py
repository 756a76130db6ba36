"""`inspectd tail`: the verdict stream on a terminal or in a pipe."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from inspectd.client.columns import printable, render
from inspectd.client.connection import CONTROL, Keys
from inspectd.client.events import Event, Health, Lost, Received, Restarted, Unreadable
from inspectd.client.supervision import SILENCE_S
from inspectd.client.sync import TOPICS, Client
from inspectd.verdict.schema import to_json

NEVER_HEARD_S = 1.5


def run_tail(
    endpoint: str,
    *,
    control: str = CONTROL,
    keys: Keys | None = None,
    topics: Sequence[str] = (),
    as_json: bool = False,
    count: int | None = None,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Print the stream until `count` messages were shown, Ctrl-C, or the reader of `out` leaves. Returns 0.

    `topics` are prefixes; without any, verdicts, parts and camera states are shown. Heartbeats are listened to in
    any case, and shown if asked for. What was missed is asked for on `control`. What is wrong (silence, lost messages,
    a restart, a state that is not ready) goes to `err`.

    Raises:
        UsageError: an endpoint is none, or a key cannot be used.
    """
    out, err = out or sys.stdout, err or sys.stderr
    try:
        with Client(endpoint, control, topics=tuple(topics) or TOPICS, keys=keys) as client:
            _tail(client, _Printer(out, as_json), _Watch(endpoint, err), count)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        _silence(out)
    return 0


def _tail(client: Client, printer: _Printer, watch: _Watch, count: int | None) -> None:
    printed = 0
    while count is None or printed < count:
        event = client.receive(NEVER_HEARD_S if watch.waiting else None)
        if event is None:
            watch.nobody()
        elif isinstance(event, Received):
            printer.show(event)
            printed += 1
        else:
            watch.tell(event)


class _Watch:
    """Says what is wrong with the line, and when it is well again."""

    def __init__(self, endpoint: str, err: TextIO) -> None:
        self._endpoint = endpoint
        self._err = err
        self._since = time.monotonic()  # of the silence, if there is one
        self._silent = False
        self._unwell = False
        self.waiting = True  # nothing was heard yet, and nothing said about it

    def tell(self, event: Event) -> None:
        match event:
            case Health():
                self._health(event.reason)
            case Lost():
                which = f"seq {event.first}" if event.count == 1 else f"seq {event.first} to {event.last}"
                self._say(f"{event.topic} lost {event.count} message(s): {which}")
            case Restarted():
                self._say(
                    f"the daemon was restarted: boot {event.old_boot[:8]} is over, {event.new_boot[:8]} has begun"
                )
            case Unreadable():
                self._say(f"unreadable message: {event.why}")

    def nobody(self) -> None:
        self.waiting, self._silent = False, True
        self._say(
            f"no heartbeat from {self._endpoint} for {NEVER_HEARD_S} s; "
            "does the daemon run, is this its publish.bind, and does it know this key?"
        )

    def _health(self, reason: str | None) -> None:
        if reason == "connecting":
            return
        self.waiting = False
        now = time.monotonic()
        if reason == "silent":
            self._silent, self._since = True, now - SILENCE_S
            self._say(f"no heartbeat from {self._endpoint} for {SILENCE_S} s")
            return
        if self._silent:
            self._silent = False
            self._say(f"heartbeat from {self._endpoint}, after {now - self._since:.1f} s")
        if reason is not None:
            self._say(f"the line must not run: {reason}")
        elif self._unwell:
            self._say("the line may run")
        self._unwell = reason is not None

    def _say(self, text: str) -> None:
        self._err.write(f"inspectd: {printable(text)}\n")
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


def _silence(out: TextIO) -> None:
    # Python flushes stdout once more at exit, which would complain about the closed pipe again.
    with suppress(OSError, ValueError):  # a stream without a file descriptor needs no silence
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, out.fileno())
        os.close(devnull)
