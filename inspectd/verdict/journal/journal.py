"""The journal: whatever is published, and what happened around it, on disk and in a chain.

    any thread ──message(), late(), event()──> hand-over ──> thread "journal" ──> SQLite, one commit for many rows

The caller never waits for the disk. What full means: the hand-over holds 50,000 rows or 64 MB; what comes then is lost,
counted, and told of by a row of its own once there is room. While the disk is full or failing the rows that were
handed over wait, and are tried again.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from threading import Event
from typing import Any, Final

import msgpack
import structlog

from inspectd.config import JournalConfig
from inspectd.errors import ConfigError, UsageError
from inspectd.verdict.journal.database import open_to_read, read_last_events
from inspectd.verdict.journal.handover import HandOver
from inspectd.verdict.journal.health import Health, JournalMetrics
from inspectd.verdict.journal.place import Place
from inspectd.verdict.journal.row import Entry, EventKind, Row, entry, follow
from inspectd.verdict.journal.store import Store
from inspectd.verdict.schema import JournalState, is_json, verdict_topic
from inspectd.workers import LATE_S, Worker

IDLE_S = 1.0
"""Without anything to write the thread looks at the file, its size and its limits so often."""
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 5.0
"""Between two tries of a failing disk, doubling."""
CALM_S = 30.0
"""After so long without a failure the next one is tried again soon."""
MEGABYTE = 1_000_000
STANDING: Final = frozenset[EventKind]({"recipe"})
"""What the next start goes by; a file that does not have the newest of each is told it when it is opened."""

log = structlog.get_logger(__name__)


class Journal:
    """Writes one journal. `state` and `why` may be read from any thread.

    A row is committed at most `commit_ms` after it was handed over, plus the time of one commit. Is a commit under
    way that takes longer than `commit_ms`, then it takes the place of `commit_ms`.
    """

    def __init__(self, config: JournalConfig, boot_id: str, metrics: JournalMetrics) -> None:
        if config.path is None:
            raise ValueError("without journal.path there is no journal")
        self._path = config.path
        self._config = config
        self._boot_id = boot_id
        self._metrics = metrics
        self._handover = HandOver()
        self._health = Health(config, self._handover, metrics)
        self.worker = Worker("journal", self._run, self._on_death)
        self._lost_seen = 0  # rows lost up to the last write_through; the thread of message() alone uses it
        self._last_events: dict[str, dict[str, Any]] | None = None  # None until it was opened
        self._standing: dict[EventKind, Entry] = {}  # by what a start goes that finds this journal
        # The journal's thread alone, once it runs.
        self._store: Store | None = None
        self._place = Place(self._path)
        self._tried: tuple[int, bytes] | None = None  # number and hash of the last row of a commit that failed
        self._pause_s = FIRST_PAUSE_S
        self._failed_at = -math.inf  # monotonic seconds, like those below
        self._look_at = 0.0
        self._measured_at = -math.inf

    # -- any thread ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Open or create the journal, then start the thread. A full or failing disk is no error: it is tried again.

        Raises:
            ConfigError: one line that names `journal.path`: not a journal, a newer one, in use, not writable.
        """
        try:
            self._open()
        except (sqlite3.Error, OSError) as err:
            self._fail(err)
            self._last_events = self._peek()
        else:
            self._health.well()
        self.worker.start()

    def message(self, topic: str, seq: int, body: bytes) -> None:
        """Journal what is published: its topic, its seq and its body as on the wire. Never waits, never raises."""
        self._put(entry("message", topic, seq, body))

    def late(self, body: bytes) -> None:
        """Journal a verdict message that came after its deadline and is not published."""
        self._put(entry("late", None, None, body))

    def event(self, kind: EventKind, data: Mapping[str, Any]) -> bool:
        """Journal what happened. Values that JSON has no word for become their text. False: there was no room."""
        made = _event(kind, data)
        taken = self._put(made)
        if taken and kind in STANDING:
            self._standing[kind] = made
        return taken

    def last_event(self, kind: EventKind) -> dict[str, Any] | None:
        """The newest of a kind as it stood in the journal at the start; none if it could not even be read then."""
        return (self._last_events or {}).get(kind)

    def write_through(self, timeout_s: float) -> bool:
        """Have everything that was handed over so far committed; for the thread that calls `message`.

        False: the disk fails (then it does not wait), it takes too long, or something was lost since the last call.
        """
        written = self.flush(timeout_s)
        lost = self._handover.lost  # only now: a row can turn out to be none while it is written
        whole, self._lost_seen = lost == self._lost_seen, lost
        return written and whole

    def flush(self, timeout_s: float) -> bool:
        """The same for any thread that only wants to read what was handed over; what was lost does not count."""
        return self._handover.flush(timeout_s)

    def stop(self, timeout_s: float) -> bool:
        """Take nothing more, commit what waits, close. True when all of it is on disk and the thread is gone."""
        self.worker.signal()
        self._handover.close()
        return self.worker.stop(timeout_s) and self._handover.settled

    @property
    def state(self) -> JournalState:
        """`failing`: rows are not on disk in time, or lost. Whoever asks finds it even where the disk hangs."""
        return self._health.ask()

    @property
    def why(self) -> str | None:
        """One line for people while it fails."""
        return self._health.why

    def _peek(self) -> dict[str, dict[str, Any]] | None:
        """The last events of a journal that cannot be written at the moment."""
        try:
            with closing(open_to_read(self._path, careful=True)) as connection:
                return read_last_events(connection)
        except (UsageError, sqlite3.Error):
            return None

    def _put(self, entry: Entry) -> bool:
        taken = self._handover.put(entry)
        if not taken:
            self._metrics.journal_lost(1)
        return taken

    # -- the thread "journal" -----------------------------------------------------------------------

    def _run(self, stopping: Event) -> None:
        try:
            while (batch := self._take()) is not None:
                if batch:
                    self._write(batch, stopping)
                self._look_after()
        finally:
            self._close()

    def _take(self) -> list[Entry] | None:
        """The next batch. All other time of the thread is the disk's, and how that is says `state`."""
        wait_s = self._config.commit_ms / 1000
        self.worker.beat(IDLE_S + wait_s + LATE_S)
        batch = self._handover.take(wait_s, IDLE_S)
        self.worker.beat(math.inf)
        return batch

    def _write(self, batch: list[Entry], stopping: Event) -> None:
        """Commit a batch, however often it takes; while stopping only once."""
        sound = list(batch)
        while True:
            try:
                self._commit(sound)
            except (sqlite3.Error, OSError, ConfigError) as err:
                self._fail(err)
            else:
                self._handover.done(batch)
                self._health.well()
                return
            if stopping.is_set():
                self._metrics.journal_lost(self._handover.abandon())
                return
            self._handover.pause(self._pause_s)

    def _commit(self, entries: list[Entry]) -> None:
        since = time.monotonic()
        store = self._open()
        # A commit can reach the disk although the disk said otherwise. Then the head is the one that was tried.
        if self._tried is None or self._tried != (store.chain.head_number, store.chain.head_hash):
            rows = self._chained(entries, store)
            if not rows:
                return
            self._tried = rows[-1].number, rows[-1].hash
            store.append(rows)
        self._tried = None
        self._metrics.journal_committed(len(entries), time.monotonic() - since)

    def _chained(self, entries: list[Entry], store: Store) -> list[Row]:
        """The rows that entries become behind the head. One that can be no row is taken out: lost, and told of."""
        rows: list[Row] = []
        number, previous = store.next_number, store.chain.head_hash
        for waiting in entries[:]:
            entry = waiting._replace(topic=_topic_inside(waiting.body)) if waiting.kind == "late" else waiting
            try:
                row = follow(previous, number, self._boot_id, entry)
            except ValueError as err:
                log.error("journal_row_lost", why=str(err), kind=entry.kind)  # noqa: TRY400 - the reason is `why`
                entries.remove(waiting)
                self._handover.lose(waiting)
                self._metrics.journal_lost(1)
                continue
            rows.append(row)
            number, previous = number + 1, row.hash
        return rows

    def _look_after(self) -> None:
        """What is due beside writing: limits, size, and whether the file is still where it was."""
        now = time.monotonic()
        if now < self._look_at:
            return
        try:
            store = self._open()
            if now - self._measured_at >= IDLE_S:
                self._measured_at = now
                store.check_in_place()
                self._metrics.journal_size(store.rows, store.size_bytes())
            # One step between two commits; after a limit was lowered, many while nothing waits.
            while store.prune(self._config.max_rows, self._config.max_mb * MEGABYTE):
                if len(self._handover) or self.worker.stopping.is_set():
                    break
        except (sqlite3.Error, OSError, ConfigError) as err:
            self._fail(err)
            self._look_at = now + self._pause_s
        else:
            self._health.well()

    def _open(self) -> Store:
        """The store, opened again after a failure; its disk can be written."""
        if self._store is not None:
            self._store.probe()
        else:
            self._place.check()
            self._store = Store(self._path)
            events = self._store.last_events()
            if self._last_events is None:
                self._last_events = events
            self._repeat_standing(self._store, events)
        return self._store

    def _repeat_standing(self, store: Store, found: Mapping[str, dict[str, Any]]) -> None:
        """The file was taken away while it was in use, or another was put in its place: it has to say the same."""
        for kind in STANDING:
            if kind not in self._standing and (said := self.last_event(kind)) is not None:
                self._standing[kind] = _event(kind, said)
        standing = list(self._standing.items())  # others add to it
        missing = [row for kind, row in standing if found.get(kind) != json.loads(row.body)]
        if rows := self._chained(missing, store):
            store.append(rows)

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _fail(self, err: Exception) -> None:
        self._close()  # whatever was half done is gone, and what SQLite believed of the file too
        now = time.monotonic()
        calm = now - self._failed_at > CALM_S
        self._pause_s = FIRST_PAUSE_S if calm else min(2 * self._pause_s, LAST_PAUSE_S)
        self._failed_at = now
        self._health.fails(err)

    def _on_death(self, err: BaseException) -> None:
        self._handover.close()
        self._metrics.journal_lost(self._handover.abandon())
        self._health.died(err)


def _event(kind: EventKind, data: Mapping[str, Any]) -> Entry:
    text = json.dumps(dict(data), ensure_ascii=False, default=str)
    # A file name need not be UTF-8; its bytes become \udcXX, which is how JSON writes them too.
    return entry(kind, None, None, text.encode(errors="backslashreplace"))


def _topic_inside(body: bytes) -> str | None:
    """The topic that a verdict message would have been published on."""
    try:
        message = json.loads(body) if is_json(body) else msgpack.unpackb(body)
        return verdict_topic(message["camera"], message["roi"])
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException):
        return None
