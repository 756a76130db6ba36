"""The publisher over real sockets: numbering, replay, heartbeat, slow and hostile subscribers, the end."""

from __future__ import annotations

import gc
import json
import math
import os
import queue
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog
import zmq

from inspectd.config import CameraConfig, PublishConfig
from inspectd.errors import ConfigError
from inspectd.observe.ledger import Ledger
from inspectd.verdict import message as message_module
from inspectd.verdict import publisher as publisher_module
from inspectd.verdict.decide import Decision, Origin, Outcome, no_result
from inspectd.verdict.mailbox import Mailbox
from inspectd.verdict.publisher import HEARTBEAT_S, Publisher
from inspectd.verdict.schema import CameraStatus, Heartbeat, Message, Verdict, decode
from inspectd.verdict.teller import Roster, Teller, Waiting
from inspectd.workers import Deadline

TOPIC = "verdict/top/part/"
PASS = Decision("pass", None, "good", 0.9, {"good": 0.9, "scratch": 0.1})
FAIL = Decision("fail", None, "scratch", 0.8, {"good": 0.2, "scratch": 0.8})


ORIGIN = Origin("m0de1", "c0nf19")
MAX_AGE_S = 60.0  # longer than any test: only what is old on purpose is stale


def roster(cameras: tuple[str, ...]) -> Roster:
    rois = [{"name": name, "box": [0, 0, 16, 16]} for name in ("part", "label")]
    return Roster(
        config="c0nf19",
        recipe=None,
        cameras=tuple(
            CameraConfig(name=name, source="usb:0", max_age_ms=1000 * MAX_AGE_S, rois=rois) for name in cameras
        ),
        origins={name: {"part": ORIGIN, "label": ORIGIN} for name in cameras},
        parts={},
    )


class Observed:
    """Metrics that remember."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.counted: Counter[tuple[Any, ...]] = Counter()
        self.subscribers: queue.Queue[int] = queue.Queue()

    def stage(self, name: str) -> Callable[[float], None]:
        return self.seconds.setdefault(f"stage {name}", []).append

    def capture_to_verdict(self, camera: str) -> Callable[[float], None]:
        return self.seconds.setdefault(f"total {camera}", []).append

    def trigger_to_verdict(self, camera: str) -> Callable[[float], None]:
        return self.seconds.setdefault(f"trigger {camera}", []).append

    def count(self, *what: Any) -> None:
        self.counted[what] += 1

    def part_stuck(self, camera: str, roi: str, stuck: bool) -> None:
        self.counted[camera, roi, stuck] += 1

    trigger = triggers_pending = late_result = part = part_flicker = count

    def set_subscribers(self, n: int) -> None:
        self.subscribers.put(n)

    def await_subscribers(self, n: int) -> None:
        while self.subscribers.get(timeout=10) != n:
            pass


class Rig:
    """A publisher on a free port, with the ledger and metrics that it fills."""

    def __init__(self, bind: str = "tcp://127.0.0.1:*", cameras: tuple[str, ...] = ("top",), **config: Any) -> None:
        self.ledger = Ledger((camera, roi) for camera in cameras for roi in ("part", "label"))
        self.metrics = Observed()
        self.failures: queue.Queue[BaseException] = queue.Queue()
        self.publisher = Publisher(
            PublishConfig(bind=bind, **config),
            boot_id="b00t",
            roster=roster(cameras),
            ledger=self.ledger,
            metrics=self.metrics,
            on_failure=self.failures.put,
        )
        self.publisher.vouch(True)

    def outcome(self, decision: Decision = PASS, camera: str = "top", roi: str = "part", **changes: Any) -> Outcome:
        """The outcome of one captured frame; the camera's other ROI's ticket is dropped."""
        index, tickets = self.ledger.captured(camera)
        mine = next(ticket for ticket in tickets if ticket.roi == roi)
        for ticket in tickets:
            if ticket is not mine:
                self.ledger.dropped(ticket, "test")
        fields: dict[str, Any] = {
            "ticket": mine,
            "decision": decision,
            "origin": ORIGIN,
            "index": index,
            "pts": index / 30,
            "clock": "arrival",
            "captured_at": 1769860800.25,
            "arrival": time.monotonic(),
            "decode_s": 0.001,
            "queue_s": 0.002,
            "engine_s": 0.003,
        }
        return Outcome(**{**fields, **changes})

    def publish(self, count: int = 1, *args: Any, **kwargs: Any) -> None:
        for _ in range(count):
            self.publisher.publish(self.outcome(*args, **kwargs))

    def await_settled(self) -> None:
        deadline = Deadline(20)
        while self.ledger.in_flight:
            assert not deadline.passed
            time.sleep(0.002)

    def verdicts(self, roi: str = "part") -> dict[tuple[str, str], int]:
        return next(counts for counts in self.ledger.snapshot() if counts.roi == roi).verdicts


@contextmanager
def running(**config: Any) -> Iterator[Rig]:
    rig = Rig(**config)
    rig.publisher.start()
    try:
        yield rig
    finally:
        rig.publisher.stop(2)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running(send_queue=20_000) as started:
        yield started


class Sub:
    """A plain ZeroMQ subscriber, as PLC glue code would write it."""

    def __init__(self, endpoint: str, *topics: str, **options: int) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.SUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 100_000)
        self.socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name), value)
        self.socket.connect(endpoint)
        for topic in topics or ("",):
            self.socket.subscribe(topic)

    def next(self, timeout_s: float = 10) -> tuple[str, Message]:
        assert self.socket.poll(int(timeout_s * 1000)), "nothing came"
        topic, body = self.socket.recv_multipart()
        return topic.decode(), decode(body)

    def until(self, wanted: Callable[[str, Message], bool]) -> list[tuple[str, Message]]:
        """Everything up to the message that is wanted."""
        got: list[tuple[str, Message]] = []
        deadline = Deadline(20)
        while not got or not wanted(*got[-1]):
            got.append(self.next(deadline.left()))
        return got

    def rest(self) -> list[tuple[str, Message]]:
        """After the publisher's end: everything until nothing comes for a second."""
        got = []
        while self.socket.poll(1000):
            topic, body = self.socket.recv_multipart()
            got.append((topic.decode(), decode(body)))
        return got

    def close(self) -> None:
        self.socket.close()
        self.context.term()


