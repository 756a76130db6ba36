"""The writing side of a journal: one connection, used by one thread, that appends, prunes and measures."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from inspectd.errors import ConfigError
from inspectd.verdict.journal.database import WAL_BYTES, Lock, open_to_write, read_chain, read_last_events
from inspectd.verdict.journal.place import hold_shared_memory
from inspectd.verdict.journal.row import Row

PRUNE_ROWS = 1500
PRUNE_BYTES = 1_500_000
"""At most so much is taken away in one transaction: a few ms, and more than one commit can bring."""
INSERT_ROWS = 32
"""Rows in one statement: each statement waits for the interpreter, which in a busy daemon costs more than its work."""

_INSERT = {
    rows: f"INSERT INTO rows VALUES {', '.join(['(?, ?, ?, ?, ?, ?, ?, ?)'] * rows)}"  # noqa: S608 - only question marks
    for rows in range(1, INSERT_ROWS + 1)
}
_ROW_BYTES = 400  # what a row takes beside its body, in the table and its indexes, generously
_RESERVE_BYTES = 2 * WAL_BYTES + 2 * PRUNE_BYTES
"""Of max_mb, for the write-ahead log and what is taken away in the next step."""


class Store:
    """An open journal.

    Every transaction moves the head with its rows, so that a cut tail shows. Nothing here retries: after any error
    the store is closed and opened again, and what was half done is gone.
    """

    def __init__(self, path: Path) -> None:
        """Open or create.

        Raises:
            ConfigError: one line that names `journal.path`: no journal, a newer one, in use, not writable.
            sqlite3.Error, OSError: the disk is full or failing.
        """
        path = path.resolve()  # where SQLite puts what belongs to it, whatever link led here
        self._path = path
        if path.is_dir():
            raise ConfigError(f"journal.path: {path}: is a folder; name a file in it")
        if path.exists() and not os.access(path, os.W_OK):
            raise ConfigError(f"journal.path: {path}: cannot be written: Permission denied")
        self._lock = Lock(path)
        try:
            self._connection = open_to_write(path)
            try:
                self.chain = read_chain(self._connection)
                hold_shared_memory(path)
                self._last_number = self._highest_number()
                self._boots = {boot for (boot,) in self._connection.execute("SELECT boot_id FROM boots")}
            except BaseException:
                self._connection.close()
                raise
            self._wal = path.with_name(path.name + "-wal")
            self._files = _inode(path), _inode(self._wal)  # the log is there: reading above has opened it
            self._grown = PRUNE_BYTES  # bytes since the size was looked at
        except BaseException:
            self._lock.release()
            raise

    def probe(self) -> None:
        """Write to its disk beside SQLite: to be called before every transaction, see `place`.

        Raises:
            OSError: the disk is broken, or can only be read.
        """
        self._lock.sign()

    @property
    def next_number(self) -> int:
        """Of the next row. Behind the head, and behind rows that somebody else put there."""
        return max(self.chain.head_number, self._last_number) + 1

    @property
    def rows(self) -> int:
        """How many are kept."""
        return self.chain.head_number - self.chain.first_number + 1

    def append(self, rows: Sequence[Row]) -> None:
        """Commit rows of one boot that follow the head, all or none; afterwards they are on the disk.

        Raises:
            sqlite3.Error, OSError: they are not, or nobody will find them: the file was removed or replaced.
        """
        head = rows[-1]
        with _transaction(self._connection):
            for start in range(0, len(rows), INSERT_ROWS):
                part = rows[start : start + INSERT_ROWS]
                self._connection.execute(_INSERT[len(part)], [value for row in part for value in row])
            if rows[0].boot_id not in self._boots:
                self._connection.execute("INSERT INTO boots VALUES (?, ?)", (rows[0].boot_id, rows[0].number))
            for row in rows:
                if row.seq is None and row.kind != "late":
                    event = (row.kind, row.number, row.body)
                    self._connection.execute("INSERT OR REPLACE INTO last_events VALUES (?, ?, ?)", event)
            self._connection.execute("UPDATE chain SET head_number = ?, head_hash = ?", (head.number, head.hash))
        self._boots.add(rows[0].boot_id)
        self._last_number = head.number
        self._grown += sum(len(row.body) + _ROW_BYTES for row in rows)
        self.chain = self.chain._replace(head_number=head.number, head_hash=head.hash)
        self.check_in_place()

    def check_in_place(self) -> None:
        """
        Raises:
            OSError: other files, or none, have the names of those that are open: the database or its log.
        """
        if (_inode(self._path), _inode(self._wal)) != self._files:
            raise OSError(errno.ESTALE, "the file was removed or replaced while it was in use")

    def prune(self, max_rows: int, max_bytes: int) -> bool:
        """Take one small step towards both limits; False when there was nothing to do.

        Raises:
            sqlite3.Error: nothing was done.
        """
        excess = self.rows - max_rows
        if excess <= 0 and self._grown < PRUNE_BYTES // 2:
            return False
        page, free, pages = (self._pragma(name) for name in ("page_size", "freelist_count", "page_count"))
        if excess > 0 or (pages - free) * page > max_bytes - _RESERVE_BYTES:
            return self._prune_rows(min(PRUNE_ROWS, max(0, excess) + max_rows // 10))
        if free and pages * page > max_bytes - _RESERVE_BYTES + PRUNE_BYTES // 2:
            # A script, because `execute` takes one step, and each step frees one page.
            self._connection.executescript(f"PRAGMA incremental_vacuum({PRUNE_BYTES // page})")
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")  # only now the file is shorter
            return True
        self._grown = 0
        return False

    def last_events(self) -> dict[str, dict[str, Any]]:
        """The newest event of each kind."""
        return read_last_events(self._connection)

    def size_bytes(self) -> int:
        """Of the database and its write-ahead log."""
        return sum(path.stat().st_size for path in (self._path, self._wal) if path.exists())

    def close(self) -> None:
        """Move the write-ahead log into the database, close it, and let others have it."""
        with suppress(sqlite3.Error):
            self._connection.close()
        self._lock.release()

    def _prune_rows(self, most: int) -> bool:
        cut, size = 0, 0
        oldest = self._connection.execute(
            "SELECT number, hash, length(body) FROM rows ORDER BY number LIMIT ?", (max(0, min(most, self.rows - 1)),)
        ).fetchall()
        for cut, (_, _, length) in enumerate(oldest, start=1):  # noqa: B007 - how far it came is what is wanted
            size += length
            if size >= PRUNE_BYTES:
                break
        if not cut:
            return False
        last, before, _ = oldest[cut - 1]
        with _transaction(self._connection):
            self._connection.execute("DELETE FROM rows WHERE number <= ?", (last,))
            self._connection.execute("UPDATE chain SET first_number = ?, first_before = ?", (last + 1, before))
            self._connection.execute(
                "DELETE FROM boots WHERE first_number < (SELECT max(first_number) FROM boots WHERE first_number <= ?)",
                (last + 1,),
            )
        self.chain = self.chain._replace(first_number=last + 1, first_before=before)
        return True

    def _highest_number(self) -> int:
        (number,) = self._connection.execute("SELECT max(number) FROM rows").fetchone()
        return number or 0

    def _pragma(self, name: str) -> int:
        (value,) = self._connection.execute(f"PRAGMA {name}").fetchone()
        return int(value)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it on the disk, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # a full disk has rolled back already
            connection.execute("ROLLBACK")
        raise


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
