"""Between the cameras and one engine: slots, a bounded queue per camera, natural batching.

A camera thread takes a free slot, writes a crop into it and puts it into its camera's queue. When the
engine is free it takes everything that waits, up to `max_batch_size`, in turn from each camera. With
`max_wait_s` it waits for more, counted from the arrival of the first crop. Nothing polls.

A full queue means that the engine is too slow for that camera. For a live camera the oldest crop gives
way and is handed back to the caller of `put`, who must account for it; for a recording `acquire` waits
instead, so no frame of a file is ever lost.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inspectd.engine.base import Slot
from inspectd.errors import Stopped
from inspectd.frame import U8, Box, Clock, Frame
from inspectd.observe.ledger import Ticket
from inspectd.trigger import Trigger
from inspectd.workers import BEAT_S, Deadline


@dataclass(slots=True, eq=False)
class Crop:
    """One ROI of one frame, in its slot, on its way through the engine. Times are monotonic seconds."""

    ticket: Ticket
    slot: Slot
    area: Box  # of the frame, what the slot shows
    index: int
    pts: float | None
    clock: Clock
    captured_at: float  # Unix seconds
    arrival: float
    expires_at: float  # from here on its verdict is `stale`; infinite for recordings
    decode_s: float
    waited_s: float = 0.0  # that the picture had been on its way when it arrived
    triggers: tuple[Trigger, ...] = ()  # that this frame answers; none in free run
    frame: Frame | None = None  # kept only where evidence may be wanted of it
    asked_by: Callable[[Any], None] | None = None  # gets the outcome instead of the publisher: a challenge
    queued_at: float = 0.0


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """One camera's share: how many crops may wait, and whether the oldest gives way (live) or `acquire` waits."""

    capacity: int
    live: bool


def slots_needed(queues: Mapping[str, QueueSpec], max_batch_size: int, depth: int) -> int:
    """Slots with which a live camera always finds a free one.

    Every slot is in a queue (at most its capacity), in a producer's hand (one per camera), or with the
    engine (at most `depth` batches). One more batch covers the moment between `take` and `submit`.
    """
    return sum(queue.capacity + 1 for queue in queues.values()) + (depth + 1) * max_batch_size


class Batcher:
    """The meeting point of camera threads (`acquire`, `put`, `give_back`) and one engine thread (`take`, `release`)."""

    def __init__(
        self, memory: U8, queues: Mapping[str, QueueSpec], max_batch_size: int, max_wait_s: float = 0.0
    ) -> None:
        self.max_batch_size = max_batch_size
        self.max_wait_s = max_wait_s
        self._specs = dict(queues)
        self._mutex = threading.Lock()
        self._filled = threading.Condition(self._mutex)  # a crop was queued, or closed
        self._freed = threading.Condition(self._mutex)  # a queue has room or a slot is free, or closed
        # All below is guarded by _mutex.
        self._free = deque(Slot(index, memory[index]) for index in range(len(memory)))
        self._queues: dict[str, deque[Crop]] = {camera: deque() for camera in queues}
        self._turn = deque(queues)  # whose crop is taken next
        self._waiting = 0
        self._closed = False
        self._drained = False  # closed, and `take` has said so to the engine thread

    def acquire(self, camera: str, timeout_s: float | None = None) -> Slot:
        """A free slot for one crop of `camera`; it must come back by `put` or `give_back`.

        Never blocks for a live camera. For a recording it waits until the queue has room, `timeout_s` at most.

        Raises:
            Stopped: the batcher was closed.
            TimeoutError: the queue had no room in time.
        """
        spec, queue = self._specs[camera], self._queues[camera]
        deadline = None if timeout_s is None else Deadline(timeout_s)
        with self._mutex:
            while not self._closed and not (self._free and (spec.live or len(queue) < spec.capacity)):
                left = None if deadline is None else deadline.left()
                if left == 0.0:
                    raise TimeoutError(f"the engine takes nothing of {camera!r}")
                self._freed.wait(left)
            if self._closed:
                raise Stopped("the engine takes no more crops")
            return self._free.popleft()

    def put(self, crop: Crop) -> Crop | None:
        """Queue a crop. Returns the oldest of its camera if that had to give way; its slot is already free.

        Works after `close` as well, as long as the engine drains: a crop that is made is judged.

        Raises:
            Stopped: the engine has drained and ended; nobody would ever take this crop. Its slot is free.
        """
        camera = crop.ticket.camera
        with self._mutex:
            if self._drained:
                self._free.append(crop.slot)
                raise Stopped("the engine takes no more crops")
            queue = self._queues[camera]
            dropped = None
            if len(queue) >= self._specs[camera].capacity:
                dropped = queue.popleft()
                self._free.append(dropped.slot)
                self._waiting -= 1
            crop.queued_at = time.monotonic()
            queue.append(crop)
            self._waiting += 1
            self._filled.notify()
            return dropped

    def give_back(self, slot: Slot) -> None:
        """Return an acquired slot unused."""
        self.release((slot,))

    def take(self, block: bool) -> list[Crop] | None:
        """The next batch: 1 to `max_batch_size` crops, the cameras in turn. None once closed and drained.

        An empty list when nothing waits; with `block` only after `BEAT_S`, so that the caller can give a sign of life.
        """
        with self._mutex:
            if block and not self._waiting and not self._closed:
                self._filled.wait(BEAT_S)
            if not self._waiting:
                self._drained = self._closed
                return None if self._closed else []
            if self.max_wait_s and block:
                self._wait_for_more()
            batch = self._next_in_turn()
            self._freed.notify_all()
            return batch

    def release(self, slots: Sequence[Slot]) -> None:
        """The engine has read these slots."""
        with self._mutex:
            self._free.extend(slots)
            self._freed.notify_all()

    def close(self) -> None:
        """Let `acquire` raise and `take` drain what waits. May be called twice."""
        with self._mutex:
            self._closed = True
            self._filled.notify_all()
            self._freed.notify_all()

    @property
    def waiting(self) -> int:
        """Crops queued, not yet taken."""
        with self._mutex:
            return self._waiting

    @property
    def free(self) -> int:
        """Free slots."""
        with self._mutex:
            return len(self._free)

    def _wait_for_more(self) -> None:
        # The clock starts at the first crop, not at this call: what waited while the engine was busy
        # is not made to wait again. A drop may remove that first crop; its successor is later, and
        # keeping the earlier deadline only shortens the wait.
        assert self._mutex.locked()
        deadline = min(queue[0].queued_at for queue in self._queues.values() if queue) + self.max_wait_s
        while self._waiting < self.max_batch_size and not self._closed:
            left = deadline - time.monotonic()
            if left <= 0 or not self._filled.wait(left):
                return

    def _next_in_turn(self) -> list[Crop]:
        assert self._mutex.locked()
        batch: list[Crop] = []
        while self._waiting and len(batch) < self.max_batch_size:
            queue = self._queues[self._turn[0]]
            self._turn.rotate(-1)
            if queue:
                batch.append(queue.popleft())
                self._waiting -= 1
        return batch
