"""The file of a journal: what is in it, whether it is one, and how it is opened to write and to read.

rows          the chain: see `row`. The rest repeats what rows say, so that it need not be searched for.
chain         one row: where the kept part of the chain begins (retention moves it) and where it ends
boots         each boot's first row
last_events   the newest event of each kind, also when retention has taken its row
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from inspectd.errors import ConfigError, UsageError
from inspectd.verdict.journal.place import has_room
from inspectd.verdict.journal.row import HASH_BYTES, MAX_BODY_BYTES

APPLICATION_ID = 0x696E7370  # "insp"
VERSION = 1
BUSY_S = 1.0
"""How long a statement waits for somebody else's lock; nobody but us should hold one."""
MAX_ROW_BYTES = MAX_BODY_BYTES + 1_000_000
"""A damaged row may claim to be a gigabyte; SQLite would take the memory."""
WAL_BYTES = 4_000_000
"""After so much the write-ahead log is moved into the database and begun again."""

_PAGE_BYTES = 4096
_TABLES = f"""
BEGIN IMMEDIATE;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
CREATE TABLE rows (
    number INTEGER PRIMARY KEY,  -- from 1, without gaps
    at_us INTEGER NOT NULL,      -- when it was handed over, Unix time in microseconds
    kind TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    topic TEXT,
    seq INTEGER,
    body BLOB NOT NULL,          -- as on the wire: JSON or msgpack
    hash BLOB NOT NULL           -- SHA-256 over the hash of the row before and this row
) STRICT;
CREATE INDEX rows_by_message ON rows (boot_id, topic, seq) WHERE seq IS NOT NULL;
CREATE INDEX rows_by_event ON rows (kind, boot_id) WHERE seq IS NULL;
CREATE INDEX rows_by_time ON rows (at_us);
CREATE TABLE chain (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    first_number INTEGER NOT NULL,  -- of the first row that is kept
    first_before BLOB NOT NULL,     -- the hash before it
    head_number INTEGER NOT NULL,
    head_hash BLOB NOT NULL
) STRICT;
CREATE TABLE boots (boot_id TEXT PRIMARY KEY, first_number INTEGER NOT NULL) STRICT;
CREATE TABLE last_events (kind TEXT PRIMARY KEY, number INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
"""


class Chain(NamedTuple):
    """The row of `chain`."""

    first_number: int
    first_before: bytes
    head_number: int
    head_hash: bytes


def read_chain(connection: sqlite3.Connection) -> Chain:
    """Where the kept chain begins and ends.

    Raises:
        sqlite3.DatabaseError: it does not say so (any more).
    """
    row = connection.execute("SELECT first_number, first_before, head_number, head_hash FROM chain").fetchone()
    if row is None:
        raise sqlite3.DatabaseError("the table chain is empty")
    if [type(value) for value in row] != [int, bytes, int, bytes] or row[0] < 1:
        raise sqlite3.DatabaseError("the table chain holds what no chain can have")
    return Chain(*row)