@pytest.fixture
def subscribe() -> Iterator[Callable[..., Sub]]:
    """Makes subscribers that are connected: each has seen the first message that its topics replay."""
    made: list[Sub] = []

    def make(rig: Rig, *topics: str, **options: int) -> Sub:
        made.append(Sub(rig.publisher.endpoint, *topics, **options))
        return made[-1]

    yield make
    for sub in made:
        sub.close()


def connected(sub: Sub) -> Sub:
    """Wait until the subscription is served: the camera's status is replayed to it."""
    sub.until(lambda _, m: isinstance(m, CameraStatus) and m.camera == "top" and m.replayed)
    return sub


class TestMessages:
    def test_say_what_happened(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        """Every field of a verdict comes from its outcome, the thread adds its own."""
        sub = connected(subscribe(rig))
        arrival = time.monotonic() - 0.05
        rig.publish(1, FAIL, arrival=arrival)
        _, got = sub.until(lambda topic, _: topic == TOPIC)[-1]
        assert isinstance(got, Verdict)
        assert got.model_dump(exclude={"published_at", "latency_ms"}) == {
            "schema": "inspectd.verdict/1",
            "boot_id": "b00t",
            "seq": 1,
            "replayed": False,
            "camera": "top",
            "roi": "part",
            "verdict": "fail",
            "reason": None,
            "label": "scratch",
            "score": 0.8,
            "scores": {"good": 0.2, "scratch": 0.8},
            "boxes": (),
            "part_id": None,
            "trigger_id": None,
            "frame": {"index": 0, "pts": 0.0, "clock": "arrival"},
            "captured_at": "2026-01-31T12:00:00.250000Z",
            "model": "m0de1",
            "config": "c0nf19",
            "recipe": None,
            "evidence": None,
        }
        assert got.latency_ms.model_dump(exclude={"total", "trigger"}) == {"decode": 1.0, "queue": 2.0, "engine": 3.0}
        assert 50 <= got.latency_ms.total <= (time.monotonic() - arrival) * 1000

    @pytest.mark.parametrize("encoding", ["json", "msgpack"])
    def test_come_in_the_configured_encoding(self, encoding: str, subscribe: Callable[..., Sub]) -> None:
        with running(encoding=encoding) as rig:
            sub = subscribe(rig, "status/")
            assert sub.socket.poll(10_000)
            _, body = sub.socket.recv_multipart()
            assert (body[:1] == b"{") == (encoding == "json")
            assert isinstance(decode(body), CameraStatus)

    def test_settle_the_ticket_and_are_measured(self, rig: Rig) -> None:
        """The ledger tells pass, fail with its label, no_result with its reason, and the empty station."""
        empty = Decision("no_result", None, "station", 0.9, {"station": 0.9})
        for decision in (PASS, FAIL, no_result("stale"), empty):
            rig.publish(1, decision)
        rig.await_settled()
        assert rig.verdicts() == {
            ("pass", ""): 1,
            ("fail", ""): 1,
            ("no_result", "stale"): 1,
            ("no_result", "empty"): 1,
        }
        part = next(counts for counts in rig.ledger.snapshot() if counts.roi == "part")
        assert part.balanced
        assert part.defects == {"scratch": 1}
        assert rig.publisher.stop(2)
        assert len(rig.metrics.seconds["stage publish"]) == len(rig.metrics.seconds["total top"]) == 4
        assert all(0 <= seconds < 20 for values in rig.metrics.seconds.values() for seconds in values)

    def test_survive_clocks_that_are_nonsense(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        """A camera's broken clock or pts becomes null; it never costs a verdict."""
        sub = connected(subscribe(rig))
        rig.publish(1, captured_at=math.nan, pts=math.inf, decode_s=math.nan, queue_s=-1.0, engine_s=math.inf)
        _, got = sub.until(lambda topic, _: topic == TOPIC)[-1]
        assert isinstance(got, Verdict)
        assert got.frame is not None
        assert (got.verdict, got.captured_at, got.frame.pts) == ("pass", None, None)
        assert (got.latency_ms.decode, got.latency_ms.queue, got.latency_ms.engine) == (0, 0, 0)


class TestLastDefence:
    @pytest.mark.parametrize(
        "broken",
        [
            Decision("pass"),
            Decision("pass", None, "good", None, {"good": 0.9}),
            Decision("pass", None, None, 0.9, {"good": 0.9}),
            Decision("pass", None, "good", math.nan, {"good": math.nan}),
            Decision("pass", None, "good", 1.5, {"good": 1.5}),
            Decision("pass", "stale", "good", 0.9, {"good": 0.9}),
        ],
    )
    def test_a_pass_that_is_not_whole_becomes_no_result(
        self, rig: Rig, subscribe: Callable[..., Sub], broken: Decision
    ) -> None:
        """It is published and counted as an engine error, and the stream goes on."""
        sub = connected(subscribe(rig))
        rig.publish(1, broken)
        rig.publish(1, PASS)
        got = [m for _, m in sub.until(lambda _, m: m.seq == 2 and isinstance(m, Verdict)) if isinstance(m, Verdict)]
        assert [(m.seq, m.verdict, m.reason) for m in got] == [(1, "no_result", "engine_error"), (2, "pass", None)]
        assert got[0].label is got[0].score is None
        rig.await_settled()
        assert rig.verdicts() == {("no_result", "engine_error"): 1, ("pass", ""): 1}

    @pytest.mark.parametrize("said", [PASS, FAIL, Decision("no_result", None, "empty", 0.9, {"empty": 0.9})])
    def test_what_became_too_old_on_its_way_is_stale(
        self, rig: Rig, subscribe: Callable[..., Sub], said: Decision
    ) -> None:
        """Judged in time, and then this process stood still: whatever it says, it says of a part that has gone."""
        sub = connected(subscribe(rig))
        rig.publish(1, said, arrival=time.monotonic() - MAX_AGE_S)
        rig.publish(1, said, arrival=time.monotonic() - MAX_AGE_S / 2, waited_s=MAX_AGE_S / 2)  # some of it before
        rig.publish(1, no_result("corrupt"), arrival=time.monotonic() - MAX_AGE_S)
        got = [m for _, m in sub.until(lambda _, m: m.seq == 3 and isinstance(m, Verdict)) if isinstance(m, Verdict)]
        assert [(m.verdict, m.reason, m.label) for m in got] == [
            ("no_result", "stale", None),
            ("no_result", "stale", None),
            ("no_result", "corrupt", None),
        ]

    def test_it_is_logged_once_a_second_at_most(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        """A burst of 500 makes one line."""
        monkeypatch.setattr(message_module, "log", structlog.get_logger())
        with structlog.testing.capture_logs() as logs:
            started = time.monotonic()
            rig.publish(500, Decision("pass"))
            rig.await_settled()
        assert 1 <= len(logs) <= 1 + (time.monotonic() - started)
        assert logs[0]["event"] == "verdict_withheld"
        assert "label and score" in logs[0]["why"]


class TestNumbering:
    def test_has_no_gap_from_many_threads(self, subscribe: Callable[..., Sub]) -> None:
        """Four threads, two cameras, two ROIs: each topic counts from 1, each thread's order is kept."""
        with running(cameras=("top", "side"), send_queue=20_000) as rig:
            sub = connected(subscribe(rig, "verdict/", "status/"))
            keys = [("top", "part"), ("top", "label"), ("side", "part"), ("side", "label")]
            threads = [threading.Thread(target=rig.publish, args=(500, PASS, camera, roi)) for camera, roi in keys]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert rig.publisher.stop(5)
            got = [m for _, m in sub.rest() if isinstance(m, Verdict)]
        for camera, roi in keys:
            mine = [m for m in got if (m.camera, m.roi) == (camera, roi)]
            assert [m.seq for m in mine] == list(range(1, 501))
            indices = [m.frame.index for m in mine if m.frame is not None]
            assert indices == sorted(indices)
        assert all(counts.balanced and counts.in_flight == 0 for counts in rig.ledger.snapshot())

    def test_status_is_sent_on_change_only(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        """Each camera starts as `starting`; a repeat of what was said is not sent."""
        sub = subscribe(rig, "status/")
        first = sub.until(lambda _, m: isinstance(m, CameraStatus) and m.replayed)[-1][1]
        assert first.model_dump(include={"state", "seq", "replayed"}) == {
            "state": "starting",
            "seq": 1,
            "replayed": True,
        }
        for state, reason in [
            ("ready", None),
            ("ready", None),
            ("fault", "stall"),
            ("fault", "stall"),
            ("ready", None),
        ]:
            rig.publisher.set_status("top", state, reason)
        got = [sub.next()[1] for _ in range(3)]
        assert [(m.seq, m.state, m.reason) for m in got if isinstance(m, CameraStatus)] == [
            (2, "ready", None),
            (3, "fault", "stall"),
            (4, "ready", None),
        ]

    def test_a_camera_that_is_not_configured_has_no_status(self, rig: Rig) -> None:
        with pytest.raises(KeyError):
            rig.publisher.set_status("bottom", "ready", None)


class TestReplay:
    def test_a_late_subscriber_gets_the_last_value_marked(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        """The same message with the same seq and time, but `replayed`; what follows is not."""
        early = connected(subscribe(rig))
        rig.publish(5)
        _, original = early.until(lambda topic, m: topic == TOPIC and m.seq == 5)[-1]
        late = subscribe(rig, TOPIC)
        topic, repeat = late.next()
        assert isinstance(original, Verdict)
        assert isinstance(repeat, Verdict)
        assert topic == TOPIC
        assert repeat.replayed
        assert not original.replayed
        assert repeat.model_copy(update={"replayed": False}) == original
        rig.publish(1)
        _, live = late.next()
        assert isinstance(live, Verdict)
        assert (live.seq, live.replayed) == (6, False)

    def test_goes_by_prefix(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        """A subscription gets what it asks for: one ROI, a camera, or everything but the heartbeat."""
        rig.publish(1, PASS, "top", "part")
        rig.publish(1, PASS, "top", "label")
        rig.await_settled()
        for prefix, topics in {
            "verdict/top/part/": {TOPIC},
            "verdict/top/": {TOPIC, "verdict/top/label/"},
            "": {TOPIC, "verdict/top/label/", "status/top/"},
        }.items():
            sub = subscribe(rig, prefix)
            got: list[tuple[str, Message]] = []
            while len(got) < len(topics):
                topic, m = sub.next()
                if not isinstance(m, Heartbeat):  # one may be due just now; it is never a repeat
                    assert m.replayed
                    got.append((topic, m))
            assert {topic for topic, _ in got} == topics

    def test_every_new_subscriber_gets_it(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        """Also when somebody is subscribed to the same topic already; who was there can tell by seq."""
        rig.publish(1)
        rig.await_settled()
        subs = []
        for _ in range(3):
            subs.append(subscribe(rig, TOPIC))
            assert subs[-1].next()[1].seq == 1
        rig.publish(1)
        first = [m.seq for _, m in subs[0].until(lambda _, m: m.seq == 2)]
        assert first == [1, 1, 2]

    def test_an_old_pass_is_never_repeated_as_new(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        """However many come and go, only replayed messages repeat a seq."""
        watcher = connected(subscribe(rig))
        rig.publish(1)
        for _ in range(10):
            subscribe(rig, "verdict/").next()
        rig.publish(1)
        got = [m for _, m in watcher.until(lambda topic, m: topic == TOPIC and m.seq == 2) if isinstance(m, Verdict)]
        assert Counter(m.seq for m in got if not m.replayed) == {1: 1, 2: 1}
        assert {m.seq for m in got if m.replayed} == {1}

    def test_only_a_subscription_causes_it(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        """The end of one, or a message that a subscriber should not send, repeats nothing."""
        watcher = connected(subscribe(rig))
        rig.publish(1)
        watcher.until(lambda topic, _: topic == TOPIC)
        context = zmq.Context()
        peer = context.socket(zmq.XSUB)
        peer.connect(rig.publisher.endpoint)
        for frame in (b"\x02" + TOPIC.encode(), b"\x00" + TOPIC.encode(), TOPIC.encode(), b"\x01status/"):
            peer.send(frame)
        connected(watcher)
        rig.publish(1)
        assert [
            m.seq for topic, m in watcher.until(lambda topic, m: m.seq == 2 and topic == TOPIC) if topic == TOPIC
        ] == [2]
        peer.close(linger=0)
        context.term()

    def test_a_topic_without_message_is_silent(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        """Nothing is made up for it; its first message is the first."""
        sub = connected(subscribe(rig, "verdict/", "status/"))
        rig.publish(1)
        got = sub.next()[1]
        assert isinstance(got, Verdict)
        assert (got.seq, got.replayed) == (1, False)


class TestHeartbeat:
    def test_tells_state_and_the_newest_seq_of_every_topic(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        sub = connected(subscribe(rig, "heartbeat/", "status/"))
        rig.publish(3)
        rig.publisher.set_state("ready")
        rig.publisher.set_status("top", "ready", None)
        _, beat = sub.until(lambda _, m: isinstance(m, Heartbeat) and m.topics.get(TOPIC) == 3)[-1]
        assert isinstance(beat, Heartbeat)
        assert (beat.boot_id, beat.state) == ("b00t", "ready")
        assert beat.topics == {TOPIC: 3, "status/top/": 2}

    def test_keeps_its_rhythm_in_a_flood(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        """Verdicts as fast as they can be made do not delay it: no gap in seq, none near a silence."""
        sub = subscribe(rig, "heartbeat/")
        _, first = sub.next()
        flood_ends = time.monotonic() + 2.5
        flood = threading.Thread(
            target=lambda: [rig.publish(50) for _ in iter(lambda: time.monotonic() < flood_ends, False)]
        )
        flood.start()
        beats: list[tuple[int, float]] = []
        while flood.is_alive():
            beats.append((sub.next()[1].seq, time.monotonic()))
        flood.join()
        assert [seq for seq, _ in beats] == list(range(first.seq + 1, first.seq + 1 + len(beats)))
        assert len(beats) >= 4
        assert max(b[1] - a[1] for a, b in pairwise(beats)) < 2 * HEARTBEAT_S
        assert sum(rig.verdicts().values()) > 1000

    def test_shows_that_the_thread_turns(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        """Never late, idle or not: what the watchdog looks at."""
        sub = subscribe(rig, "heartbeat/")
        sub.next()
        sub.next()
        sub.next()
        assert rig.publisher.worker.late_s(time.monotonic()) == 0
        assert rig.publisher.worker.late_s(time.monotonic() + 2 * HEARTBEAT_S + 1) > 0
        assert rig.publisher.alive


class TestSubscribers:
    def test_are_counted_while_connected(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        first, second = subscribe(rig), subscribe(rig, TOPIC)
        rig.metrics.await_subscribers(2)
        second.close()
        rig.metrics.await_subscribers(1)
        first.close()
        rig.metrics.await_subscribers(0)

    def test_a_slow_one_loses_and_sees_it_the_others_lose_nothing(self, subscribe: Callable[..., Sub]) -> None:
        """The one that does not read is cut short by its own send queue alone."""
        wide = Decision("pass", None, "c0", 0.9, {f"class_number_{i}": 0.001 for i in range(150)})  # 4 KB on the wire
        count, queue_size = 6000, 1000
        with running(send_queue=queue_size) as rig:
            slow = connected(subscribe(rig, RCVHWM=1, RCVBUF=4096))
            quick = connected(subscribe(rig))
            seen = []
            for _ in range(0, count, 200):
                # Paced by the quick one, so that its own queue never fills.
                rig.publish(200, wide)
                upto = rig.ledger.snapshot()[0].captured
                seen += quick.until(lambda topic, m: topic == TOPIC and m.seq == upto)  # noqa: B023 - used at once
            assert [m.seq for topic, m in seen if topic == TOPIC] == list(range(1, count + 1))
            rig.await_settled()
            assert rig.verdicts() == {("pass", ""): count}
            # The heartbeat tells the newest seq, so that the lost tail shows even if no further part comes.
            got = slow.until(lambda _, m: isinstance(m, Heartbeat) and m.topics.get(TOPIC) == count)
            seqs = [m.seq for topic, m in got if topic == TOPIC]
            assert len(seqs) < count, "the slow one was to lose something"
            assert seqs == sorted(set(seqs))

    def test_garbage_from_them_is_ignored(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        """User messages, wrong unsubscriptions, subscriptions to nonsense, huge ones, and no ZeroMQ at all."""
        context = zmq.Context()
        hostile = context.socket(zmq.XSUB)
        hostile.setsockopt(zmq.LINGER, 500)
        hostile.connect(rig.publisher.endpoint)
        for garbage in (
            b"",
            b"\x00",
            b"\x01",
            b"\x02",
            b"hello",
            b"\x00never subscribed",
            b"\x01\xff\xfe",
            os.urandom(900),
        ):
            hostile.send(garbage)
        hostile.send_multipart([b"\x01verdict/", b"\x01", b"", b"more"])
        for _ in range(3000):
            hostile.send(b"\x01status/")
        hostile.send(b"\x01" + b"x" * 100_000)  # over the limit: libzmq closes the connection
        host, port = rig.publisher.endpoint.removeprefix("tcp://").split(":")
        raws = [socket.create_connection((host, int(port))) for _ in range(3)]
        raws[0].sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        raws[1].sendall(os.urandom(4096))
        raws[2].sendall(b"\xff" + b"\x00" * 8 + b"\x7f\x03\x01" + os.urandom(200))
        sub = connected(subscribe(rig))
        rig.publish(10)
        assert sub.until(lambda topic, m: topic == TOPIC and m.seq == 10)
        assert rig.publisher.alive
        assert rig.failures.empty()
        for raw in raws:
            raw.close()
        hostile.close()
        context.term()


class TestBind:
    def test_a_port_in_use_is_one_clear_line(self, rig: Rig) -> None:
        """Exit code 2, the key, the address; nothing of it stays behind."""
        second = Rig(bind=rig.publisher.endpoint)
        with pytest.raises(ConfigError, match=rf"^publish\.bind: {rig.publisher.endpoint}: address in use; ") as caught:
            second.publisher.start()
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)
        assert not second.publisher.alive
        assert second.publisher.stop(1)

    @pytest.mark.parametrize("bind", ["tcp://localhost:*", "tcp://[::1]:*", "ipc://{tmp}/verdicts"])
    def test_serves_every_kind_of_address(self, bind: str, tmp_path: Path, subscribe: Callable[..., Sub]) -> None:
        """The endpoint is the real one, the port included."""
        if "::1" in bind:
            try:
                socket.socket(socket.AF_INET6).bind(("::1", 0))
            except OSError:
                pytest.skip("no IPv6 on this machine")
        with running(bind=bind.format(tmp=tmp_path)) as rig:
            assert "*" not in rig.publisher.endpoint
            assert subscribe(rig, "status/").next()[0] == "status/top/"

    def test_an_ipc_path_that_is_taken_is_left_alone(self, tmp_path: Path, subscribe: Callable[..., Sub]) -> None:
        """A living daemon's socket is not stolen, a file is not deleted, a dead socket is replaced."""
        path = tmp_path / "verdicts"
        path.write_text("precious")
        with pytest.raises(ConfigError, match="no socket"):
            Rig(bind=f"ipc://{path}").publisher.start()
        assert path.read_text() == "precious"
        path.unlink()
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(str(path))
        dead.close()
        with running(bind=f"ipc://{path}") as rig:
            with pytest.raises(ConfigError, match="address in use"):
                Rig(bind=f"ipc://{path}").publisher.start()
            assert subscribe(rig, "status/").next()[0] == "status/top/"

    def test_an_impossible_address_is_one_clear_line(self) -> None:
        with pytest.raises(
            ConfigError, match=r"^publish\.bind: ipc:///no/such/folder/x: cannot be bound: No such file"
        ):
            Rig(bind="ipc:///no/such/folder/x").publisher.start()


class TestStop:
    def test_loses_nothing_that_was_published(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        """Right after 1,000 verdicts: all arrive, then the goodbye, and it says that all went out."""
        sub = connected(subscribe(rig))
        rig.publish(1000)
        assert rig.publisher.stop(10)
        got = sub.rest()
        assert [m.seq for topic, m in got if topic == TOPIC] == list(range(1, 1001))
        (status_topic, status), (_, beat) = got[-2:]
        assert status_topic == "status/top/"
        assert isinstance(status, CameraStatus)
        assert isinstance(beat, Heartbeat)
        assert (status.state, status.reason, beat.state) == ("fault", "stopped", "fault")
        assert beat.topics[TOPIC] == 1000
        assert rig.verdicts() == {("pass", ""): 1000}

    def test_is_bounded_when_a_subscriber_does_not_read(self, rig: Rig, subscribe: Callable[..., Sub]) -> None:
        """It gives up in time, and says that not everything went out."""
        connected(subscribe(rig, RCVHWM=1, RCVBUF=4096))
        wide = Decision("pass", None, "c0", 0.9, {f"class_number_{i}": 0.001 for i in range(150)})
        rig.publish(4000, wide)
        rig.await_settled()
        started = time.monotonic()
        assert not rig.publisher.stop(0.5)
        assert time.monotonic() - started < 5
        assert not rig.publisher.alive

    def test_says_goodbye_also_when_its_time_is_over(
        self, rig: Rig, subscribe: Callable[..., Sub], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What waits is counted as unpublished; who listens must not learn of the end by silence."""
        sub = connected(subscribe(rig))
        monkeypatch.setattr(publisher_module, "TURN", 1)
        tell = Teller.outcome

        def slow(teller: Teller, waiting: Waiting) -> None:
            time.sleep(0.05)
            tell(teller, waiting)

        monkeypatch.setattr(Teller, "outcome", slow)
        rig.publish(100)
        assert not rig.publisher.stop(0.3)
        got = sub.rest()
        (_, status), (_, beat) = got[-2:]
        assert isinstance(status, CameraStatus)
        assert isinstance(beat, Heartbeat)
        assert (status.reason, beat.state) == ("stopped", "fault")
        part = next(counts for counts in rig.ledger.snapshot() if counts.roi == "part")
        assert part.balanced
        assert part.dropped["unpublished"] + sum(part.verdicts.values()) == 100
        assert part.in_flight == 0

    def test_may_be_called_twice_and_before_start(self) -> None:
        rig = Rig()
        assert rig.publisher.stop(1)
        with running() as second:
            assert second.publisher.stop(2)
            assert second.publisher.stop(2)

    def test_what_comes_afterwards_is_counted_as_dropped(self, rig: Rig) -> None:
        """Nobody is left to hear it, but the books stay balanced."""
        assert rig.publisher.stop(2)
        rig.publish(3)
        rig.publisher.set_status("top", "ready", None)
        part = next(counts for counts in rig.ledger.snapshot() if counts.roi == "part")
        assert part.dropped == {"shutdown": 3}
        assert part.balanced

    def test_gives_everything_back(self) -> None:
        """No file descriptor is left after twenty lives."""

        def one_life() -> None:
            with running() as rig:
                rig.publish(1)

        one_life()
        gc.collect()
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            one_life()
        gc.collect()
        assert len(list(Path("/proc/self/fd").iterdir())) <= before


class TestFailure:
    def test_of_the_thread_is_reported(self, rig: Rig) -> None:
        """A broken invariant ends it: the owner is told, nobody blocks, later outcomes are counted."""
        twice = rig.outcome()
        rig.publisher.publish(twice)
        rig.publisher.publish(twice)
        assert isinstance(rig.failures.get(timeout=10), AssertionError)
        deadline = Deadline(10)
        while rig.publisher.alive and not deadline.passed:
            time.sleep(0.01)
        assert not rig.publisher.alive
        rig.publish(2)
        assert rig.ledger.in_flight == 0
        assert not rig.publisher.stop(1)

    def test_no_room_is_never_silent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A thread that takes nothing: publish waits, then the outcome is counted and the owner is told."""
        monkeypatch.setattr(publisher_module, "BLOCK_S", 0.05)
        monkeypatch.setattr(publisher_module, "CAPACITY", 10)
        rig = Rig()  # never started: as good as hung
        rig.publish(11)  # what vouches for them has the tenth place
        assert "10 messages wait" in str(rig.failures.get_nowait())
        part = next(counts for counts in rig.ledger.snapshot() if counts.roi == "part")
        assert part.dropped == {"unpublished": 1, "shutdown": 1}  # only the first one waited for room
        assert part.in_flight == 9


class TestVouching:
    """What a verdict may say goes by who judged its frame, and by whether that was vouched for then."""

    def told(self, rig: Rig) -> dict[tuple[str, str], int]:
        rig.publisher.start()
        rig.await_settled()
        assert rig.publisher.stop(2)
        return rig.verdicts()

    def test_the_next_line_up_does_not_vouch_for_the_one_before(self) -> None:
        """A challenge failed; what that line-up had judged still waits when the next one has passed its own."""
        rig = Rig()
        rig.publisher.vouch(False)
        rig.publish(3)
        rig.publisher.use(roster(("top",)))
        rig.publisher.vouch(True)
        rig.publish(2)
        assert self.told(rig) == {("no_result", "not_ready"): 3, ("pass", ""): 2}

    def test_a_denial_counts_at_once(self) -> None:
        """Also for what was handed over while all was well; and no earlier word of trust outlives it."""
        rig = Rig()
        rig.publish(2)
        rig.publisher.vouch(True)
        rig.publisher.vouch(False)
        rig.publish(1)
        assert self.told(rig) == {("no_result", "not_ready"): 3}

    @pytest.mark.parametrize("decision", [PASS, FAIL])
    def test_what_a_line_up_judged_that_has_gone_is_no_judgement(self, decision: Decision) -> None:
        """Its engine was slow: from the first verdict of another line-up on, all are that one's."""
        rig = Rig()
        other = Origin("0ther", "c0nf20", "lid")
        rig.publisher.use(replace(roster(("top",)), origins={"top": {"part": other}}))
        rig.publish(1, decision)
        rig.publish(1, decision, origin=other)
        rig.publish(1, no_result("corrupt"))
        assert self.told(rig) == {
            ("no_result", "not_ready"): 1,
            (decision.verdict, ""): 1,
            ("no_result", "corrupt"): 1,
        }


class TestMailbox:
    def test_no_wake_up_is_lost(self) -> None:
        """A consumer that sleeps without a timeout between items still gets every one, from four threads."""
        mailbox: Mailbox[int] = Mailbox(8)
        poller = zmq.Poller()
        poller.register(mailbox.fd, zmq.POLLIN)
        taken: list[int] = []
        threads = [
            threading.Thread(target=lambda: [mailbox.put(i, 20) for i in range(5000)], daemon=True) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        while len(taken) < 20_000:
            if mailbox.may_sleep():
                assert poller.poll(20_000), "slept through an item"
                mailbox.woken()
            taken += mailbox.take(3)
        assert Counter(taken) == dict.fromkeys(range(5000), 4)
        mailbox.release()

    def test_room_lets_the_waiting_go_on(self) -> None:
        mailbox: Mailbox[int] = Mailbox(1)
        assert mailbox.put(1, 0)
        with pytest.raises(TimeoutError):
            mailbox.put(2, 0)
        done = threading.Event()
        thread = threading.Thread(target=lambda: mailbox.put(2, 20) and done.set())
        thread.start()
        assert mailbox.take(1) == [1]
        assert done.wait(20)
        assert mailbox.take(9) == [2]
        thread.join()
        mailbox.release()

    def test_closing_lets_the_waiting_go_empty_handed(self) -> None:
        mailbox: Mailbox[int] = Mailbox(1)
        mailbox.put(1, 0)
        refused: queue.Queue[bool] = queue.Queue()
        thread = threading.Thread(target=lambda: refused.put(mailbox.put(2, 20)))
        thread.start()
        mailbox.close()
        assert refused.get(timeout=20) is False
        assert mailbox.take(9) == [1]
        assert not mailbox.may_sleep()
        mailbox.release()
        mailbox.release()
        assert mailbox.put(3) is False
        thread.join()


def test_the_wire_is_two_frames_topic_and_body(rig: Rig, subscribe: Callable[..., Sub]) -> None:
    """What a subscriber without this package sees."""
    sub = subscribe(rig, "status/top/")
    assert sub.socket.poll(10_000)
    topic, body = sub.socket.recv_multipart()
    assert topic == b"status/top/"
    assert json.loads(body)["camera"] == "top"
