"""The CUDA engine: a ring of pinned slots, two batches in flight, and the order that makes it safe.

Per batch, on two streams of one device (`torch_device.py` is the real one):

    copy stream      wait done(lane), slots -> the lane's pixels, record copied(lane)
    compute stream   wait copied(lane), network, logits -> the lane's results, record done(lane)

A lane is one batch's place on the device: pixels, logits, results, two events. Batches take the lanes in
turn, so the copies of one overlap with the network of the other. The host gives slots back only behind
`copied`, and reads results only behind `done`. `tests/simulated_device.py` proves this order with a
device that does everything as late as it may.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol

import numpy as np
import structlog

from inspectd.engine.base import Engine, EngineInfo, Logits, Slot
from inspectd.errors import EngineError, FatalEngineError
from inspectd.frame import U8

log = structlog.get_logger(__name__)

LANES = 2
Stream = Literal["copy", "compute"]
Event = Any
"""A marker in a stream. Waiting for one that was never recorded waits for nothing; a later `record`
does not change what an earlier `wait` waits for. CUDA's own semantics."""


class OutOfMemory(Exception):  # noqa: N818 - a state of the device that the engine handles
    """The device has no memory for this; it goes on working."""


class Device(Protocol):
    """Everything that the engine asks of a GPU.

    Calls queue work behind what their stream has, and return at once, unless they say that they wait.
    Any of them may raise `FatalEngineError`, after which the device is gone.
    """

    def allocate(self, count: int) -> U8:
        """Pinned slots, uint8 [count, height, width, 3], zeroed. May raise OutOfMemory."""

    def prepare(self, bucket: int, lane: int) -> None:
        """Make `launch(bucket, lane)` fast and run it once; waits. May raise OutOfMemory."""

    def copy_in(self, lane: int, slots: Sequence[int]) -> None:
        """Copy stream: these slots to rows 0, 1, … of the lane's pixels, one copy each."""

    def launch(self, bucket: int, lane: int) -> None:
        """Compute stream: the network on rows [0, bucket) of the lane. May raise OutOfMemory, nothing queued."""

    def copy_out(self, lane: int, first: int, count: int) -> None:
        """Compute stream: the lane's logits [0, count) to its results [first, first + count)."""

    def results(self, lane: int) -> Logits:
        """The lane's results, pinned host memory: float32 [max_batch_size, classes]."""

    def event(self) -> Event:
        """A new event, never recorded."""

    def record(self, event: Event, stream: Stream) -> None:
        """Mark this place in the stream, replacing the event's earlier mark."""

    def wait(self, stream: Stream, event: Event) -> None:
        """Let the stream, not the host, wait for the event's present mark."""

    def synchronise(self, event: Event) -> None:
        """Let the host wait for the event's present mark, without the GIL."""

    def close(self) -> None:
        """Free everything; nothing is in flight any more."""


@dataclass(frozen=True, slots=True)
class _Lane:
    index: int
    copied: Event  # behind the last copy of a batch into this lane
    done: Event  # behind the last result of a batch out of this lane


@dataclass(slots=True)
class _Batch:
    lane: _Lane
    slots: Sequence[Slot]
    release: Callable[[Sequence[Slot]], None]
    released: bool = False
    failure: OutOfMemory | None = None


