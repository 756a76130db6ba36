"""A GPU that does everything as late as it may, and shows it when somebody did not wait.

Two streams of queued operations. A queued operation runs when an event behind it is synchronised, or at
a random earlier moment, some copies in two halves at different moments. What was consumed is poisoned at
once. So whoever gives a slot back too early, reads a result too early, mixes up lanes or forgets to let
one stream wait for the other, gets numbers that do not fit the stamps.

The "network" reads a stamp: every slot is filled with one 32-bit number, and its logits are
(lower 16 bits, upper 16 bits, 1 if not all words of the slot are equal).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inspectd.engine.cuda import LANES, OutOfMemory, Stream
from inspectd.errors import FatalEngineError

SIDE = 4
WORDS = SIDE * SIDE * 3 // 4  # of 32 bits, per slot
POISON = 0xDEADBEEF


@dataclass(slots=True, eq=False)
class _Mark:
    stream: Stream
    reached: bool = False


@dataclass(slots=True, eq=False)
class _Event:
    mark: _Mark | None = None


class SimulatedDevice:
    """`cuda.Device` in numpy. `fits` is the largest bucket for which there is memory."""

    def __init__(self, max_batch_size: int, seed: int = 0) -> None:
        self.fits = max_batch_size
        self.lost = False
        self.closed = False
        self.launches = 0
        self.prepared: list[tuple[int, int]] = []
        self.words = np.zeros((0, WORDS), np.uint32)  # the slots
        self._pixels = np.full((LANES, max_batch_size, WORDS), POISON, np.uint32)
        self._logits = np.full((LANES, max_batch_size, 3), np.nan, np.float32)
        self._results = np.full((LANES, max_batch_size, 3), np.nan, np.float32)
        self._queues: dict[Stream, deque[tuple[Any, ...]]] = {"copy": deque(), "compute": deque()}
        self._random = random.Random(seed)

    # What the engine calls.

    def allocate(self, count: int) -> np.ndarray:
        self._check()
        self.words = np.zeros((count, WORDS), np.uint32)
        return self.words.view(np.uint8).reshape(count, SIDE, SIDE, 3)

    def prepare(self, bucket: int, lane: int) -> None:
        self._check()
        if bucket > self.fits:
            raise OutOfMemory("simulated")
        self.prepared.append((bucket, lane))

    def copy_in(self, lane: int, slots: Sequence[int]) -> None:
        self._check()
        queue = self._queues["copy"]
        torn = self._random.randrange(4 * len(slots))  # the row, if there is one, that is copied in two halves
        for row, slot in enumerate(slots):
            if row == torn:
                queue.append((self._copy_part, lane, row, slot, slice(0, WORDS // 2)))
                queue.append((self._copy_part, lane, row, slot, slice(WORDS // 2, WORDS)))
            else:
                queue.append((self._copy, lane, row, slot))

    def launch(self, bucket: int, lane: int) -> None:
        self._check()
        if bucket > self.fits:
            raise OutOfMemory("simulated")
        self.launches += 1
        self._queues["compute"].append((self._run_network, lane, bucket))

    def copy_out(self, lane: int, first: int, count: int) -> None:
        self._check()
        self._queues["compute"].append((self._copy_back, lane, first, count))

    def results(self, lane: int) -> np.ndarray:
        return self._results[lane]

    def event(self) -> _Event:
        return _Event()

    def record(self, event: _Event, stream: Stream) -> None:
        self._check()
        event.mark = _Mark(stream)
        self._queues[stream].append((self._reach, event.mark))
        self._drift()

    def wait(self, stream: Stream, event: _Event) -> None:
        self._check()
        if event.mark is not None:
            self._queues[stream].append((self._await, event.mark))

    def synchronise(self, event: _Event) -> None:
        self._check()
        if event.mark is not None:
            self._force(event.mark)

    def close(self) -> None:
        self._check()
        self.closed = True

    # What happens on the device.

    def _copy(self, lane: int, row: int, slot: int) -> None:
        self._pixels[lane, row] = self.words[slot]

    def _copy_part(self, lane: int, row: int, slot: int, part: slice) -> None:
        self._pixels[lane, row, part] = self.words[slot, part]

    def _run_network(self, lane: int, bucket: int) -> None:
        words = self._pixels[lane, :bucket]
        logits = self._logits[lane, :bucket]
        logits[:, 0] = words[:, 0] & 0xFFFF
        logits[:, 1] = words[:, 0] >> 16
        logits[:, 2] = (words != words[:, :1]).any(axis=1)
        words[:] = POISON

    def _copy_back(self, lane: int, first: int, count: int) -> None:
        self._results[lane, first : first + count] = self._logits[lane, :count]
        self._logits[lane] = np.nan

    def _reach(self, mark: _Mark) -> None:
        mark.reached = True

    def _await(self, mark: _Mark) -> None:
        """Nothing to do: `_step` comes here only when the mark was reached."""

    # When it happens.

    def _step(self, stream: Stream) -> bool:
        """Run the stream's next operation; False when there is none or it has to wait."""
        queue = self._queues[stream]
        if not queue or (queue[0][0] == self._await and not queue[0][1].reached):
            return False
        operation, *arguments = queue.popleft()
        operation(*arguments)
        return True

    def _force(self, mark: _Mark) -> None:
        """Run exactly what must have run before the mark is reached, and nothing else."""
        while not mark.reached:
            if not self._step(mark.stream):
                self._force(self._queues[mark.stream][0][1])

    def _drift(self) -> None:
        """Mostly nothing; now and then a few operations of a stream; rarely all that can run."""
        draw = self._random.random()
        steps = 0 if draw < 0.6 else self._random.randrange(12) if draw < 0.95 else 1000
        for stream in ("copy", "compute") if self._random.random() < 0.5 else ("compute", "copy"):
            for _ in range(steps):
                if not self._step(stream):
                    break

    def _check(self) -> None:
        if self.lost:
            raise FatalEngineError("simulated: an illegal memory access was encountered")


