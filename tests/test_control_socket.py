"""The control socket over real sockets: requests, refusals, floods, garbage and messages without end."""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
import zmq
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from line_sockets import Line, Peer, resident_mb, serving
from properties import examples
from pydantic import BaseModel

from inspectd.config import ControlConfig, PublishConfig, SecurityConfig
from inspectd.errors import ConfigError
from inspectd.verdict import connections as connections_module
from inspectd.verdict.control import MAX_FRAME_BYTES, MAX_WAITING_EACH, Asked
from inspectd.verdict.control_schema import MAX_REQUEST_BYTES, ControlError
from inspectd.verdict.sockets import Sockets

STATUS = {"op": "status"}


def asking(line: Line, kind: int = zmq.DEALER, **options: Any) -> Peer:
    return Peer(kind, line.sockets.control_endpoint, **options)


class TestRequests:
    @pytest.mark.parametrize("kind", [zmq.REQ, zmq.DEALER])
    def test_are_answered_with_their_op_and_id(self, kind: int) -> None:
        """REQ and DEALER clients both work, and the same socket can ask again."""
        with serving() as line, asking(line, kind) as peer:
            for number in ("a", 7, None):
                reply = peer.ask({**STATUS, "id": number})
                assert reply == {"ok": True, "op": "status", "id": number, "role": "control", "client": "control"}

    def test_arrive_parsed(self) -> None:
        """The handler gets the request as the model that the schema names, and its result may be a model."""

        class Result(BaseModel):
            part: str
            ok: bool = False  # what a result calls itself does not change what the reply says

        def handler(sockets: Sockets, asked: Asked) -> None:
            assert asked.request.op == "trigger"
            sockets.reply(asked, Result(part=f"{asked.request.part_id} {asked.request.deadline_ms}"))

        with serving(handler=handler) as line, asking(line) as peer:
            reply = peer.ask({"op": "trigger", "camera": "top", "part_id": "7", "deadline_ms": 50})
            assert reply == {"ok": True, "op": "trigger", "id": None, "part": "7 50.0"}

    def test_may_be_answered_later_but_not_twice(self) -> None:
        """A reply reaches its asker whenever it comes; a second one is a mistake of ours; nobody need be there."""
        waiting: queue.Queue[Asked] = queue.Queue()
        raised: queue.Queue[BaseException | None] = queue.Queue()

        def handler(sockets: Sockets, asked: Asked) -> None:
            if asked.request.op == "challenge":
                waiting.put(asked)
                return
            for late in [waiting.get_nowait() for _ in range(waiting.qsize())]:
                sockets.reply(late, {"late": True})
                try:
                    sockets.reply(late, {})
                except RuntimeError as err:
                    raised.put(err)
            sockets.reply(asked, {})

        with serving(handler=handler) as line, asking(line) as first, asking(line) as second:
            first.socket.send_json({"op": "challenge", "id": 1})
            with asking(line) as gone:
                gone.socket.send_json({"op": "challenge", "id": 2})
                while waiting.qsize() < 2:
                    second.ask(b"garbage")
            assert second.ask(STATUS)["ok"]
            assert first.answer() == {"ok": True, "op": "challenge", "id": 1, "late": True}
            assert "second reply to challenge" in str(raised.get(timeout=5))

    def test_that_fail_inside_are_answered_and_nothing_else_is_hurt(self) -> None:
        """A defect of ours is `internal`: logged with its traceback, told without any of it."""

        def handler(sockets: Sockets, asked: Asked) -> None:
            if asked.request.op == "reload":
                raise ZeroDivisionError("the password is hunter2")
            sockets.reply(asked, {"value": object()} if asked.request.op == "challenge" else {})

        with structlog.testing.capture_logs() as logs, serving(handler=handler) as line, asking(line) as peer:
            for op in ("reload", "challenge"):
                reply = peer.ask({"op": op, "id": 3})
                assert (reply["ok"], reply["op"], reply["id"]) == (False, op, 3)
                assert reply["error"]["code"] == "internal"
                assert "hunter2" not in str(reply)
                assert "object" not in str(reply)
            assert peer.ask(STATUS)["ok"]
        assert [entry["event"] for entry in logs] == ["control_request_failed", "control_reply_failed"]

    def test_that_the_handler_refuses_carry_its_code_and_details(self) -> None:
        def handler(sockets: Sockets, asked: Asked) -> None:
            raise ControlError("busy", "three\n are  under way", in_flight=3)

        with serving(handler=handler) as line, asking(line) as peer:
            error = {"in_flight": 3, "code": "busy", "message": "three are under way"}
            assert peer.ask(STATUS) == {"ok": False, "op": "status", "id": None, "error": error}


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    """Somebody who is connected; what it was sent before does not matter."""
    with serving() as line, asking(line) as peer:
        yield peer


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "code", "op", "number"),
        [
            (b"", "bad_request", None, None),
            (b"\xff\xfe", "bad_request", None, None),
            (b"[" * 60_000, "bad_request", None, None),
            (b"null", "bad_request", None, None),
            (b"{}", "bad_request", None, None),
            (b'{"op":5,"id":"x"}', "unknown_op", None, "x"),
            (b'{"op":"explode","id":"x"}', "unknown_op", "explode", "x"),
            (b'{"op":"status","id":true}', "bad_request", "status", None),
            (b'{"op":"status","id":' + b"9" * 4000 + b"}", "bad_request", "status", None),
            (b'{"op":"status","id":1,"a\\nb":2}', "bad_request", "status", 1),
            (b'{"op":"status","' + b"k" * 60_000 + b'":2}', "bad_request", "status", None),
            (b'{"op":"trigger","camera":"../etc","deadline_ms":50}', "bad_request", "trigger", None),
            (b'{"op":"trigger","camera":"top","deadline_ms":NaN}', "bad_request", "trigger", None),
            (b'{"op":"trigger","camera":"top","deadline_ms":50,"part_id":"\\ud800"}', "bad_request", None, None),
            (b'{"op":"replay","topic":"t","from_seq":' + b"9" * 30 + b"}", "bad_request", "replay", None),
            (b" " * MAX_REQUEST_BYTES + b'{"op":"status"}', "too_large", None, None),
            (b'{"op":"trigger","camera":"a","part_id":"' + b"x" * 1_000_000 + b'"}', "too_large", None, None),
        ],
        ids=lambda value: value[:24].decode("ascii", "replace") if isinstance(value, bytes) else None,
    )
    def test_name_a_code_and_the_asker(self, peer: Peer, body: bytes, code: str, op: Any, number: Any) -> None:
        """Whatever is wrong, the reply says so in one short line, with op and id where they can be told."""
        reply = peer.ask(body)
        assert (reply["ok"], reply["op"], reply["id"], reply["error"]["code"]) == (False, op, number, code)
        assert 0 < len(reply["error"]["message"]) <= 300
        assert "\n" not in reply["error"]["message"]

    def test_of_triggers_are_told_with_the_camera_that_was_named(self) -> None:
        """So that they are counted; of other requests nothing is told."""
        with serving() as line, asking(line) as peer:
            for field in ({"camera": "top"}, {"camera": ["top"]}, {}):
                assert peer.ask({"op": "trigger", **field})["error"]["code"] == "bad_request"
            assert peer.ask({"op": "replay"})["error"]["code"] == "bad_request"
            assert peer.ask(b"trigger")["error"]["code"] == "bad_request"
            assert peer.ask({"op": "trigger", "camera": "top", "deadline_ms": 50})["ok"]
        assert line.refused_triggers == [("top", "bad_request"), ("", "bad_request"), ("", "bad_request")]

    @pytest.mark.parametrize("parts", [[b"", b""], [b"a", b"b"], [b"", b"{}", b""], [b""] * 5, [b"x"] * 1000])
    def test_answer_a_message_of_the_wrong_shape_once(self, peer: Peer, parts: list[bytes]) -> None:
        peer.socket.send_multipart(parts)
        assert peer.answer()["error"]["code"] == "bad_request"
        assert peer.ask({**STATUS, "id": "next"})["id"] == "next"

    def test_end_a_connection_whose_frame_is_too_long_to_be_read(self) -> None:
        """Beyond two megabytes nothing is read at all; the peer is cut off, the others notice nothing."""
        with serving() as line, asking(line) as other, asking(line) as huge:
            assert other.ask(STATUS)["ok"]
            huge.socket.send(b" " * (MAX_FRAME_BYTES + 1))
            huge.await_end()
            assert other.ask(STATUS)["ok"]
            assert other.unbroken


