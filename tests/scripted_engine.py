"""An engine whose answers and faults the test decides; its pixels are the truth it answers from."""

import threading
from collections import deque

import numpy as np

from inspectd.engine.base import Engine, EngineInfo
from inspectd.errors import EngineError, FatalEngineError


class ScriptedEngine(Engine):
    """Logits per crop are `answer(pixels)`; a batch may wait for `gate`, fail once, or kill the device."""

    def __init__(self, classes=2, size=(8, 8), max_batch_size=4, depth=2, answer=None):
        self.info = EngineInfo("scripted", "test", "f32", "the test says so")
        self.max_batch_size, self.depth = max_batch_size, depth
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()  # a collect has begun
        self.fail_next: deque[Exception] = deque()
        self.batches: list[int] = []
        self.closed = False
        self._size, self._classes = size, classes
        self._answer = answer or (lambda pixels: np.eye(classes, dtype=np.float32)[int(pixels[0, 0, 0]) % classes] * 10)
        self._pending: deque = deque()

    def allocate(self, count):
        return np.zeros((count, *self._size, 3), np.uint8)

    def warm_up(self):
        pass

    def submit(self, slots, release):
        assert 1 <= len(slots) <= self.max_batch_size
        assert len(self._pending) < self.depth
        self.batches.append(len(slots))
        self._pending.append((list(slots), release))

    def collect(self):
        self.entered.set()
        assert self.gate.wait(20)
        slots, release = self._pending[0]
        if self.fail_next:
            err = self.fail_next.popleft()
            if isinstance(err, FatalEngineError):
                raise err
            self._pending.popleft()
            release(slots)
            raise err
        self._pending.popleft()
        logits = np.stack([self._answer(slot.pixels) for slot in slots]).astype(np.float32)
        release(slots)
        return logits

    @property
    def in_flight(self):
        return len(self._pending)

    def close(self):
        self.closed = True


__all__ = ["EngineError", "FatalEngineError", "ScriptedEngine"]
