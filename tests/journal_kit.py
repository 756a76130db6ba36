"""What the journal's tests share: a journal that is open for a while, its metrics, and bodies as on the wire."""

import json
import sqlite3
import threading
import time
from contextlib import closing, contextmanager

from inspectd.config import JournalConfig
from inspectd.verdict.journal import Journal
from inspectd.verdict.journal.row import Entry, follow
from inspectd.verdict.journal.store import Store

TOPIC = "verdict/line/part/"
BOOT = "boot-1"


class Metrics:
    """Keeps what the journal reports; `until` waits for it."""

    def __init__(self):
        self.commits = []  # (rows, seconds)
        self.lost = 0
        self.size = None
        self.oks = []
        self._changed = threading.Condition()

    def journal_committed(self, rows, seconds):
        with self._changed:
            self.commits.append((rows, seconds))
            self._changed.notify_all()

    def journal_lost(self, rows):
        with self._changed:
            self.lost += rows

    def journal_size(self, rows, size_bytes):
        with self._changed:
            self.size = rows, size_bytes
            self._changed.notify_all()

    def journal_ok(self, ok):
        with self._changed:
            self.oks.append(ok)
            self._changed.notify_all()

    def until(self, condition, timeout_s=10):
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), timeout_s), vars(self)


@contextmanager
def journal(path, boot=BOOT, **config):
    """A started journal; `journal.told` are its metrics."""
    told = Metrics()
    made = Journal(JournalConfig(path=path, **config), boot, told)
    made.told = told
    made.start()
    try:
        yield made
    finally:
        made.stop(10)


def body(seq, verdict="pass", **more):
    """A verdict message as on the wire, as far as the journal looks into it."""
    message = {"schema": "inspectd.verdict/1", "boot_id": BOOT, "seq": seq, "camera": "line", "roi": "part"}
    return json.dumps(message | {"replayed": False, "verdict": verdict} | more).encode()


def write(path, boot, entries):
    """A journal written without a thread: fast, and the same each time. Entries: (kind, topic, seq, body)."""
    store = Store(path)
    rows, previous = [], store.chain.head_hash
    for number, fields in enumerate(entries, start=store.next_number):
        rows.append(follow(previous, number, boot, Entry(1_700_000_000_000_000 + number, *fields)))
        previous = rows[-1].hash
    store.append(rows)
    store.close()
    return rows


def query(path, sql, *values):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(sql, values).fetchall()


def eventually(condition, timeout_s=10):
    """For what has no event to wait for: a file, a state."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
