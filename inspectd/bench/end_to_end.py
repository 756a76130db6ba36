"""The daemon as a user runs it: a process of its own, on the clip as a file camera, subscribed over ZeroMQ."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import zmq

from inspectd.bench.measure import Clip, Sample
from inspectd.bench.result import Latency
from inspectd.config import ENV_PREFIX, EngineConfig
from inspectd.errors import InspectdError
from inspectd.model.bundle import Bundle
from inspectd.verdict.schema import verdict_topic

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


def daemon_run(clip: Clip, bundle: Bundle, config: EngineConfig) -> Sample:
    """Frames as fast as they are judged; measured from the last verdict of the warm-up to the last of all.

    Raises:
        InspectdError: the daemon ended early, or not every frame got its one verdict, in order.
    """
    with _Daemon(clip, bundle, config, realtime=False) as daemon:
        arrived = list(daemon.verdicts())
    first, last = arrived[clip.warm_up - 1], arrived[-1]
    return Sample(len(arrived) - clip.warm_up, last.elapsed_s - first.elapsed_s, last.cpu_s - first.cpu_s)


def live_latency(clip: Clip, bundle: Bundle, config: EngineConfig) -> Latency:
    """The clip at its own pace: from the arrival of a frame's data to its verdict at the subscriber.

    Raises:
        InspectdError: as `daemon_run`.
    """
    with _Daemon(clip, bundle, config, realtime=True) as daemon:
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


class _Daemon:
    """`inspectd run` on the clip, and a subscription that stands before its first verdict."""

    def __init__(self, clip: Clip, bundle: Bundle, config: EngineConfig, *, realtime: bool) -> None:
        self._expected = clip.total
        self._folder = tempfile.TemporaryDirectory(prefix="inspectd-bench-run-")
        folder = Path(self._folder.name)
        endpoint = f"tcp://127.0.0.1:{_free_port()}"
        (folder / "config.toml").write_text(_toml(clip, bundle, config, endpoint, realtime=realtime), encoding="utf-8")
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
            InspectdError: one is missing or comes twice, or the daemon is silent.
        """
        for index in range(self._expected):
            arrived = self._receive(index)
            found = arrived.verdict["frame"]["index"]
            if found != index:
                raise InspectdError(f"bench: verdict {index} is about frame {found}; the figures would mean nothing")
            yield arrived

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
        self._context.term()
        self._folder.cleanup()


def _toml(clip: Clip, bundle: Bundle, config: EngineConfig, endpoint: str, *, realtime: bool) -> str:
    box = [clip.box.x, clip.box.y, clip.box.width, clip.box.height]
    source = f"file:{clip.path}" + ("?realtime=1" if realtime else "")
    return f"""\
[model]
bundle = {json.dumps(str(bundle.path.resolve()))}
[engine]
device = "{config.device}"
precision = "{config.precision}"
[[cameras]]
name = "bench"
source = {json.dumps(source)}
[[cameras.rois]]
name = "roi"
box = {box}
[publish]
bind = "{endpoint}"
[http]
bind = "127.0.0.1:0"
[log]
format = "json"
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cpu_s(pid: int) -> float:
    """User and system time of a process with all its threads, up to now, also when it has just ended (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
