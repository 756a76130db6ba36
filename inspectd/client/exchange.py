"""Requests and their replies on one DEALER socket, many at a time. Owned by one thread."""

from __future__ import annotations

import itertools
import json
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from inspectd.client.commands import ControlTimeout, Reply
from inspectd.client.connection import Socket
from inspectd.verdict.control_schema import Request

CONNECT_S = 2.5
"""How long a request waits for somebody to send it to, at most."""

Done = Callable[[Reply | ControlTimeout], None]
"""Called in the owning thread, exactly once: the reply, a refusal too, or that none came."""


@dataclass(slots=True)
class _Pending:
    body: bytes
    done: Done
    asked_at: float  # monotonic seconds
    timeout_s: float  # from then on, the wait for somebody to take it included
    sent: bool = False

    @property
    def expires(self) -> float:
        """Earlier while nobody is there to take it."""
        return self.asked_at + (self.timeout_s if self.sent else min(self.timeout_s, CONNECT_S))


class Exchange:
    """Sends requests as soon as somebody is there to take them, matches the replies, gives up those without one.

    Requests in it are bounded by their timeouts and by who asks: see `Link`.
    """

    def __init__(self, socket: Socket, endpoint: str) -> None:
        self.socket = socket
        self._endpoint = endpoint
        self._ids = (f"{secrets.token_hex(4)}-{n}" for n in itertools.count(1))
        self._pending: dict[str, _Pending] = {}
        self._unsent: deque[str] = deque()
        self.strange = 0  # replies that nobody asked for, or too late, or that are none

    def ask(self, request: Request, timeout_s: float, asked_at: float, done: Done) -> None:
        """Have it sent with the next `turn`; its time counts from `asked_at`, monotonic seconds."""
        identity = next(self._ids)
        body = request.model_copy(update={"id": identity}).model_dump_json().encode()
        self._pending[identity] = _Pending(body, done, asked_at, timeout_s)
        self._unsent.append(identity)

    @property
    def unsent(self) -> bool:
        """Whether something waits to be sent: poll for POLLOUT too."""
        return bool(self._unsent)

    @property
    def expires(self) -> float | None:
        """When the next request is given up, monotonic seconds."""
        return min((pending.expires for pending in self._pending.values()), default=None)

    def turn(self, now: float) -> None:
        """Take what has come, give up what is too late, send what can be sent; never waits."""
        self._receive()
        for identity in [identity for identity, pending in self._pending.items() if pending.expires <= now]:
            self._give_up(identity)
        self._send()

    def end(self) -> None:
        """Nothing more will come: everybody who waits is told."""
        for identity in list(self._pending):
            self._give_up(identity)

    def _send(self) -> None:
        while self._unsent:
            pending = self._pending.get(self._unsent[0])
            if pending is not None:  # else it was given up, and is not to be done later
                try:
                    self.socket.send(pending.body, zmq.NOBLOCK)
                except zmq.Again:
                    return
                pending.sent = True
            self._unsent.popleft()

    def _receive(self) -> None:
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            pending, reply = self._match(frames[-1])
            if pending is None or reply is None:
                self.strange += 1
            else:
                pending.done(reply)

    def _match(self, body: bytes) -> tuple[_Pending | None, Reply | None]:
        try:
            reply = json.loads(body)
        except (ValueError, RecursionError):
            return None, None
        if not isinstance(reply, dict) or not isinstance(reply.get("id"), str):
            return None, None
        return self._pending.pop(reply["id"], None), reply

    def _give_up(self, identity: str) -> None:
        pending = self._pending.pop(identity)
        if pending.sent:
            text = f"no answer from {self._endpoint} within {pending.timeout_s:g} s; it may be done all the same"
        else:
            text = (
                f"nobody is there at {self._endpoint}, and nothing was sent; "
                "does the daemon run, is this its control.bind, and does it know this key?"
            )
        pending.done(ControlTimeout(text))
