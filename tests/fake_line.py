"""A stand-in for the daemon, in the test's own process: its two sockets, its messages, and its misbehaviour on order.

    with FakeLine() as line:
        with Client(line.verdicts, line.control) as client:
            line.await_subscriber()
            line.verdict("pass")                  # verdict/top/part/, seq 1
            with line.losing():
                line.verdict("fail")              # numbered and journaled, but nobody receives it
            line.verdict("pass")                  # the client finds the gap and asks for a replay

One thread owns the sockets; every method may be called from any other one and returns when it is done. Heartbeats
go out by themselves every `heartbeat_s`, the first at once; `pause_heartbeats()` is a daemon that hangs, `hang()` one
that does not even answer. `answers[op]` replaces the reply to an op: a function of the request that returns the result,
raises ControlError, or returns None for silence.
"""

from __future__ import annotations

import itertools
import json
import queue
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import zmq
from pydantic import BaseModel

from inspectd.verdict.control_schema import (
    ControlError,
    ReplayPage,
    ReplayRequest,
    Request,
    TriggerAccepted,
    TriggerRequest,
    parse_request,
)
from inspectd.verdict.schema import (
    HEARTBEAT_TOPIC,
    CameraStatus,
    DecisiveFrame,
    Encoding,
    FrameInfo,
    Heartbeat,
    JournalState,
    Latency,
    Message,
    NoResultReason,
    Part,
    PartFrames,
    State,
    Verdict,
    VerdictKind,
    encode,
    part_topic,
    status_topic,
    timestamp,
    verdict_topic,
)

T = TypeVar("T")
Answer = Callable[[Any], BaseModel | Mapping[str, Any] | None]
_WAIT_S = 20.0