class TestLimits:
    def test_a_peer_with_many_open_requests_is_busy_and_the_others_are_not(self) -> None:
        waiting: list[Asked] = []

        def handler(sockets: Sockets, asked: Asked) -> None:
            if asked.request.op == "challenge":
                waiting.append(asked)
                return
            while waiting:
                sockets.reply(waiting.pop(), {})
            sockets.reply(asked, {})

        with serving(handler=handler) as line, asking(line) as greedy, asking(line) as other:
            for number in range(MAX_WAITING_EACH + 1):
                greedy.socket.send_json({"op": "challenge", "id": number})
            refused = greedy.answer()
            assert (refused["id"], refused["error"]["code"]) == (MAX_WAITING_EACH, "busy")
            assert other.ask(STATUS)["ok"]
            assert all(greedy.answer()["ok"] for _ in range(MAX_WAITING_EACH))
            assert greedy.ask(STATUS)["ok"], "there is room again"

    def test_a_flood_that_reads_no_reply_starves_nobody(self) -> None:
        """The stream and other clients go on, memory does not grow, and the log says that replies were lost."""
        flooding = threading.Event()
        handled = 0

        def flood(endpoint: str) -> None:
            with Peer(zmq.DEALER, endpoint, RCVHWM=1, SNDHWM=1000, SNDTIMEO=100) as peer:
                while not flooding.is_set():
                    try:
                        peer.socket.send(b'{"op":"status"}')
                    except zmq.Again:
                        continue

        def handler(sockets: Sockets, asked: Asked) -> None:
            nonlocal handled
            handled += 1
            sockets.reply(asked, {"padding": "x" * 20_000})

        with structlog.testing.capture_logs() as logs, ExitStack() as stack:
            line = stack.enter_context(serving(handler=handler))
            stack.callback(flooding.set)
            before = resident_mb()
            thread = threading.Thread(target=flood, args=(line.sockets.control_endpoint,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(flooding.set)
            peer = stack.enter_context(asking(line))
            stream = stack.enter_context(Peer(zmq.SUB, line.sockets.endpoint))
            until = time.monotonic() + 20
            while handled < 5000 or not any(entry["event"] == "reply_lost" for entry in logs):
                assert time.monotonic() < until
                assert peer.ask(STATUS)["ok"]
            stream.listen(20)
            assert resident_mb() - before < 60

    @pytest.mark.parametrize("where", ["control", "publish"])
    def test_a_message_without_end_ends_its_connection(self, where: str) -> None:
        """libzmq would keep every part of it until memory is full, several hundred megabytes a second."""
        with structlog.testing.capture_logs() as logs, serving() as line, asking(line) as other:
            assert other.ask(STATUS)["ok"]
            before = resident_mb()
            control = where == "control"
            raw = _connected_by_hand(
                line.sockets.control_endpoint if control else line.sockets.endpoint, "DEALER" if control else "SUB"
            )
            size = 60_000 if control else 1000
            frame = b"\x03" + size.to_bytes(8, "big") + bytes(size)  # flags: more follows, long
            with raw, pytest.raises(OSError, match=r"pipe|reset|timed out"):
                _send_for_ever(raw, frame)
            assert other.ask(STATUS)["ok"]
            assert other.unbroken
            assert resident_mb() - before < 800
        assert [entry["socket"] for entry in logs if entry["event"] == "connection_ended"] == [where]

    def test_more_connections_than_fit_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Strangers cannot use up the file descriptors that the cameras need; who is connected stays so."""
        monkeypatch.setattr(connections_module, "MAX_CONNECTIONS", 5)
        with structlog.testing.capture_logs() as logs, serving() as line, asking(line) as peer, ExitStack() as stack:
            assert peer.ask(STATUS)["ok"]
            address = _address(line.sockets.control_endpoint)
            strangers = [stack.enter_context(socket.create_connection(address, 10)) for _ in range(4)]
            for _ in range(4):
                # Ended as it is made, or right after, in whatever way the kernel tells so.
                with suppress(ConnectionError), socket.create_connection(address, 10) as late:
                    while late.recv(100):
                        pass
            assert peer.ask(STATUS)["ok"]
            assert peer.unbroken
            strangers[0].close()
            with asking(line) as welcome:
                assert welcome.ask(STATUS)["ok"], "there is room again"
        assert sum(entry["event"] == "connection_refused" for entry in logs) == 1, "and told once"

    def test_twenty_thousand_garbage_messages_leave_nothing_behind(self) -> None:
        """Each is answered once, in order, and memory is as it was after the first ones."""
        garbage = [b"", b"{", b'{"op":"x"}', os.urandom(300), b'{"op":"status","no":1}', b"[[1]]", b'{"op":"trigger"}']

        def send(peer: Peer, count: int) -> None:
            unanswered = 0
            for number in range(count):
                peer.socket.send(garbage[number % len(garbage)])
                unanswered += 1
                if unanswered == 40:
                    for _ in range(unanswered):
                        assert b'"ok":false' in peer.socket.recv()
                    unanswered = 0

        with serving() as line, asking(line, RCVTIMEO=10_000) as peer:
            send(peer, 2000)
            before = resident_mb()
            send(peer, 20_000)
            assert resident_mb() - before < 8
            assert peer.ask(STATUS)["ok"]


class TestStrangeBytes:
    def test_that_are_no_zeromq_disturb_nobody(self) -> None:
        """Garbage, half a handshake and nothing at all, on both ports."""
        with structlog.testing.capture_logs() as logs, serving() as line, asking(line) as peer, ExitStack() as stack:
            for endpoint in (line.sockets.endpoint, line.sockets.control_endpoint):
                for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(2000), b"\xff" + bytes(8) + b"\x7f\x03", b""):
                    for _ in range(5):
                        raw = stack.enter_context(socket.create_connection(_address(endpoint)))
                        raw.sendall(data)
            assert all(peer.ask({**STATUS, "id": number})["id"] == number for number in range(20))
        assert sum(entry["event"] == "handshake_failed" for entry in logs) <= 2, "strangers do not fill the log"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = {
    "op": st.sampled_from(["trigger", "replay", "status", "reload", "challenge", "recipe", "", "x"]) | JSON,
    "id": JSON,
    "camera": st.sampled_from(["top", "a/b"]) | JSON,
    "part_id": JSON,
    "deadline_ms": st.floats() | JSON,
    "topic": JSON,
    "from_seq": st.integers() | JSON,
    "boot_id": JSON,
    "limit": st.integers() | JSON,
    "name": JSON,
}
REQUESTS = st.fixed_dictionaries({}, optional=FIELDS)
BODIES = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")),
    JSON.map(lambda value: json.dumps(value).encode()),
    REQUESTS.map(lambda value: json.dumps(value).encode()),
    REQUESTS.map(lambda value: json.dumps(value).encode()[:-3]),
)
MESSAGES = st.one_of(BODIES.map(lambda body: [body]), st.lists(BODIES | st.just(b""), min_size=1, max_size=6))
CODES = {"bad_request", "unknown_op"}


def test_whatever_is_sent_is_answered_exactly_once() -> None:
    """No bytes, no JSON and no multipart shape brings two replies, none, an unknown code, or anything of our inside."""
    with serving() as line, asking(line) as peer:
        count = 0

        @examples(150, suppress_health_check=list(HealthCheck))
        @given(MESSAGES)
        def fuzz(message: list[bytes]) -> None:
            nonlocal count
            count += 1
            peer.socket.send_multipart(message)
            peer.socket.send_json({**STATUS, "id": f"after {count}"})
            reply = peer.answer()
            assert reply["ok"] or reply["error"]["code"] in CODES
            assert set(reply) >= {"ok", "op", "id"}
            text = str(reply)
            assert not any(ours in text for ours in ("Traceback", "0x", "<class", "inspectd", "pydantic"))
            assert peer.answer()["id"] == f"after {count}", "a second reply"

        fuzz()
        assert count >= 150


class TestAddresses:
    def made(self, publish: str, control: str) -> None:
        Sockets(
            PublishConfig(bind=publish),
            ControlConfig(bind=control),
            SecurityConfig(),
            on_subscriptions=lambda _: None,
            set_subscribers=lambda _: None,
            on_request=lambda _: None,
            on_refused_trigger=lambda camera, code: None,
        ).close(0.0)

    def test_in_use_name_the_key_to_change(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            bind = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(ConfigError, match=r"^control\.bind: tcp.*in use"):
                self.made("tcp://127.0.0.1:*", bind)
            with pytest.raises(ConfigError, match=r"^publish\.bind: tcp.*in use"):
                self.made(bind, "tcp://127.0.0.1:*")
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=r"^control\.bind: ipc.*no socket"):
            self.made("tcp://127.0.0.1:*", f"ipc://{tmp_path}/file")

    @pytest.mark.parametrize("bind", ["tcp://127.0.0.1:5999", "ipc:///tmp/inspectd-both"])
    def test_that_are_the_same_are_told_apart(self, bind: str) -> None:
        with pytest.raises(ConfigError, match=r"^control\.bind: .* is publish\.bind too"):
            self.made(bind, bind)

    def test_may_be_paths(self, tmp_path: Path) -> None:
        """ipc sockets serve as tcp ones do."""
        with (
            serving(bind=f"ipc://{tmp_path}/stream", control=f"ipc://{tmp_path}/control") as line,
            asking(line) as peer,
            Peer(zmq.SUB, line.sockets.endpoint) as stream,
        ):
            assert peer.ask(STATUS)["ok"]
            stream.listen()


def _send_for_ever(raw: socket.socket, frame: bytes) -> None:
    for _ in range(4_000_000_000 // len(frame)):  # an end, should the guard be missing
        raw.sendall(frame)


def _address(endpoint: str) -> tuple[str, int]:
    host, port = endpoint.removeprefix("tcp://").split(":")
    return host, int(port)


def _connected_by_hand(endpoint: str, kind: str) -> socket.socket:
    """A ZMTP 3.0 connection without security, past its handshake."""
    raw = socket.create_connection(_address(endpoint), timeout=5)
    raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    ready = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind.encode()
    raw.sendall(b"\x04" + bytes([len(ready)]) + ready)
    seen = b""
    while b"READY" not in seen:
        seen += raw.recv(1000)
    return raw
