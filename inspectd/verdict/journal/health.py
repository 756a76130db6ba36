"""Whether the journal does what it is for, as a state that heartbeat, metrics and log tell."""

from __future__ import annotations

import sqlite3
import time
from threading import Lock
from typing import Protocol

import structlog

from inspectd.config import JournalConfig
from inspectd.errors import ConfigError
from inspectd.verdict.journal.handover import HandOver
from inspectd.verdict.schema import JournalState

STUCK_S = 5.0
"""Nothing was written for so long although something waits: the disk hangs."""

PAUSE_S = 1.0
"""It is asked twice a second and more. After a longer pause this process stood still, and the disk's time was none: it
gets this time to answer."""

log = structlog.get_logger(__name__)


class JournalMetrics(Protocol):
    """The part of the metrics that the journal fills."""

    def journal_committed(self, rows: int, seconds: float) -> None: ...
    def journal_lost(self, rows: int) -> None: ...
    def journal_size(self, rows: int, size_bytes: int) -> None: ...
    def journal_ok(self, ok: bool) -> None: ...


class Health:
    """The state of one journal. Its thread says how it is; whoever asks finds what that thread cannot say."""

    def __init__(self, config: JournalConfig, handover: HandOver, metrics: JournalMetrics) -> None:
        self.why: str | None = None  # guarded by _lock, like _state
        self._path = config.path
        self._stuck_s = STUCK_S + config.commit_ms / 1000
        self._handover = handover
        self._metrics = metrics
        self._lock = Lock()
        self._state: JournalState = "off"
        self._asked_at = 0.0  # monotonic seconds; written by whoever asks
        self._patient_until = 0.0

    def ask(self) -> JournalState:
        """The state; a thread that hangs in the disk, or lets rows be lost, is found here."""
        now = time.monotonic()
        if now - self._asked_at > PAUSE_S:
            self._patient_until = now + PAUSE_S
        self._asked_at = now
        if self._state == "ok":
            stuck_s = self._handover.stuck_s
            if self._handover.losing:
                self._losing()
            elif stuck_s > self._stuck_s and now >= self._patient_until:
                self._set("failing", f"{self._path}: the disk has not answered for {stuck_s:.0f} s", hopeless=True)
        return self._state

    def well(self) -> None:
        """It was just written."""
        if self._handover.losing:
            self._losing()
        else:
            self._set("ok", None)

    def fails(self, err: Exception) -> None:
        """It could not be written."""
        if isinstance(err, ConfigError):
            why = str(err)
        elif isinstance(err, sqlite3.DatabaseError) and not isinstance(err, sqlite3.OperationalError):
            why = f"{self._path}: {err}; move it away and a new one is begun"
        else:
            why = f"{self._path}: {(err.strerror or err) if isinstance(err, OSError) else err}"
        self._set("failing", why, hopeless=True)

    def died(self, err: BaseException) -> None:
        """Its thread has ended."""
        why = f"{self._path}: a defect of inspectd ended the journal ({err!r}); restart inspectd"
        self._set("failing", why, hopeless=True)

    def _losing(self) -> None:
        self._set("failing", f"{self._path}: more comes than the disk takes, and is lost")

    def _set(self, state: JournalState, why: str | None, *, hopeless: bool = False) -> None:
        """Tell everybody; one log line when it changes. `hopeless`: nothing can be written at the moment."""
        with self._lock:
            before, self._state, self.why = self._state, state, why
            self._handover.set_failing(hopeless)
            if before == state:
                return
            self._metrics.journal_ok(state == "ok")
        if state == "failing":
            log.error("journal_failing", why=why, waiting=len(self._handover))
        elif before == "failing":
            log.warning("journal_recovered", path=str(self._path), lost=self._handover.lost)
