"""The control socket: requests from a ROUTER, each checked and answered exactly once.

    peer ──> ROUTER ──read()──> envelope, JSON, role ──on_request(asked)──> whoever does it
                 └──── refusals ────┘                                              │
    peer <── ROUTER <────────────────────────── reply(asked, result) <─────────────┘

What full means, place by place:
- a peer that sends faster than it is read (RECEIVE_QUEUE messages): libzmq stops reading from it, TCP makes it wait.
- requests that wait for their reply (MAX_WAITING_EACH of a peer, MAX_WAITING of all): refused with `busy`.
- a peer that does not read its replies (SEND_QUEUE replies): it loses the further ones, and the log says so.
- a turn (TURN_S): the rest is read in the next one, after the verdicts that wait.
- a message without end: `Connections` ends the connection.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
import zmq
from pydantic import BaseModel
from pydantic_core import from_json, to_json

from inspectd.verdict.control_schema import (
    MAX_INT,
    MAX_REQUEST_BYTES,
    READER_OPS,
    ControlError,
    ErrorCode,
    Request,
    Role,
    parse_request,
)
from inspectd.verdict.keyring import Client
from inspectd.verdict.seldom import Seldom

log = structlog.get_logger(__name__)

MAX_FRAME_BYTES = 2 * 1024 * 1024
"""A longer frame ends its connection before it is read; a shorter one that is no request gets its coded refusal."""
RECEIVE_QUEUE = 8
SEND_QUEUE = 128
"""Messages that libzmq holds of one peer and for one peer. By half a queue at a time it learns that replies were read,
so on a busy machine so many count as unread: with MAX_WAITING_EACH requests under way none is lost for that."""
MAX_WAITING_EACH = 32
MAX_WAITING = 256
TURN_S = 0.002
_MAX_MESSAGE = 300  # characters of an error's text
_MOST_PARTS: Final = 3  # identity, empty delimiter of a REQ, body


@dataclass(slots=True, eq=False)
class Asked:
    """A request that waits for its reply. Every one of them needs one `Control.reply`, also when its peer has left."""

    request: Request
    role: Role
    client: Client
    envelope: tuple[bytes, ...]  # identity, and the empty delimiter where there was one
    answered: bool = False


class Control:
    """The requests of one bound ROUTER socket. Belongs to the socket's thread."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        client_of: Callable[[zmq.Frame], Client | None],
        on_request: Callable[[Asked], None],
        on_refused_trigger: Callable[[str, ErrorCode], None],
    ) -> None:
        """`client_of` tells who a message is from by its last frame; it is asked once for every message, None: nobody.

        `on_request` gets what is well formed and permitted. It may raise ControlError, or `reply` then or later.
        `on_refused_trigger` is told of each trigger that never gets there: what it named as its camera, and the code.
        """
        self._socket = socket
        self._client_of = client_of
        self._on_request = on_request
        self._on_refused_trigger = on_refused_trigger
        self._parts: list[zmq.Frame] = []  # of the message that is being read, one more than a request has at most
        self._waiting: Counter[bytes] = Counter()  # identity -> requests without a reply
        self._lost_replies = Seldom()

    def read(self) -> None:
        """Take what has come, as much as fits in one turn."""
        until = time.monotonic() + TURN_S
        while time.monotonic() < until:
            try:
                frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            if len(self._parts) <= _MOST_PARTS:
                self._parts.append(frame)
            if not frame.more:
                parts, self._parts = self._parts, []
                self._take(parts)

    def reply(self, asked: Asked, result: BaseModel | Mapping[str, Any] | ControlError) -> None:
        """Answer a request. A peer that has left meanwhile is no error.

        Raises:
            RuntimeError: it was answered already.
        """
        if asked.answered:
            raise RuntimeError(f"a second reply to {asked.request.op}")
        asked.answered = True
        identity = asked.envelope[0]
        self._waiting[identity] -= 1
        if not self._waiting[identity]:
            del self._waiting[identity]
        op, number = asked.request.op, asked.request.id
        try:
            body = _body(op, number, result)
        except ValueError:  # what cannot be written as JSON
            log.exception("control_reply_failed", op=op, client=str(asked.client))
            body = _body(op, number, _internal())
        self._send(asked.envelope, body)

    def _take(self, parts: list[zmq.Frame]) -> None:
        """One message: a request for somebody, or a refusal at once."""
        delimited = len(parts) > 2 and not len(parts[1])
        envelope = tuple(part.bytes for part in parts[: 1 + delimited])
        body = parts[1 + delimited :]
        asker = self._client_of(parts[-1])
        try:
            request = _parsed(body)
            client = _permitted(asker, request)
            self._have_room(envelope[0])
        except ControlError as err:
            op, number, camera = _named(body[0].bytes) if len(body) == 1 else (None, None, "")
            if op == "trigger":
                self._on_refused_trigger(camera, err.code)
            self._send(envelope, _body(op, number, err))
            return
        asked = Asked(request, client.role, client, envelope)
        self._waiting[envelope[0]] += 1
        try:
            self._on_request(asked)
        except Exception as err:  # whatever one request sets off, the verdict stream of this thread goes on
            refusal = err if isinstance(err, ControlError) else None
            if refusal is None or asked.answered:
                log.exception("control_request_failed", op=request.op, client=str(client))
            if not asked.answered:
                self.reply(asked, refusal or _internal())

    def _have_room(self, identity: bytes) -> None:
        if self._waiting[identity] >= MAX_WAITING_EACH or self._waiting.total() >= MAX_WAITING:
            raise ControlError("busy", "too many requests wait for their reply")

    def _send(self, envelope: tuple[bytes, ...], body: bytes) -> None:
        try:
            self._socket.send_multipart([*envelope, body], zmq.NOBLOCK)
        except zmq.Again:
            if (more := self._lost_replies.due()) is not None:
                log.warning("reply_lost", reason="a peer does not read its replies", not_logged_since=more)
        except zmq.ZMQError as err:
            if err.errno != zmq.EHOSTUNREACH:  # it has left
                raise


