"""Replay: what a subscriber missed, from the journal, by a thread and a connection of its own."""

from __future__ import annotations

import json
import math
import queue
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from threading import Event, Lock
from typing import Any, NamedTuple

import msgpack
import structlog

from inspectd.errors import UsageError
from inspectd.verdict.control_schema import ControlError, ReplayPage, ReplayRequest
from inspectd.verdict.journal.database import open_to_read, snapshot
from inspectd.verdict.journal.loss import Range, read_loss, without
from inspectd.verdict.schema import is_json
from inspectd.workers import BEAT_S, Worker

MAX_WAITING = 64
"""Requests that wait; more are refused as busy."""
PAGE_BYTES = 1_000_000
FLUSH_S = 1.0
"""How long a request for the running boot waits for what was published a moment ago."""
MAX_MISSING = 1000
"""Ranges in one page; then the page ends."""

# Of rows with the same seq the last counts; SQLite takes the other columns from the row that has the maximum.
_MESSAGES = (
    "SELECT seq, body, max(number) FROM rows WHERE boot_id = ? AND topic = ? AND seq >= ? GROUP BY seq ORDER BY seq"
)
_LOSSES = "SELECT body FROM rows WHERE kind = 'lost' AND boot_id = ? AND seq IS NULL"

Answer = Callable[[ReplayPage | ControlError], None]

log = structlog.get_logger(__name__)


class _Waiting(NamedTuple):
    request: ReplayRequest
    answer: Answer


class ReplayDesk:
    """Answers one request after the other, so that neither verdicts nor the journal wait for a reader.

    `flush` has everything that was published so far written; it is asked for requests of the running boot.
    """

    def __init__(self, path: Path, boot_id: str, flush: Callable[[float], bool]) -> None:
        self._path = path
        self._boot_id = boot_id
        self._flush = flush
        # Full means busy, and the caller is told at once. None wakes the thread to stop.
        self._waiting: queue.Queue[_Waiting | None] = queue.Queue(MAX_WAITING)
        self._lock = Lock()
        self._accepting = False  # guarded by _lock, once the thread runs
        self._readable = True
        self.worker = Worker("replay", self._run, lambda _: self._refuse_rest())

    def start(self) -> None:
        self._accepting = True
        self.worker.start()

    def stop(self, timeout_s: float) -> bool:
        """Refuse what waits and end; a page that is being read is still answered."""
        self.worker.signal()
        with suppress(queue.Full):  # then it does not sleep
            self._waiting.put_nowait(None)
        return self.worker.stop(timeout_s)

    def replay(self, request: ReplayRequest, answer: Answer) -> None:
        """Have a request answered, in the desk's thread.

        Raises:
            ControlError: `busy`: too many wait; `stopping`.
        """
        with self._lock:
            if not self._accepting:
                raise _stopping()
            try:
                self._waiting.put_nowait(_Waiting(request, answer))
            except queue.Full:
                raise ControlError("busy", f"{MAX_WAITING} requests for a replay wait; ask again later") from None

    # -- the thread "replay" ------------------------------------------------------------------------

    def _run(self, stopping: Event) -> None:
        while not stopping.is_set():
            self.worker.beat()
            with suppress(queue.Empty):
                if (waiting := self._waiting.get(timeout=BEAT_S)) is not None:
                    self.worker.beat(math.inf)  # the disk's time
                    self._serve(waiting)
        self._refuse_rest()

    def _refuse_rest(self) -> None:
        with self._lock:
            self._accepting = False  # what is in the queue now is all there will ever be
        with suppress(queue.Empty):
            while True:
                if (waiting := self._waiting.get_nowait()) is not None:
                    waiting.answer(_stopping())

    def _serve(self, waiting: _Waiting) -> None:
        answer: ReplayPage | ControlError
        try:
            answer = self._page(waiting.request)
            self._readable = True
        except ControlError as err:
            answer = err
        except (UsageError, sqlite3.Error, OSError) as err:
            answer = ControlError("journal_failing", f"the journal cannot be read: {err}")
            if self._readable:  # said once, however often somebody asks
                self._readable = False
                log.warning("journal_not_readable", why=str(err))
        except Exception:  # the top of a request: nobody else's shall suffer from it
            log.exception("replay_failed")
            answer = ControlError("internal", "a defect of inspectd; its log has the traceback")
        waiting.answer(answer)

    def _page(self, request: ReplayRequest) -> ReplayPage:
        boot = request.boot_id or self._boot_id
        if boot == self._boot_id:
            self._flush(FLUSH_S)  # if it fails, what was written is still worth reading
        with closing(open_to_read(self._path, careful=True)) as connection, snapshot(connection):
            known = connection.execute("SELECT first_number FROM boots WHERE boot_id = ?", (boot,)).fetchone()
            if known is None and boot != self._boot_id:
                raise ControlError("unknown_boot", f"nothing of boot {boot} is in the journal (any more)")
            page = read_page(connection, boot, request.topic, request.from_seq, request.limit)
            if page.next_seq is None and known is not None:
                later = connection.execute(
                    "SELECT boot_id FROM boots WHERE first_number > ? ORDER BY first_number LIMIT 1", known
                ).fetchone()
                page.next_boot_id = later[0] if later else self._boot_id if boot != self._boot_id else None
            return page


def _stopping() -> ControlError:
    return ControlError("stopping", "nothing is replayed any more: the daemon is stopping")


def read_page(connection: sqlite3.Connection, boot: str, topic: str, from_seq: int, limit: int) -> ReplayPage:
    """Messages of one topic in one boot, at most `limit` of them and about a megabyte; `next_boot_id` is left open.

    Raises:
        sqlite3.Error: they cannot be read.
    """
    page = ReplayPage(topic=topic, boot_id=boot, messages=[], missing=[], next_seq=None)
    size, expected, newest = 0, from_seq, from_seq - 1
    for seq, body, _ in connection.execute(_MESSAGES, (boot, topic, from_seq)):
        if len(page.messages) >= limit or size >= PAGE_BYTES or len(page.missing) >= MAX_MISSING:
            page.next_seq = expected
            return page
        if not isinstance(seq, int) or not isinstance(body, bytes):
            raise sqlite3.DatabaseError("a row holds a value of another kind than its column")
        newest = seq
        message = _message(body)
        if message is None:
            continue  # nobody can read it, so it counts as missing
        if seq > expected:
            page.missing.append((expected, seq - 1))
        page.messages.append(message)
        size += len(body)
        expected = seq + 1
    if newest >= expected:
        page.missing.append((expected, newest))
    page.missing += _lost_behind(connection, boot, topic, newest)
    return page


def _lost_behind(connection: sqlite3.Connection, boot: str, topic: str, seq: int) -> list[Range]:
    """What is known to be lost behind the newest message: before it, the gaps tell."""
    lost: list[Range] = []
    for (body,) in connection.execute(_LOSSES, (boot,)):
        for first, last in read_loss(body).messages.get(topic, ()):
            lost += without((max(first, seq + 1), last), lost) if last > seq else []
    return sorted(lost)


def _message(body: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(body) if is_json(body) else msgpack.unpackb(body)
    except (ValueError, RecursionError, msgpack.UnpackException):
        return None
    return {**message, "replayed": True} if isinstance(message, dict) else None
