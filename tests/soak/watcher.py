"""The subscriber that is there all the time: every verdict is held against the truth as it arrives."""

import array
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

import zmq
from guarded import guarded
from works import Scene, expected

STALE_S = 0.5 + 0.25
"""max_age_ms, and room for judging and telling: so much later than the freshest picture of its connection at most."""

Stamped = Callable[[float, str, dict], bool]  # monotonic seconds, topic, message -> whether that is it


@dataclass
class Promise:
    """Something that ought to be seen; `at` is when (monotonic seconds), or None."""

    sign: Stamped
    at: float | None = None


@dataclass
class _Connection:
    """One run of a camera's stream time: how late its pictures were at the subscriber, seconds."""

    last_pts: float = -1.0
    least_s: float = float("inf")
    latest_pass_s: float = float("-inf")


@dataclass
class Tally:
    """What came since it was last taken."""

    verdicts: Counter = field(default_factory=Counter)  # (camera, verdict, reason)
    belt_ms: array.array = field(default_factory=lambda: array.array("f"))
    belt_at: array.array = field(default_factory=lambda: array.array("d"))
    longest_beat_s: float = 0.0


class Watcher:
    """A thread with a plain subscriber. `broken(promise, detail)` is called for whatever must not be."""

    def __init__(self, endpoint: str, scenes: dict[str, Scene], belts: tuple[str, ...], broken) -> None:
        self._endpoint = endpoint
        self._scenes = scenes
        self._belts = belts
        self._broken = broken
        self._ending = threading.Event()
        self._thread = guarded("watcher", self._run, broken)
        self._lock = threading.Lock()
        # Guarded by _lock.
        self._tally = Tally()
        self._promises: list[Promise] = []
        # The thread's own; whole numbers and dicts that others only read.
        self.seqs: dict[str, int] = {}
        self.newest: dict[str, int] = {}  # what the heartbeat says was published last
        self.answers: defaultdict[tuple[str, str], int] = defaultdict(int)  # (trigger, ROI) -> verdicts
        self.judged = Counter()  # (right?, verdict)
        self.wrong_pass = self.wrong_fail = self.stale_pass = self.gaps = self.repeats = 0
        self.latest_pass_s = 0.0  # behind the freshest picture of its connection
        self._connections: defaultdict[str, _Connection] = defaultdict(_Connection)
        self._beat_at: float | None = None

    def start(self) -> "Watcher":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(10)
        for camera, connection in self._connections.items():
            self._judge_freshness(camera, connection)

    def expect(self, sign: Stamped) -> Promise:
        """Note when the next message comes of which `sign` is true."""
        promise = Promise(sign)
        with self._lock:
            self._promises.append(promise)
        return promise

    def forget(self, promise: Promise) -> None:
        with self._lock:
            if promise in self._promises:
                self._promises.remove(promise)

    def take(self) -> Tally:
        with self._lock:
            taken, self._tally = self._tally, Tally()
        return taken

    def complete(self) -> bool:
        """Whether everything has come that the last heartbeat spoke of."""
        return all(self.seqs.get(topic, 0) >= seq for topic, seq in self.newest.items() if topic.startswith("verdict/"))

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as stream:
            stream.set(zmq.RCVHWM, 0)
            stream.set(zmq.LINGER, 0)
            stream.subscribe("")
            stream.connect(self._endpoint)
            while not self._ending.is_set():
                if stream.poll(200):
                    topic, body = stream.recv_multipart()
                    self._take(time.monotonic(), topic.decode(), json.loads(body))

    def _take(self, now: float, topic: str, message: dict) -> None:
        if topic.startswith("heartbeat/"):
            self._beat(now, message)
        elif not message["replayed"]:
            self._count(topic, message["seq"])
            if topic.startswith("verdict/"):
                self._verdict(now, message)
        with self._lock:
            for promise in [p for p in self._promises if p.sign(now, topic, message)]:
                promise.at = now
                self._promises.remove(promise)

    def _count(self, topic: str, seq: int) -> None:
        before = self.seqs.get(topic)
        if before is not None and seq > before + 1:
            self.gaps += 1
            self._broken("every message arrives", f"{topic}: {before} is followed by {seq}")
        elif before is not None and seq <= before:
            self.repeats += 1
            self._broken("no message comes twice", f"{topic}: {seq} after {before}")
        self.seqs[topic] = max(seq, before or 0)

    def _beat(self, now: float, message: dict) -> None:
        self.newest = message["topics"]
        with self._lock:
            if self._beat_at is not None:
                self._tally.longest_beat_s = max(self._tally.longest_beat_s, now - self._beat_at)
        self._beat_at = now

    def _verdict(self, now: float, message: dict) -> None:
        camera, verdict = message["camera"], message["verdict"]
        if message["trigger_id"] is not None:
            self.answers[message["trigger_id"], message["roi"]] += 1
        if message["reason"] is None:
            self._judge(camera, message)
        with self._lock:
            self._tally.verdicts[camera, verdict, message["reason"] or ""] += 1
            if camera in self._belts and message["reason"] is None:
                self._tally.belt_ms.append(message["latency_ms"]["total"])
                self._tally.belt_at.append(now)
        if message["frame"] is not None and message["frame"]["pts"] is not None and camera == "street":
            self._time(camera, message)

    def _judge(self, camera: str, message: dict) -> None:
        """Is it what the picture shows?"""
        if message["frame"]["pts"] is None:
            self._broken("every judgement can be checked", f"{camera}: no stream time: {json.dumps(message)}")
            return
        given = message["verdict"], message["label"]
        truth = expected(self._scenes[camera].kind(message["frame"]["pts"]))
        right = given == truth
        self.judged[right, message["verdict"]] += 1
        if right:
            return
        if message["verdict"] == "pass":
            self.wrong_pass += 1
            self._broken("no wrong pass", f"{camera}: {truth[1]} passed: {json.dumps(message)}")
        else:
            self.wrong_fail += 1
            self._broken("every judgement is right", f"{camera}: {truth[1]} judged {given}: {json.dumps(message)}")

    def _time(self, camera: str, message: dict) -> None:
        """Was it of now? Nothing but the stream's time says so; what its clock shows is known when it has gone."""
        pts = message["frame"]["pts"]
        connection = self._connections[camera]
        if pts < connection.last_pts - 0.1:
            self._judge_freshness(camera, connection)
            connection = self._connections[camera] = _Connection()
        connection.last_pts = pts
        # From the capture to the verdict; the way to us would be on top of it, and a busy machine makes that long.
        late_s = datetime.fromisoformat(message["published_at"]).timestamp() - pts
        connection.least_s = min(connection.least_s, late_s)
        if message["verdict"] == "pass":
            connection.latest_pass_s = max(connection.latest_pass_s, late_s)

    def _judge_freshness(self, camera: str, connection: _Connection) -> None:
        late_s = connection.latest_pass_s - connection.least_s
        self.latest_pass_s = max(self.latest_pass_s, late_s)
        if late_s > STALE_S:
            self.stale_pass += 1
            self._broken("no stale pass", f"{camera}: a picture passed {late_s:.2f} s after it was taken")