def _parsed(body: list[zmq.Frame]) -> Request:
    if len(body) != 1:
        raise ControlError("bad_request", "expected one frame of JSON (a REQ or DEALER socket sends it so)")
    return parse_request(body[0].bytes)


def _permitted(client: Client | None, request: Request) -> Client:
    if client is None:
        raise ControlError("forbidden", "this key has no rights any more")
    if client.role != "control" and request.op not in READER_OPS:
        may = ", ".join(sorted(READER_OPS))
        raise ControlError("forbidden", f"the key {client} may only ask ({may}); {request.op} needs a key in control/")
    return client


def _internal() -> ControlError:
    return ControlError("internal", "it failed inside; the daemon's log says how")


def _body(op: str | None, number: str | int | None, result: BaseModel | Mapping[str, Any] | ControlError) -> bytes:
    head: dict[str, Any] = {"ok": not isinstance(result, ControlError), "op": op, "id": number}
    if isinstance(result, ControlError):
        text = " ".join(str(result).split())
        short = text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"
        rest: dict[str, Any] = {"error": {**result.details, "code": result.code, "message": short}}
    else:
        rest = result.model_dump() if isinstance(result, BaseModel) else dict(result)
    return to_json({**head, **rest, **head}, inf_nan_mode="null")


def _named(body: bytes) -> tuple[str | None, str | int | None, str]:
    """`op`, `id` and `camera` of what is refused, as far as they can be told, so that the reply finds its asker."""
    if len(body) > MAX_REQUEST_BYTES:
        return None, None, ""
    try:
        value = from_json(body)
    except ValueError:
        return None, None, ""
    if not isinstance(value, dict):
        return None, None, ""
    op, number, camera = value.get("op"), value.get("id"), value.get("camera")
    good_number = isinstance(number, int) and not isinstance(number, bool) and abs(number) <= MAX_INT
    return (
        op if isinstance(op, str) and len(op) <= 64 else None,
        number if good_number or (isinstance(number, str) and len(number) <= 128) else None,
        camera if isinstance(camera, str) else "",
    )
