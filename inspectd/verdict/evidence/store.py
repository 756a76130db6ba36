"""The evidence store: who decides on a picture never waits for it."""

from __future__ import annotations

import errno
import math
import shutil
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog

from inspectd.config import EvidenceConfig
from inspectd.errors import ConfigError
from inspectd.frame import Box, Frame
from inspectd.verdict.evidence.budget import Budget
from inspectd.verdict.evidence.cutout import Developer, copied, views
from inspectd.verdict.evidence.shelf import Shelf, picture_path
from inspectd.verdict.schema import VerdictKind
from inspectd.workers import BEAT_S, LATE_S, Deadline, Worker

log = structlog.get_logger(__name__)

MAX_WAITING = 32
MAX_WAITING_BYTES = 64 * 2**20
"""Copies that wait to be written: about a second of a slow disk. A region larger than that waits alone."""
BREATH_S = 0.002
"""Between two steps of tending the folder, so that a million files do not take a core from the line."""
PIXEL_S = 1e-6
"""Making a picture takes no longer than that for each of its pixels: a tenth of it on a free processor."""
RETRY_FIRST_S = 1.0
RETRY_LIMIT_S = 30.0
"""How long a disk that failed is left alone; doubled while it goes on failing."""
_DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENODEV, errno.ESTALE}
"""What comes upon a folder that was well chosen, and may pass."""

EvidenceLoss = Literal[
    "too_many",  # more than max_per_s
    "queue",  # the disk is slower than they come
    "disk",  # the folder cannot be written
    "outside",  # the region does not lie inside the frame
    "encoder",  # no picture can be made of it
    "shutdown",  # it waited when the daemon stopped
]
"""Why a picture that was wanted is not there."""


class EvidenceMetrics(Protocol):
    """The part of the metrics that is filled here. From several threads."""

    def evidence_written(self) -> None: ...
    def evidence_lost(self, reason: EvidenceLoss) -> None: ...
    def evidence_size(self, size: int) -> None: ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    path: str
    cutout: Frame
    area: Box
    size: int  # bytes of its planes