class CudaEngine(Engine):
    """The engine's logic; all that touches a GPU is in `device`."""

    depth = LANES

    def __init__(self, device: Device, info: EngineInfo, max_batch_size: int) -> None:
        self.info = info
        self.max_batch_size = max_batch_size
        self._device = device
        self._buckets = batch_buckets(max_batch_size)  # ascending; shrinks when memory runs out
        self._lanes = deque(_Lane(index, device.event(), device.event()) for index in range(LANES))
        self._batches: deque[_Batch] = deque()
        self._lost: FatalEngineError | None = None
        self._closed = False

    def allocate(self, count: int) -> U8:
        try:
            return self._device.allocate(count)
        except OutOfMemory as err:
            raise FatalEngineError(f"{self.info.device}: no pinned host memory for {count} slots") from err

    def warm_up(self) -> None:
        """Prepare every bucket; those that do not fit into the device's memory are left out."""
        for bucket in self._buckets:
            try:
                for lane in range(LANES):
                    self._device.prepare(bucket, lane)
            except OutOfMemory as err:
                if bucket == 1:
                    raise FatalEngineError(f"{self.info.device}: no memory for even one picture") from err
                self._keep_buckets_below(bucket)
                return

    def submit(self, slots: Sequence[Slot], release: Callable[[Sequence[Slot]], None]) -> None:
        """As the base says. A batch for which memory has run out is run in halves, and so are all later ones."""
        self._refuse_if_lost()
        assert 1 <= len(slots) <= self.max_batch_size
        assert len(self._batches) < LANES
        lane = self._lanes[0]
        self._lanes.rotate(-1)
        batch = _Batch(lane, slots, release)
        # The lane is idle. What is not written from here on can never be taken for a score.
        self._device.results(lane.index)[:] = np.nan
        try:
            self._start(batch)
        except FatalEngineError as err:
            self._give_up(err)
        self._batches.append(batch)

    def collect(self) -> Logits:
        """As the base says. After a fatal error nothing is released: the device may still read the slots."""
        self._refuse_if_lost()
        batch = self._batches[0]
        try:
            # Copies wait for no network, so this frees the slots of both batches early.
            for started in self._batches:
                self._release(started)
            self._device.synchronise(batch.lane.done)
        except FatalEngineError as err:
            self._give_up(err)
        self._batches.popleft()
        if batch.failure is not None:
            raise EngineError(f"{self.info.device}: no memory for even one picture") from batch.failure
        return self._device.results(batch.lane.index)[: len(batch.slots)].copy()

    @property
    def in_flight(self) -> int:
        return len(self._batches)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._lost is None:
            with suppress(FatalEngineError):  # nobody waits for a result any more
                for batch in self._batches:
                    self._device.synchronise(batch.lane.done)
                self._device.close()
        self._batches.clear()

    def _start(self, batch: _Batch) -> None:
        while True:
            largest = self._buckets[-1]
            try:
                for first in range(0, len(batch.slots), largest):
                    self._start_piece(batch.lane, batch.slots[first : first + largest], first)
                return
            except OutOfMemory as err:
                if largest == 1:
                    # Its copies are queued all the same, and its slots must wait for them.
                    self._device.record(batch.lane.copied, "copy")
                    batch.failure = err
                    return
                self._keep_buckets_below(largest)

    def _start_piece(self, lane: _Lane, slots: Sequence[Slot], first: int) -> None:
        device = self._device
        device.wait("copy", lane.done)  # the piece before may still read the lane's pixels
        device.copy_in(lane.index, [slot.index for slot in slots])
        device.record(lane.copied, "copy")
        device.wait("compute", lane.copied)
        # Rows behind the last slot hold old pixels; their logits are never copied out.
        device.launch(next(bucket for bucket in self._buckets if bucket >= len(slots)), lane.index)
        device.copy_out(lane.index, first, len(slots))
        device.record(lane.done, "compute")

    def _release(self, batch: _Batch) -> None:
        if not batch.released:
            self._device.synchronise(batch.lane.copied)
            batch.released = True
            batch.release(batch.slots)

    def _keep_buckets_below(self, bucket: int) -> None:
        self._buckets = [smaller for smaller in self._buckets if smaller < bucket]
        log.warning("cuda_out_of_memory", device=self.info.device, tried=bucket, largest_batch=self._buckets[-1])

    def _give_up(self, err: FatalEngineError) -> NoReturn:
        self._lost = err
        raise err

    def _refuse_if_lost(self) -> None:
        if self._lost is not None:
            raise FatalEngineError(f"{self.info.device} was lost: {self._lost}") from self._lost


def batch_buckets(max_batch_size: int) -> list[int]:
    """The batch sizes that are prepared: 1, 2, 4, … and `max_batch_size` itself."""
    powers = [1 << power for power in range(max_batch_size.bit_length())]
    return sorted({*powers, max_batch_size})