# The same device with one protection removed: each must be caught by the stamps.


class NetworkDoesNotWaitForCopies(SimulatedDevice):
    def wait(self, stream: Stream, event: _Event) -> None:
        if stream != "compute":
            super().wait(stream, event)


class CopiesDoNotWaitForNetwork(SimulatedDevice):
    def wait(self, stream: Stream, event: _Event) -> None:
        if stream != "copy":
            super().wait(stream, event)


class HostDoesNotWaitForCopies(SimulatedDevice):
    def synchronise(self, event: _Event) -> None:
        if event.mark is None or event.mark.stream != "copy":
            super().synchronise(event)


class HostDoesNotWaitForResults(SimulatedDevice):
    def synchronise(self, event: _Event) -> None:
        if event.mark is None or event.mark.stream != "compute":
            super().synchronise(event)


class OneLaneForAll(SimulatedDevice):
    """Both batches in flight share one place on the device."""

    def copy_in(self, lane: int, slots: Sequence[int]) -> None:
        super().copy_in(0, slots)

    def launch(self, bucket: int, lane: int) -> None:
        super().launch(bucket, 0)

    def copy_out(self, lane: int, first: int, count: int) -> None:
        super().copy_out(0, first, count)

    def results(self, lane: int) -> np.ndarray:
        return super().results(0)


class NetworkOnTheOtherLane(SimulatedDevice):
    def launch(self, bucket: int, lane: int) -> None:
        super().launch(bucket, LANES - 1 - lane)


class ResultsOfAnEarlierRow(SimulatedDevice):
    """Every piece of a split batch writes its results to the beginning."""

    def copy_out(self, lane: int, first: int, count: int) -> None:
        super().copy_out(lane, 0, count)


class RecordsTooEarly(SimulatedDevice):
    """The event behind the copies is recorded before them."""

    def copy_in(self, lane: int, slots: Sequence[int]) -> None:
        self._late = (lane, list(slots))

    def record(self, event: _Event, stream: Stream) -> None:
        super().record(event, stream)
        if stream == "copy":
            super().copy_in(*self._late)