class EvidenceStore:
    """Keeps pictures in a folder, as many as fit, and says where each will be.

    What full means: at `max_per_s`, with `MAX_WAITING` copies waiting, or with a disk that fails, `keep` says no
    and counts why. A disk that fails is tried again until it works; a promised picture that could not be written
    is counted, too. Without `dir` nothing is ever wanted.
    """

    def __init__(
        self,
        config: EvidenceConfig,
        boot_id: str,
        metrics: EvidenceMetrics,
        *,
        retry_first_s: float = RETRY_FIRST_S,
    ) -> None:
        self._config = config
        self._boot_id = boot_id
        self._metrics = metrics
        self._developer = Developer(config.format)
        self._retry_first_s = retry_first_s
        self.worker = Worker("evidence", self._run, self._broken)
        self._stop_by = Deadline(0.0)  # written by stop() before it signals

        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)  # something waits, or the end has come
        # Guarded by _lock.
        self._open = False
        self._waiting: deque[_Waiting] = deque()
        self._reserved = 0  # copies that wait or are being made
        self._reserved_bytes = 0
        self._budget = Budget(config.max_per_s)
        self._lost = 0  # since the state left ok
        self._state: Literal["ok", "slow", "failing"] = "ok"  # written under the lock, read anywhere

        # The thread's own.
        self._shelf: Shelf
        self._shelf_open = False
        self._to_tend = True
        self._retry_s = retry_first_s
        self._failed_size = 1

    def start(self) -> None:
        """See that the folder can be written, and start the thread.

        A disk that is full, read-only or broken keeps no line from being inspected: it fails, as it may at any time.

        Raises:
            ConfigError: what was configured can never be written.
        """
        if self._config.dir is None:
            return
        self._shelf = Shelf(self._config.dir, self._config.max_mb * 2**20)
        try:
            self._open_shelf()
        except OSError as err:
            if err.errno not in _DISK_TROUBLE:
                why = _why_not(err)
                raise ConfigError(f"evidence.dir: pictures cannot be written to {self._config.dir}: {why}") from err
            self._fails(err, 1)
        self._open = True
        self.worker.start()

    def keep(
        self, camera: str, roi: str, kind: VerdictKind, index: int, captured_at: float, frame: Frame, area: Box
    ) -> str | None:
        """Take a picture of the area: its path relative to the folder, where it will be shortly; None if it will not.

        From any thread. Never waits and never raises; costs a copy of the area's planes. The frame is the caller's
        again afterwards. `captured_at` is Unix seconds.
        """
        if not self._open or kind not in self._config.of:
            return None
        try:
            shown, planes = views(frame, area)
        except ValueError:
            self._metrics.evidence_lost("outside")
            return None
        size = sum(plane.nbytes for plane in planes)
        refused = self._reserve(size, urgent=kind == "fail")
        if refused is not None:
            self._metrics.evidence_lost(refused)
            return None
        path = picture_path(camera, roi, captured_at, self._boot_id, index, kind, self._developer.suffix)
        waiting = _Waiting(path, *copied(frame, area, shown, planes), size)
        with self._lock:
            self._waiting.append(waiting)
            self._news.notify()
        return path

    def stop(self, timeout_s: float) -> bool:
        """Write what waits, as far as there is time; False when the thread hangs in the disk."""
        if not self.worker.stopping.is_set():
            self._stop_by = Deadline(timeout_s * 0.9)
        self.worker.signal()
        with self._lock:
            self._open = False
            self._news.notify()
        return self.worker.stop(timeout_s)

    @property
    def failing(self) -> bool:
        """Whether no picture can be written."""
        return self._state == "failing"

    def _reserve(self, size: int, *, urgent: bool) -> EvidenceLoss | None:
        """Room for one copy, or why there is none."""
        with self._lock:
            if not self._open:
                return "shutdown"
            if self._state == "failing":
                self._lost += 1
                return "disk"
            full = self._reserved >= MAX_WAITING or self._reserved_bytes + size > MAX_WAITING_BYTES
            if not full or not self._reserved:
                if not self._budget.take(time.monotonic(), urgent=urgent):
                    return "too_many"
                self._reserved += 1
                self._reserved_bytes += size
                return None
            self._lost += 1
            news = self._state == "ok"
            self._state = "slow"
        if news:
            log.warning("evidence_slow", why="pictures come faster than they can be written")
        return "queue"

    # -- the thread "evidence" ------------------------------------------------------------------------

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            self.worker.beat()
            if self.failing:
                self._try_again(stopping)
            else:
                self._catch_up()
                waiting = self._next(BREATH_S if self._to_tend else BEAT_S)
                if waiting is not None:
                    self._write(waiting)
                self._tend()
        while not self._stop_by.passed and (waiting := self._next(0.0)) is not None:
            self._write(waiting)
        while self._next(0.0) is not None:
            self._metrics.evidence_lost("shutdown")

    def _next(self, timeout_s: float) -> _Waiting | None:
        """The next copy, waiting for one at most so long; None where there is none, or the end has come."""
        with self._lock:
            if not self._waiting and self._open:
                self._news.wait(timeout_s)
            if not self._waiting:
                return None
            waiting = self._waiting.popleft()
            self._reserved -= 1
            self._reserved_bytes -= waiting.size
            return waiting

    def _write(self, waiting: _Waiting) -> None:
        self.worker.beat(LATE_S + PIXEL_S * waiting.area.width * waiting.area.height)
        try:
            data = self._developer.develop(waiting.cutout, waiting.area)
        except ValueError as err:
            log.warning("evidence_unencodable", path=waiting.path, why=str(err))
            self._metrics.evidence_lost("encoder")
            return
        self.worker.beat(math.inf)  # the disk's time, and again below
        try:
            self._shelf.add(waiting.path, data)
        except OSError as err:
            self._fails(err, len(data))
            self._metrics.evidence_lost("disk")
            return
        self._metrics.evidence_written()
        self._metrics.evidence_size(self._shelf.size)
        self._to_tend = True
        self._retry_s = self._retry_first_s

    def _tend(self) -> None:
        before = self._shelf.size
        self.worker.beat(math.inf)
        try:
            self._to_tend = not self.failing and self._shelf.tend()
        except OSError as err:
            self._fails(err, 1)
        if self._shelf.size != before:
            self._metrics.evidence_size(self._shelf.size)

    def _fails(self, err: OSError, size: int) -> None:
        """From now on nothing is taken until `size` bytes can be written; what waits goes on waiting."""
        self._failed_size = size
        with self._lock:
            news = self._state != "failing"
            self._state = "failing"
        if news:
            why = err.strerror or str(err)
            log.error("evidence_failing", dir=str(self._config.dir), why=why, file=err.filename)

    def _open_shelf(self) -> None:
        assert self._config.dir is not None
        self._shelf.open()
        self._shelf_open = True
        if (total := shutil.disk_usage(self._config.dir).total) < self._config.max_mb * 2**20:
            log.warning("evidence_disk_small", max_mb=self._config.max_mb, disk_mb=total // 2**20)

    def _try_again(self, stopping: threading.Event) -> None:
        """After a pause see whether as much can be written as failed, and whether the folder can be tended."""
        self.worker.beat(math.inf)
        if stopping.wait(self._retry_s):
            return
        self._retry_s = min(2 * self._retry_s, RETRY_LIMIT_S)
        try:
            if not self._shelf_open:
                self._open_shelf()
            self._shelf.probe(self._failed_size)
            self._shelf.forget()
            while self._shelf.tend():
                if stopping.wait(BREATH_S):
                    return
        except OSError:
            return
        self._is_ok_again()
        self._metrics.evidence_size(self._shelf.size)

    def _catch_up(self) -> None:
        with self._lock:
            caught_up = self._state == "slow" and not self._waiting
        if caught_up:
            self._is_ok_again()

    def _is_ok_again(self) -> None:
        with self._lock:
            lost, self._lost = self._lost, 0
            self._state = "ok"
        log.info("evidence_ok", dir=str(self._config.dir), lost=lost)

    def _broken(self, err: BaseException) -> None:
        with self._lock:
            self._state = "failing"


def _why_not(err: OSError) -> str:
    match err:
        case FileExistsError():
            return "it is no folder"
        case FileNotFoundError():
            return "the folder above it does not exist"
        case _:
            return err.strerror or str(err)
