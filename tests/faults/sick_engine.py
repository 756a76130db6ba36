"""`inspectd run -c FILE` with an engine that falls ill on demand: OpenVINO's own, or CUDA's logic on a simulated GPU.

    SICK=openvino|cuda ORDERS=SOCKET [HANG_S=SECONDS] python sick_engine.py run -c FILE

The socket takes datagrams, each the engine's state from then on: `well`, `failing` (each request fails), `once` (one
does, then it is well), `nan` (scores that are no numbers), `hung` (waits until the next order), `lost` (a GPU that is
gone), `memory N` (a GPU with room for a batch of N). At the end the daemon's books are logged as `books`.
"""

import functools
import os
import socket
import sys
import threading
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import simulated_device
from colour_bundle import CLASSES, COLOURS
from faulty_camera import FaultyCamera
from saboteur import BookedDaemon

import inspectd.daemon
from inspectd import health, lineup, station
from inspectd.capture.camera import Camera
from inspectd.cli import main
from inspectd.engine import runner
from inspectd.engine.base import EngineInfo
from inspectd.engine.cuda import LANES, CudaEngine
from inspectd.engine.openvino import OpenVinoEngine

BATCH = 8
SIDE = simulated_device.SIDE = 16  # of a slot; a bundle's pictures cannot be smaller
simulated_device.WORDS = SIDE * SIDE * 3 // 4


class Health:
    """How the engine is; orders come in a thread of its own."""

    def __init__(self, address):
        self.state = "well"
        self.fits = BATCH
        self.changed = threading.Condition()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        threading.Thread(target=self.listen, name="orders", daemon=True).start()

    def listen(self):
        while True:
            state, _, size = self.socket.recv(100).decode().partition(" ")
            with self.changed:
                self.state, self.fits = state, int(size or BATCH)
                self.changed.notify_all()

    def wait_while_hung(self):
        with self.changed:
            self.changed.wait_for(lambda: self.state != "hung")

    def fails(self):
        """Whether this request does."""
        with self.changed:
            if self.state == "once":
                self.state = "well"
                return True
            return self.state == "failing"


class SickRequest:
    """One of OpenVINO's requests, with what OpenVINO does to it when it falls ill."""

    def __init__(self, request, scores, illness):
        self.request, self.scores, self.illness = request, scores, illness

    def start_async(self):
        self.request.start_async()

    def wait(self):
        self.request.wait()
        self.illness.wait_while_hung()
        if self.illness.fails():
            raise RuntimeError("Exception from src/core:1:\nsimulated: a request failed")
        if self.illness.state == "nan":
            self.scores[:] = np.nan


class SickOpenVino(OpenVinoEngine):
    def __init__(self, bundle, config, illness):
        super().__init__(bundle, config, "sick on demand")
        self.illness = illness

    def allocate(self, count):
        memory = super().allocate(count)
        self._requests = [SickRequest(r, self._scores[i], self.illness) for i, r in enumerate(self._requests)]
        return memory


class SickGpu(simulated_device.SimulatedDevice):
    """The simulated GPU with the colour bundle's network on it: minus the squared distance to each class's colour."""

    TARGETS = np.array([COLOURS[spec.name] for spec in CLASSES], np.float32)  # [4, 3]

    def __init__(self, illness):
        super().__init__(BATCH)
        self.illness = illness
        self._logits = np.full((LANES, BATCH, len(CLASSES)), np.nan, np.float32)
        self._results = self._logits.copy()

    def launch(self, bucket, lane):
        self.fits = self.illness.fits
        super().launch(bucket, lane)

    def synchronise(self, event):
        self.illness.wait_while_hung()
        super().synchronise(event)

    def _run_network(self, lane, bucket):
        words = self._pixels[lane, :bucket]
        colours = words.copy().view(np.uint8).reshape(bucket, SIDE * SIDE, 3).mean(axis=1, dtype=np.float32)
        self._logits[lane, :bucket] = -((colours[:, None] - self.TARGETS) ** 2).sum(axis=2) / 1000
        if self.illness.state == "nan":
            self._logits[lane, :bucket] = np.nan
        words[:] = simulated_device.POISON

    def _check(self):
        self.lost = self.illness.state == "lost"
        super()._check()


def make_engine(bundle, config, illness):
    if os.environ["SICK"] == "openvino":
        return SickOpenVino(bundle, config, illness)
    return CudaEngine(SickGpu(illness), EngineInfo("cuda", "cuda:0", "fp16", "simulated"), BATCH)


if __name__ == "__main__":
    inspectd.daemon.Daemon = BookedDaemon
    for module in (health, runner):
        module.HANG_S = float(os.environ.get("HANG_S", module.HANG_S))
    station.Camera = functools.partial(Camera, make_source=lambda config: FaultyCamera(fps=25))
    lineup.make_engine = functools.partial(make_engine, illness=Health(os.environ["ORDERS"]))
    main()