class FakeLine:
    """See the module. `cameras` are names with the names of their regions.

    `journal` False answers every replay with `no_journal`. `on_trigger` is the verdict that follows a trigger on every
    region of its camera, or None for silence. `server_key` is (public, secret) in Z85 and puts CURVE on both sockets,
    open for every client key.
    """

    def __init__(
        self,
        cameras: Mapping[str, Sequence[str]] | None = None,
        *,
        journal: bool = True,
        encoding: Encoding = "json",
        heartbeat_s: float = 0.5,
        state: State = "ready",
        on_trigger: VerdictKind | None = "pass",
        server_key: tuple[bytes, bytes] | None = None,
        page: int = 1000,
    ) -> None:
        self.cameras = {name: tuple(rois) for name, rois in (cameras or {"top": ("part",)}).items()}
        self.requests: list[Request] = []  # every one that was understood, in order
        self.answers: dict[str, Answer] = {}
        self.on_trigger = on_trigger
        self.page = page  # most messages in one replay
        self.boot_id = ""
        self.verdicts = self.control = "tcp://127.0.0.1:*"
        self._state: tuple[State, str | None] = (state, None)
        self._journal_on = journal
        self._encoding: Encoding = encoding
        self._heartbeat_s = heartbeat_s
        self._server_key = server_key
        self._ids = itertools.count(1)
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._wake_in, self._wake_out = socket.socketpair()
        self._subscribed = threading.Condition()
        self._subscriptions: list[str] = []  # guarded by _subscribed
        self._thread = threading.Thread(target=self._run, name="fake-line", daemon=True)
        self._stopping = False

        # From here on the thread's own.
        self._boots: dict[str, dict[str, dict[int, Message]]] = {}  # journal, by boot, topic and seq; boots in order
        self._last: dict[str, Message] = {}
        self._beat_seq = 0
        self._beating = self._answering = True
        self._losing = False
        self._next_beat = 0.0

    # -- life ---------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._boot(None)
        self._bind()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._do(self._end)
            self._thread.join(_WAIT_S)
        self._wake_in.close()
        self._wake_out.close()

    def restart(self, boot_id: str | None = None, *, keep_journal: bool = True, away_s: float = 0.0) -> str:
        """End and begin anew at the same addresses: connections break, numbers begin at 1; returns the new boot_id."""

        def again() -> str:
            self._close()
            if away_s:
                threading.Event().wait(away_s)
            if not keep_journal:
                self._boots.clear()
            self._boot(boot_id)
            self._bind()
            return self.boot_id

        return self._do(again)

    def stop(self) -> None:
        """Gone, without a goodbye (as by kill -9); `restart()` brings it back."""
        self._do(self._close)

    def hang(self) -> None:
        """Neither heartbeats nor answers; the connections stay."""
        self._do(lambda: self._set(beating=False, answering=False))

    def pause_heartbeats(self) -> None:
        self._do(lambda: self._set(beating=False))

    def mute_control(self) -> None:
        """Requests are read and never answered."""
        self._do(lambda: self._set(answering=False))

    def resume(self) -> None:
        """Heartbeats at once, and answers again."""
        self._do(lambda: self._set(beating=True, answering=True))

    # -- messages -----------------------------------------------------------------------------------

    def verdict(
        self,
        kind: VerdictKind = "pass",
        camera: str = "top",
        roi: str = "part",
        *,
        reason: NoResultReason | None = None,
        label: str | None = None,
        **changes: Any,
    ) -> Verdict:
        """Publish a verdict with the next number of its topic; a label where the kind needs one. Returns it."""
        return self._do(lambda: self._verdict(kind, camera, roi, reason=reason, label=label, **changes))

    def part(
        self,
        kind: VerdictKind = "pass",
        camera: str = "top",
        roi: str = "part",
        *,
        reason: NoResultReason | None = None,
        label: str | None = None,
        **changes: Any,
    ) -> Part:
        """Publish the verdict on a part of free run."""
        label = label or {"pass": "good", "fail": "scratch"}.get(kind)
        judged = kind != "no_result"

        def send() -> Part:
            seq = self._seq(topic := part_topic(camera, roi))
            fields: dict[str, Any] = {
                "boot_id": self.boot_id,
                "seq": seq,
                "camera": camera,
                "roi": roi,
                "verdict": kind,
                "reason": None if judged else reason or "uncertain",
                "label": label,
                "score": 0.99 if judged else None,
                "vote": "any_defect",
                "frames": PartFrames(total=3, passed=3 * (kind == "pass"), failed=3 * (kind == "fail"), uncertain=0,
                                     unseen=0),
                "first_index": 10 * seq,
                "last_index": 10 * seq + 2,
                "first_at": timestamp(time.time()),
                "last_at": timestamp(time.time()),
                "decisive": DecisiveFrame(seq=1, index=10 * seq, pts=None, captured_at=None, evidence=None)
                if judged else None,
                "published_at": timestamp(time.time()),
                "model": "m0de1",
                "config": "c0nf1g",
            }  # fmt: skip
            return self._send(topic, Part(**{**fields, **changes}))

        return self._do(send)

    def status(self, camera: str = "top", state: State = "ready", reason: str | None = None) -> CameraStatus:
        """Publish a camera's state."""

        def send() -> CameraStatus:
            topic = status_topic(camera)
            message = CameraStatus(
                boot_id=self.boot_id,
                seq=self._seq(topic),
                camera=camera,
                state=state,
                reason=reason,
                published_at=timestamp(time.time()),
            )
            return self._send(topic, message)

        return self._do(send)

    def set_state(self, state: State, reason: str | None = None) -> None:
        """What heartbeats say from now on, beginning with one at once."""

        def change() -> None:
            self._state = (state, reason)
            if self._beating:
                self._beat()

        self._do(change)

    def beat(self) -> Heartbeat:
        """One heartbeat now, paused or not."""
        return self._do(self._beat)

    def raw(self, *frames: bytes) -> None:
        """Anything at all on the verdict stream."""
        self._do(lambda: self._xpub.send_multipart(frames))

    def repeat(self, topic: str) -> None:
        """The last value of a topic once more, marked `replayed`, as another subscriber's arrival causes it."""
        self._do(lambda: self._repeat(topic))

    @contextmanager
    def losing(self) -> Iterator[None]:
        """Messages within are numbered and journaled, and never arrive; heartbeats do."""
        self._do(lambda: self._set(losing=True))
        try:
            yield
        finally:
            self._do(lambda: self._set(losing=False))

    def published(self, topic: str, boot_id: str | None = None) -> list[Message]:
        """What a boot published on a topic, the lost messages too."""
        return self._do(lambda: list(self._boots[boot_id or self.boot_id].get(topic, {}).values()))

    def forget(self, topic: str, *seqs: int) -> None:
        """Take messages of this boot out of the journal: a replay reports them as `missing`."""

        def take() -> None:
            for seq in seqs:
                del self._boots[self.boot_id][topic][seq]

        self._do(take)

    def await_subscriber(self, topic: str = HEARTBEAT_TOPIC, count: int = 1) -> None:
        """Until somebody has subscribed to exactly this prefix, since the start, so many times."""
        with self._subscribed:
            assert self._subscribed.wait_for(lambda: self._subscriptions.count(topic) >= count, _WAIT_S), (
                f"nobody subscribed to {topic!r}: {self._subscriptions}"
            )

    def await_request(self, op: str, count: int = 1) -> Request:
        """Until so many requests of this kind have come; the last of them."""
        deadline = time.monotonic() + _WAIT_S
        while len(found := [request for request in self.requests if request.op == op]) < count:
            assert time.monotonic() < deadline, f"no {op} came: {self.requests}"
            self._do(lambda: None)
            threading.Event().wait(0.005)
        return found[count - 1]

    # -- the thread ---------------------------------------------------------------------------------

    def _do(self, job: Callable[[], T]) -> T:
        """Run in the thread; it has happened when this returns."""
        if not self._thread.is_alive() or threading.current_thread() is self._thread:
            return job()
        done: Future[T] = Future()
        self._jobs.put((job, done))
        self._wake_in.send(b"\0")
        return done.result(_WAIT_S)

    def _run(self) -> None:
        while not self._stopping:
            wait_s = max(0.0, self._next_beat - time.monotonic()) if self._beating and self._bound else 10.0
            for readable, _ in self._poller.poll(wait_s * 1000 + 1):
                if readable == self._wake_out.fileno():
                    self._wake_out.recv(1)
                    job, done = self._jobs.get()
                    try:
                        done.set_result(job())
                    except BaseException as err:
                        done.set_exception(err)
                    break  # it may have closed the others
                if readable is self._xpub:
                    self._subscription(self._xpub.recv())
                elif readable is self._router:
                    self._request(self._router.recv_multipart())
            if self._bound and self._beating and time.monotonic() >= self._next_beat:
                self._next_beat = time.monotonic() + self._heartbeat_s
                self._beat()

    def _bind(self) -> None:
        self._context = zmq.Context()
        self._xpub = self._context.socket(zmq.XPUB)
        self._router = self._context.socket(zmq.ROUTER)
        self._xpub.setsockopt(zmq.XPUB_VERBOSE, 1)
        for made in (self._xpub, self._router):
            made.setsockopt(zmq.LINGER, 200)
            made.setsockopt(zmq.SNDHWM, 0)
            if self._server_key is not None:
                made.curve_publickey, made.curve_secretkey = self._server_key
                made.curve_server = True
        for made, endpoint in ((self._xpub, self.verdicts), (self._router, self.control)):
            _bind(made, endpoint)
        self.verdicts = self._xpub.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self.control = self._router.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._poller = zmq.Poller()
        for readable in (self._wake_out, self._xpub, self._router):
            self._poller.register(readable, zmq.POLLIN)
        self._bound = True

    def _boot(self, boot_id: str | None) -> None:
        self.boot_id = boot_id or f"b00t-{len(self._boots) + 1}-{next(self._ids)}"
        self._boots[self.boot_id] = defaultdict(dict)
        self._last.clear()
        self._beat_seq = 0
        self._next_beat = 0.0

    def _close(self) -> None:
        if self._bound:
            self._bound = False
            self._poller = zmq.Poller()
            self._poller.register(self._wake_out, zmq.POLLIN)
            self._xpub.close()
            self._router.close()
            self._context.term()

    def _end(self) -> None:
        self._close()
        self._stopping = True

    def _set(self, *, beating: bool | None = None, answering: bool | None = None, losing: bool | None = None) -> None:
        if beating is not None:
            self._beating, self._next_beat = beating, 0.0
        self._answering = self._answering if answering is None else answering
        self._losing = self._losing if losing is None else losing

    # -- the stream ---------------------------------------------------------------------------------

    def _verdict(
        self,
        kind: VerdictKind,
        camera: str,
        roi: str,
        *,
        reason: NoResultReason | None = None,
        label: str | None = None,
        **changes: Any,
    ) -> Verdict:
        seq = self._seq(topic := verdict_topic(camera, roi))
        judged = kind != "no_result"
        fields: dict[str, Any] = {
            "boot_id": self.boot_id,
            "seq": seq,
            "camera": camera,
            "roi": roi,
            "verdict": kind,
            "reason": reason or (None if judged or label else "uncertain"),
            "label": label or {"pass": "good", "fail": "scratch"}.get(kind),
            "score": 0.99 if judged or label else None,
            "frame": FrameInfo(index=seq - 1, pts=None, clock="arrival"),
            "captured_at": timestamp(time.time()),
            "published_at": timestamp(time.time()),
            "latency_ms": Latency(decode=1, queue=2, engine=3, total=6.5),
            "model": "m0de1",
            "config": "c0nf1g",
        }
        return self._send(topic, Verdict(**{**fields, **changes}))

    def _seq(self, topic: str) -> int:
        return max(self._boots[self.boot_id][topic], default=0) + 1

    def _send(self, topic: str, message: Any) -> Any:
        self._boots[self.boot_id][topic][message.seq] = message
        self._last[topic] = message
        if not self._losing and self._bound:
            self._xpub.send_multipart([topic.encode(), encode(message, self._encoding)])
        return message

    def _beat(self) -> Heartbeat:
        self._beat_seq += 1
        state, reason = self._state
        journal: JournalState = "ok" if self._journal_on else "off"
        message = Heartbeat(
            boot_id=self.boot_id,
            seq=self._beat_seq,
            state=state,
            reason=reason,
            topics={topic: max(numbered) for topic, numbered in self._boots[self.boot_id].items() if numbered},
            journal=journal,
            config="c0nf1g",
            published_at=timestamp(time.time()),
        )
        self._xpub.send_multipart([HEARTBEAT_TOPIC.encode(), encode(message, self._encoding)])
        return message

    def _subscription(self, frame: bytes) -> None:
        prefix = frame[1:].decode()
        if frame[:1] == b"\x01":
            for topic in self._last:
                if topic.startswith(prefix):
                    self._repeat(topic)
            with self._subscribed:
                self._subscriptions.append(prefix)
                self._subscribed.notify_all()

    def _repeat(self, topic: str) -> None:
        message = self._last[topic].model_copy(update={"replayed": True})
        self._xpub.send_multipart([topic.encode(), encode(message, self._encoding)])

    # -- the control socket -------------------------------------------------------------------------

    def _request(self, frames: list[bytes]) -> None:
        *envelope, body = frames
        head: dict[str, Any] = {"op": None, "id": None}
        then: Callable[[], object] = lambda: None  # noqa: E731
        try:
            request = parse_request(body)
            self.requests.append(request)
            head = {"op": request.op, "id": request.id}
            if not self._answering:
                return
            result, then = self._answer(request)
            if result is None:
                return
            said = result.model_dump(mode="json") if isinstance(result, BaseModel) else dict(result)
            reply = {"ok": True, **head, **said}
        except ControlError as err:
            reply = {"ok": False, **head, "error": {"code": err.code, "message": str(err), **err.details}}
        self._router.send_multipart([*envelope, json.dumps(reply).encode()])
        then()

    def _answer(self, request: Request) -> tuple[BaseModel | Mapping[str, Any] | None, Callable[[], object]]:
        """The result, and what happens after the reply went out."""
        if (answer := self.answers.get(request.op)) is not None:
            return answer(request), lambda: None
        match request:
            case TriggerRequest():
                accepted = self._accept(request)
                return accepted, lambda: self._follow(request, accepted.trigger_id)
            case ReplayRequest():
                return self._replay(request), lambda: None
            case _:
                return self._plain(request.op, getattr(request, "name", None)), lambda: None

    def _accept(self, request: TriggerRequest) -> TriggerAccepted:
        if request.camera not in self.cameras:
            raise ControlError(
                "unknown_camera", f"{request.camera}: no such camera; there are {', '.join(self.cameras)}"
            )
        if not 5 <= request.deadline_ms <= 60_000:
            raise ControlError("bad_deadline", f"deadline_ms: {request.deadline_ms:g} is not within 5 and 60000")
        now = time.time()
        return TriggerAccepted(
            trigger_id=f"trigger-{next(self._ids)}",
            accepted_at=timestamp(now),
            deadline_at=timestamp(now + request.deadline_ms / 1000),
        )

    def _follow(self, request: TriggerRequest, trigger_id: str) -> None:
        if self.on_trigger is not None:
            for roi in self.cameras[request.camera]:
                self._verdict(self.on_trigger, request.camera, roi, part_id=request.part_id, trigger_id=trigger_id)

    def _replay(self, request: ReplayRequest) -> ReplayPage:
        if not self._journal_on:
            raise ControlError("no_journal", "journal.path is not set")
        boot_id = request.boot_id or self.boot_id
        if boot_id not in self._boots:
            raise ControlError("unknown_boot", f"{boot_id}: not in the journal")
        journaled = self._boots[boot_id].get(request.topic, {})
        newest = max(journaled, default=0)
        last = min(newest, request.from_seq + min(request.limit, self.page) - 1)
        wanted = range(request.from_seq, last + 1)
        order = list(self._boots)
        after = order[order.index(boot_id) + 1 :]
        return ReplayPage(
            topic=request.topic,
            boot_id=boot_id,
            messages=[json.loads(encode(journaled[seq].model_copy(update={"replayed": True}), "json"))
                      for seq in wanted if seq in journaled],
            missing=[(seq, seq) for seq in wanted if seq not in journaled],
            next_seq=last + 1 if last < newest else None,
            next_boot_id=after[0] if last >= newest and after and after[0] != self.boot_id else None,
        )  # fmt: skip

    def _camera_state(self, camera: str) -> Mapping[str, Any]:
        """As it was told last, lost or not."""
        told = self._boots[self.boot_id].get(status_topic(camera))
        if not told:
            return {"state": "ready", "reason": None}
        newest = told[max(told)]
        assert isinstance(newest, CameraStatus)
        return {"state": newest.state, "reason": newest.reason}

    def _plain(self, op: str, name: str | None) -> Mapping[str, Any]:
        """Replies as the daemon gives them, with nothing behind them."""
        state, reason = self._state
        models = [{"model": "m0de1", "path": "bundle"}]
        if op == "status":
            cameras = [
                {"name": camera, **self._camera_state(camera), "trigger": "command", "pending_triggers": 0,
                 "rois": [{"name": roi, "model": "m0de1"} for roi in rois]}
                for camera, rois in self.cameras.items()
            ]  # fmt: skip
            return {
                "boot_id": self.boot_id, "version": "0", "state": state, "reason": reason, "recipe": None,
                "config": "c0nf1g", "journal": {"state": "ok" if self._journal_on else "off", "why": None},
                "cameras": cameras, "models": models, "challenge": None,
            }  # fmt: skip
        if op == "recipe":
            if name == "unknown":
                raise ControlError("unknown_recipe", "unknown: no such recipe")
            return {"recipe": name, "config": "c0nf1g", "models": models}
        if op == "reload":
            return {"config": "c0nf1g", "applied": ["decision.pass_min"], "restart": ["publish.bind"]}
        picture = {"file": "good.png", "camera": "top", "roi": "part", "expect": "pass", "label": "good"}
        return {"passed": True, "pictures": [{**picture, "got": "pass", "ok": True}]}


def _bind(made: zmq.Socket[bytes], endpoint: str) -> None:
    """The address of a moment ago may still be held by a connection that is closing."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            made.bind(endpoint)
        except zmq.ZMQError:
            if time.monotonic() > deadline:
                raise
            threading.Event().wait(0.01)
        else:
            return


def unused_endpoint() -> str:
    """An address on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"