def read_last_events(connection: sqlite3.Connection) -> dict[str, dict[str, Any]]:
    """The newest event of each kind; an empty one where it is no event any more, or not what its row says.

    Raises:
        sqlite3.Error: they cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    notes = connection.execute(
        "SELECT note.kind, note.body, rows.kind, rows.body FROM last_events AS note LEFT JOIN rows USING (number)"
    )
    for kind, body, row_kind, row_body in notes:
        found[str(kind)] = {}
        if row_kind is not None and (kind, body) != (row_kind, row_body):
            found[str(row_kind)] = {}
            continue
        with suppress(ValueError, TypeError, RecursionError):
            if isinstance(data := json.loads(body), dict):
                found[str(kind)] = data
    return found


def open_to_write(path: Path) -> sqlite3.Connection:
    """Open a journal, or create it. The caller holds the lock.

    Raises:
        ConfigError: what is there is no journal, or of a newer version.
        sqlite3.Error: the disk is full or failing.
    """
    connection = sqlite3.connect(_uri(path, "rwc"), timeout=BUSY_S, uri=True, isolation_level=None, **_ANY_THREAD)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES)
    try:
        new = _identify(connection, path)
        if new:
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # so that a lowered max_mb can give space back
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a commit has reached the disk, power may fail
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_BYTES // _PAGE_BYTES}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        if new:
            connection.executescript(_TABLES)
            start = os.urandom(HASH_BYTES)  # no two journals begin alike, so none can stand in for another
            connection.execute("INSERT INTO chain VALUES (1, 1, ?, 0, ?)", (start, start))
            connection.execute("COMMIT")
    except UsageError as err:
        connection.close()
        raise ConfigError(f"journal.path: {err}") from None
    except BaseException:
        connection.close()
        raise
    return connection


def open_to_read(path: Path, *, careful: bool = False) -> sqlite3.Connection:
    """Open a journal without ever changing it, whether or not a daemon writes it.

    `careful` refuses what could end the process on a full disk (see `place`): the daemon's own shall go on.

    Raises:
        UsageError: there is none, it cannot be read, nothing is in it yet, or it is of a newer version.
    """
    path = path.resolve()
    try:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name the journal's file")
        if path.stat().st_size == 0:
            raise UsageError(f"{path}: is empty; no daemon has written a journal there yet")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; journal.path in the configuration says where the journal is") from None
    except OSError as err:
        raise UsageError(f"{path}: cannot be read: {err.strerror}") from None
    try:
        connection = _connect_to_read(path, careful=careful)
        try:
            new = _identify(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as err:
        hint = ""
        if getattr(err, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CANTOPEN:
            hint = "; its writer was killed: copy it, with its -wal file, to a folder that you may write"
        raise UsageError(f"{path}: cannot be read: {err}{hint}") from None
    if new:
        connection.close()
        raise UsageError(f"{path}: is empty; no daemon has written a journal there yet")
    return connection


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """One state of the journal for several reads. Keep it short: the write-ahead log cannot begin again meanwhile.

    Raises:
        sqlite3.DatabaseError: what is read is damaged.
    """
    connection.execute("BEGIN")
    try:
        yield
    except MemoryError as err:  # what SQLite says of a row whose header makes no sense; nothing was taken
        raise sqlite3.DatabaseError("a row claims more memory than there is") from err
    finally:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


class Lock:
    """One daemon on one journal: a lock on the file beside it, which the kernel lifts however the process ends.

    Not on the journal itself: closing any descriptor of that would lift SQLite's own locks.
    """

    def __init__(self, path: Path) -> None:
        """Take it.

        Raises:
            ConfigError: another daemon has it, or the folder does not permit it.
            OSError: the disk is full or failing.
        """
        name = path.with_name(path.name + "-lock")
        try:
            self._fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            raise ConfigError(f"journal.path: {path}: there is no folder {path.parent}; create it") from None
        except (PermissionError, NotADirectoryError, IsADirectoryError) as err:
            raise ConfigError(f"journal.path: {path}: cannot be written: {err.strerror}") from None
        except OSError as err:
            if err.errno in _DEFINITE:
                raise ConfigError(f"journal.path: {path}: cannot be written: {err.strerror}") from None
            raise
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise ConfigError(
                f"journal.path: {path}: is in use by another inspectd (process {holder}); each needs its own"
            ) from None
        except BaseException:
            os.close(self._fd)
            raise
        with suppress(OSError):  # only for the message above
            os.ftruncate(self._fd, 0)
            self.sign()

    def sign(self) -> None:
        """Write down whose it is.

        Raises:
            OSError: the disk takes no write.
        """
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give it back; the file stays, because removing it would race with the next who takes it."""
        os.close(self._fd)


_ANY_THREAD = {"check_same_thread": False}  # opened by who starts, used by one thread from then on
_NO_PLACE = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY})
_DEFINITE = frozenset({errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP})  # waiting will not help


def _uri(path: Path, mode: str) -> str:
    return f"{path.absolute().as_uri()}?mode={mode}"


def _connect_to_read(path: Path, *, careful: bool) -> sqlite3.Connection:
    wal = path.with_name(path.name + "-wal")
    if not has_room(path):
        if not (wal.exists() and wal.stat().st_size):
            return _connect_to_whole(path)
        if careful:
            raise UsageError(f"{path}: its disk is full")
    connection = sqlite3.connect(_uri(path, "ro"), timeout=BUSY_S, uri=True, isolation_level=None)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES)
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError as err:
        # On a disk that is full, or cannot be written, there is no place for what readers share. With nothing in a
        # write-ahead log beside it the file is whole, and nobody is writing it.
        connection.close()
        if err.sqlite_errorcode & 0xFF not in _NO_PLACE or (wal.exists() and wal.stat().st_size):
            raise
        return _connect_to_whole(path)
    except sqlite3.DatabaseError:
        connection.close()
        raise UsageError(f"{path}: is no SQLite database, so it is no journal") from None
    return connection


def _connect_to_whole(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(_uri(path, "ro") + "&immutable=1", uri=True, isolation_level=None)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES)
    return connection


def _identify(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether a journal is yet to be created there.

    Raises:
        UsageError: it is no journal of ours.
    """
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as err:
        if err.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
            raise
        raise UsageError(f"{path}: is no SQLite database; name another file") from None
    except UnicodeDecodeError as err:  # SQLite names what it cannot read, and that is no text any more
        raise sqlite3.DatabaseError("the names of its tables are damaged") from err
    if application == APPLICATION_ID and version > VERSION:
        raise UsageError(f"{path}: is a journal of version {version}; this inspectd knows {VERSION}: update inspectd")
    if application == APPLICATION_ID and version == VERSION:
        return False
    if application or version or tables:
        raise UsageError(f"{path}: is a database of another program; name another file")
    return True
