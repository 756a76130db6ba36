"""Reading a whole journal in pages, also while a daemon writes it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from types import NoneType
from typing import NamedTuple

from inspectd.verdict.journal.database import Chain, read_chain, snapshot
from inspectd.verdict.journal.row import Row

PAGE_ROWS = 1000
PAGE_BYTES = 4_000_000
BEFORE_ALL = -(2**63)

_ROWS = "SELECT number, at_us, kind, boot_id, topic, seq, body, hash FROM rows WHERE number > ? ORDER BY number"


_KINDS: tuple[type | tuple[type, ...], ...] = (int, int, str, str, (str, NoneType), (int, NoneType), bytes, bytes)
"""Of the columns. A damaged page can hold others, which SQLite hands on."""


class Page(NamedTuple):
    """Rows that stand one behind the other, and where the chain began and ended in that same moment."""

    chain: Chain
    rows: list[Row]


def pages(connection: sqlite3.Connection, after: int = BEFORE_ALL) -> Iterator[Page]:
    """Every row behind the number `after`, page by page; the last page has none.

    Raises:
        sqlite3.Error: the rest cannot be read.
    """
    while True:
        with snapshot(connection):
            page = Page(read_chain(connection), _some(connection, after))
        yield page
        if not page.rows:
            return
        after = page.rows[-1].number


def _some(connection: sqlite3.Connection, after: int) -> list[Row]:
    rows: list[Row] = []
    size = 0
    for values in connection.execute(_ROWS, (after,)):
        if not all(isinstance(value, kind) for value, kind in zip(values, _KINDS, strict=True)):
            raise sqlite3.DatabaseError(f"row {values[0]} holds a value of another kind than its column")
        if values[0] <= after:  # a damaged index hands on rows again and again, without end
            raise sqlite3.DatabaseError(f"row {values[0]} stands behind row {after}")
        after = values[0]
        rows.append(Row(*values))
        size += len(rows[-1].body)
        if len(rows) >= PAGE_ROWS or size >= PAGE_BYTES:
            break
    return rows
