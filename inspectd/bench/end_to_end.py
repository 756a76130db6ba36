"""The daemon as a user runs it: a process of its own, on the clip as a file camera, subscribed over ZeroMQ."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import zmq

from inspectd.bench.measure import Clip, Sample
from inspectd.bench.result import Latency, TriggerLatency
from inspectd.config import ENV_PREFIX, EngineConfig
from inspectd.errors import InspectdError
from inspectd.model.bundle import Bundle
from inspectd.verdict.schema import verdict_topic
from inspectd.workers import Worker

SILENT_S = 60.0
"""A daemon that says nothing for so long while it has frames to judge is given up."""
_TOPIC = verdict_topic("bench", "roi")


@dataclass(frozen=True, slots=True)
class _Arrived:
    """One verdict, when it came (wall clock), and the CPU time that the daemon had used by then."""

    verdict: dict[str, Any]
    at: float
    elapsed_s: float  # monotonic
    cpu_s: float


def daemon_run(clip: Clip, bundle: Bundle, config: EngineConfig, *, journal: bool = False) -> Sample:
    """Frames as fast as they are judged; measured from the last verdict of the warm-up to the last of all.

    With `journal` every verdict is journaled as well, and somebody asks for a replay of 100 of them ten times a second.

    Raises:
        InspectdError: the daemon ended early, its engine failed, or not every frame got its one verdict, in order.
    """
    with _Daemon(clip, bundle, config, journal=journal) as daemon, _Replays(daemon.control if journal else None):
        arrived = list(daemon.verdicts())
    first, last = arrived[clip.warm_up - 1], arrived[-1]
    return Sample(len(arrived) - clip.warm_up, last.elapsed_s - first.elapsed_s, last.cpu_s - first.cpu_s)


def live_latency(clip: Clip, bundle: Bundle, config: EngineConfig) -> Latency:
    """The clip at its own pace: from the arrival of a frame's data to its verdict at the subscriber.

    Raises:
        InspectdError: as `daemon_run`.
    """
    with _Daemon(clip, bundle, config, source=f"file:{clip.path}?realtime=1") as daemon:
        arrived = list(daemon.verdicts())[clip.warm_up :]
    # Both ends stamp with this machine's wall clock.
    totals = [1000 * (a.at - datetime.fromisoformat(a.verdict["captured_at"]).timestamp()) for a in arrived]
    stages = {
        stage: float(np.median([a.verdict["latency_ms"][stage] for a in arrived]))
        for stage in ("decode", "queue", "engine")
    }
    p50, p99 = np.percentile(totals, [50, 99])
    return Latency(
        frames=len(totals),
        judged=sum(a.verdict["label"] is not None for a in arrived),
        p50_ms=float(p50),
        p99_ms=float(p99),
        max_ms=max(totals),
        stages_ms=stages,
    )


def trigger_latency(
    clip: Clip, bundle: Bundle, config: EngineConfig, size: tuple[int, int], fps: int, triggers: int
) -> TriggerLatency:
    """Triggers at random moments: from sending each to its verdict at the subscriber.

    The camera is a generated one of that size (width, height) that gives uncompressed pictures, as a machine vision
    camera does; compressed ones take their time to be decoded on top.

    Raises:
        InspectdError: the daemon ended early, its engine failed, or it refused a trigger or did not answer one.
    """
    dice = random.Random(0)
    total_ms, engine_ms = [], []
    judged = 0
    width, height = (max(side, 128) for side in size)
    source = f"conveyor:?width={width}&height={height}&fps={fps}"
    with _Daemon(clip, bundle, config, source=source, camera='trigger = "command"\n') as daemon:
        daemon.wait_ready()
        for _ in range(triggers):
            time.sleep(0.02 + dice.random() / fps)  # anywhere between two frames
            sent = time.perf_counter()
            verdict = daemon.trigger(deadline_ms=1000)
            total_ms.append(1000 * (time.perf_counter() - sent))
            engine_ms.append(verdict["latency_ms"]["engine"])
            judged += verdict["label"] is not None
    p50, p99 = np.percentile(total_ms, [50, 99])
    return TriggerLatency(
        triggers=triggers,
        judged=judged,
        p50_ms=float(p50),
        p99_ms=float(p99),
        max_ms=max(total_ms),
        interval_ms=1000 / fps,
        engine_ms=float(np.median(engine_ms)),
    )


class _Replays:
    """Asks for replays all the time, in a thread of its own; nothing without an endpoint."""

    def __init__(self, control: str | None) -> None:
        self._control = control
        self._worker = Worker("replays", self._run)

    def _run(self, stop: threading.Event) -> None:
        request = {"op": "replay", "topic": _TOPIC, "from_seq": 1, "limit": 100}
        with zmq.Context() as context, context.socket(zmq.REQ) as socket_:
            socket_.set(zmq.LINGER, 0)
            socket_.connect(self._control or "")
            while not stop.wait(0.1):
                socket_.send_json(request)
                while not socket_.poll(100):
                    if stop.is_set():
                        return
                reply: Any = socket_.recv_json()
                if reply["ok"] and (messages := reply["messages"]):
                    request["from_seq"] = messages[-1]["seq"] + 1

    def __enter__(self) -> Self:
        if self._control is not None:
            self._worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.stop(5.0)


class _Daemon:
    """`inspectd run` on the clip, and a subscription that stands before its first verdict."""

    def __init__(
        self,
        clip: Clip,
        bundle: Bundle,
        config: EngineConfig,
        *,
        source: str | None = None,
        camera: str = "",
        journal: bool = False,
    ) -> None:
        self._expected = clip.total
        endpoint, self.control = (f"tcp://127.0.0.1:{port}" for port in _free_ports(2))
        self._folder = tempfile.TemporaryDirectory(prefix="inspectd-bench-run-")
        folder = Path(self._folder.name)
        source = source or f"file:{clip.path}"
        toml = _toml(clip, bundle, config, endpoint, self.control, source, camera, journal=journal)
        (folder / "config.toml").write_text(toml, encoding="utf-8")
        self._errors = folder / "stderr"
        # The environment may configure another daemon on this machine, and systemd watch for its notifications.
        environment = {k: v for k, v in os.environ.items() if not k.startswith((ENV_PREFIX, "NOTIFY_", "WATCHDOG_"))}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVHWM, 0)
        self._socket.set(zmq.RECONNECT_IVL, 10)  # ms: connected long before the model is loaded
        self._socket.subscribe(_TOPIC)
        self._socket.connect(endpoint)
        self._requests = self._context.socket(zmq.REQ)
        self._requests.set(zmq.LINGER, 0)
        self._requests.connect(self.control)
        with self._errors.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "inspectd", "run", "-c", str(folder / "config.toml")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment,
            )

    def verdicts(self) -> Iterator[_Arrived]:
        """One for each frame of the clip, in order.

        Raises:
            InspectdError: one is missing or comes twice, the engine failed, or the daemon is silent.
        """
        for index in range(self._expected):
            arrived = self._receive(index)
            found = arrived.verdict["frame"]["index"]
            if found != index:
                raise InspectdError(f"bench: verdict {index} is about frame {found}; the figures would mean nothing")
            _refuse_failure(arrived.verdict)
            yield arrived

    def wait_ready(self) -> None:
        """Until the daemon says that it is ready.

        Raises:
            InspectdError: it does not.
        """
        deadline = time.monotonic() + SILENT_S
        while self._ask({"op": "status"})["state"] != "ready":
            if time.monotonic() > deadline:
                raise InspectdError(f"bench: the daemon was not ready after {SILENT_S:.0f} s: {self._last_words()}")
            time.sleep(0.05)

    def trigger(self, deadline_ms: float) -> dict[str, Any]:
        """Trigger and wait for the verdict.

        Raises:
            InspectdError: the trigger was refused or not answered, or the engine failed.
        """
        reply = self._ask({"op": "trigger", "camera": "bench", "deadline_ms": deadline_ms})
        if not reply["ok"]:
            raise InspectdError(f"bench: a trigger was refused: {reply['error']['message']}")
        while self._socket.poll(int(2000 + deadline_ms)):
            verdict: dict[str, Any] = json.loads(self._socket.recv_multipart()[1])
            if verdict["trigger_id"] == reply["trigger_id"] and not verdict["replayed"]:
                _refuse_failure(verdict)
                return verdict
        raise InspectdError(f"bench: a trigger was not answered: {self._last_words()}")

    def _ask(self, request: dict[str, Any]) -> Any:
        self._requests.send_json(request)
        if not self._requests.poll(int(SILENT_S * 1000)):
            raise InspectdError(f"bench: the daemon does not answer: {self._last_words()}")
        return self._requests.recv_json()

    def _receive(self, index: int) -> _Arrived:
        deadline = time.monotonic() + SILENT_S
        while True:
            ended = self._process.poll() is not None
            if self._socket.poll(200):
                break
            if ended or time.monotonic() > deadline:
                what = f"ended with {self._process.poll()}" if ended else f"was silent for {SILENT_S:.0f} s"
                raise InspectdError(
                    f"bench: the daemon {what} after {index} of {self._expected} verdicts: {self._last_words()}"
                )
        _, body = self._socket.recv_multipart()
        now, wall = time.perf_counter(), time.time()
        verdict = json.loads(body)
        if verdict["replayed"]:
            return self._receive(index)
        return _Arrived(verdict, wall, now, _cpu_s(self._process.pid))

    def _last_words(self) -> str:
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._socket.close()
        self._requests.close()
        self._context.term()
        self._folder.cleanup()


def _refuse_failure(verdict: dict[str, Any]) -> None:
    """A frame that was not judged is no work done, however fast that went."""
    if verdict["reason"] == "engine_error":
        raise InspectdError("bench: the engine failed, or its scores are no numbers; the figures would mean nothing")


def _toml(
    clip: Clip,
    bundle: Bundle,
    config: EngineConfig,
    endpoint: str,
    control: str,
    source: str,
    camera: str,
    *,
    journal: bool,
) -> str:
    box = [clip.box.x, clip.box.y, clip.box.width, clip.box.height]
    return f"""\
[model]
bundle = {json.dumps(str(bundle.path.resolve()))}
[engine]
device = "{config.device}"
precision = "{config.precision}"
[[cameras]]
name = "bench"
source = {json.dumps(source)}
{camera}[[cameras.rois]]
name = "roi"
box = {box}
[publish]
bind = "{endpoint}"
[control]
bind = "{control}"
[http]
bind = "127.0.0.1:0"
[log]
format = "json"
""" + ('[journal]\npath = "journal.db"\n' if journal else "")


def _free_ports(count: int) -> list[int]:
    """All different: each is held until the last is known."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _cpu_s(pid: int) -> float:
    """User and system time of a process with all its threads, up to now, also when it has just ended (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
