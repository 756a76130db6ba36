"""The engine's thread: takes batches, keeps the device busy, hands scores on."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from inspectd.engine.base import Engine, Scores
from inspectd.engine.batcher import Batcher, Crop
from inspectd.errors import EngineError, FatalEngineError
from inspectd.observe.logs import Counted
from inspectd.workers import HANG_S, LATE_S, Worker

FAILURES = 3
"""So many batches that failed one after the other are no accident, however long the line paused between them."""


class ScoreSink(Protocol):
    """Where the runner delivers; for every crop it took, exactly one of these is called, in its thread."""

    def scored(self, crop: Crop, scores: Scores, engine_s: float) -> None:
        """Scores, float32 [*manifest.output_shape], of a crop; `engine_s` runs from submission to collection."""

    def expired(self, crop: Crop) -> None:
        """The crop grew too old before or while it was inferred."""

    def failed(self, crop: Crop) -> None:
        """The engine could not infer it."""


class EngineRunner:
    """Owns an engine and the thread that talks to it."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        batcher: Batcher,
        sink: ScoreSink,
        on_batch: Callable[[int], None],
        on_failure: Callable[[BaseException], None],
        trouble: Counted,
    ) -> None:
        self._engine = engine
        self._batcher = batcher
        self._sink = sink
        self._on_batch = on_batch
        self._trouble = trouble
        self._name = name
        self.worker = Worker(name, self._run, on_failure)
        self._pending: deque[tuple[list[Crop], float]] = deque()  # batches in flight with their submission times
        # Written by the engine thread, read by the supervisor; a float, a tuple or None is swapped whole.
        self._busy_since: float | None = None
        # How many batches have failed one after the other, and when the first and the last of them did.
        self._failing: tuple[int, float, float] | None = None

    def start(self) -> None:
        self.worker.start()

    def stop(self, timeout_s: float) -> bool:
        """Judge what is queued and in flight, then end; False when that took too long."""
        self._batcher.close()
        return self.worker.stop(timeout_s)

    def late_s(self, now: float) -> float:
        """For how long too long its oldest batch has been with the device, or its thread has given no sign."""
        since = self._busy_since
        late_s = 0.0 if since is None else max(0.0, now - since - LATE_S)
        return max(late_s, self.worker.late_s(now))

    def failing(self, now: float) -> bool:
        """Whether nothing but failures comes from the engine: `FAILURES` of them, or for the last second."""
        if (failing := self._failing) is None:
            return False
        count, first, last = failing
        return count >= FAILURES or (last - first >= LATE_S and now - last < HANG_S)

    def _run(self, stop: threading.Event) -> None:
        try:
            while self._turn():
                pass
        finally:
            # Reached with anything left only after a fatal error: no verdict from a dead engine.
            self._batcher.close()
            for crops, _ in self._pending:
                self._each(crops, self._sink.failed)
            while left := self._batcher.take(block=False):
                self._each(left, self._sink.failed)
        self._engine.close()

    def _turn(self) -> bool:
        """One turn: submit what waits, then collect the oldest batch once nothing more can be submitted."""
        self.worker.beat(LATE_S + self._batcher.max_wait_s)
        self._give_up_if_dead(time.monotonic())
        batch = self._batcher.take(block=not self._pending)
        if batch:
            self._submit(batch)
        if self._pending and (not batch or len(self._pending) == self._engine.depth):
            self._collect()
        return batch is not None or bool(self._pending)

    def _submit(self, batch: list[Crop]) -> None:
        now = time.monotonic()
        fresh = [crop for crop in batch if now < crop.expires_at]
        if len(fresh) < len(batch):
            late = [crop for crop in batch if now >= crop.expires_at]
            self._batcher.release([crop.slot for crop in late])
            self._each(late, self._sink.expired)
        if not fresh:
            return
        self._pending.append((fresh, now))
        if self._busy_since is None:
            self._busy_since = now
        self._on_batch(len(fresh))
        self._engine.submit([crop.slot for crop in fresh], self._batcher.release)

    def _collect(self) -> None:
        crops, submitted_at = self._pending[0]
        scores: Scores | None = None
        try:
            scores = self._engine.collect()
        except FatalEngineError:
            raise
        except EngineError as err:
            self._trouble.count("batch_failed", engine=self._name, error=str(err))
        self._pending.popleft()
        now = time.monotonic()
        self._busy_since = self._pending[0][1] if self._pending else None
        if scores is None or len(scores) != len(crops):
            self._each(crops, self._sink.failed)
            self._note_failure(now)
            return
        sound = [bool(np.isfinite(row).all()) for row in scores]
        for crop, row, is_sound in zip(crops, scores, sound, strict=True):
            if not is_sound:
                self._sink.failed(crop)
            elif now < crop.expires_at:
                self._sink.scored(crop, row, now - submitted_at)
            else:
                self._sink.expired(crop)
        if not all(sound):
            self._trouble.count("batch_failed", engine=self._name, error="scores that are no finite numbers")
        if any(sound):
            self._failing = None
        else:
            self._note_failure(now)

    def _note_failure(self, now: float) -> None:
        count, first, _ = self._failing or (0, now, now)
        self._failing = count + 1, first, now

    def _give_up_if_dead(self, now: float) -> None:
        """An engine that does nothing but fail is as good as dead, also where nobody asks it any more.

        Raises:
            FatalEngineError: that has gone on for so long that only a restart can help.
        """
        if self._failing is None:
            return
        count, first, _ = self._failing
        if count >= FAILURES and now - first >= LATE_S + HANG_S:
            raise FatalEngineError(f"every batch has failed for {now - first:.0f} s; only a restart can help")

    @staticmethod
    def _each(crops: Sequence[Crop], deliver: Callable[[Crop], None]) -> None:
        for crop in crops:
            deliver(crop)
