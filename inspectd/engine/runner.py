"""The engine's thread: takes batches, keeps the device busy, hands scores on."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from inspectd.engine.base import Engine, Scores
from inspectd.engine.batcher import Batcher, Crop
from inspectd.errors import EngineError, FatalEngineError
from inspectd.observe.logs import Counted
from inspectd.workers import Worker


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
        self._worker = Worker(name, self._run, on_failure)
        self._pending: deque[tuple[list[Crop], float]] = deque()  # batches in flight with their submission times
        # Written by the engine thread, read by the supervisor; a float or None is swapped whole.
        self._busy_since: float | None = None

    def start(self) -> None:
        self._worker.start()

    def stop(self, timeout_s: float) -> bool:
        """Judge what is queued and in flight, then end; False when that took too long."""
        self._batcher.close()
        return self._worker.stop(timeout_s)

    @property
    def alive(self) -> bool:
        return self._worker.alive

    def busy_s(self, now: float) -> float:
        """For how long the oldest batch has been with the device; 0 when idle. Grows when the device hangs."""
        since = self._busy_since
        return 0.0 if since is None else max(0.0, now - since)

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
            return
        for crop, row in zip(crops, scores, strict=True):
            if now < crop.expires_at:
                self._sink.scored(crop, row, now - submitted_at)
            else:
                self._sink.expired(crop)

    @staticmethod
    def _each(crops: Sequence[Crop], deliver: Callable[[Crop], None]) -> None:
        for crop in crops:
            deliver(crop)
