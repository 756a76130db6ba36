"""A journal as CSV for people with a spreadsheet, and as JSON lines for programs."""

from __future__ import annotations

import base64
import csv
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TextIO

import msgpack

from inspectd.errors import InspectdError, UsageError
from inspectd.verdict.journal.database import open_to_read
from inspectd.verdict.journal.reader import BEFORE_ALL, pages
from inspectd.verdict.journal.row import Row, recorded_at
from inspectd.verdict.schema import is_json

Format = Literal["csv", "jsonl"]

COLUMNS: dict[str, tuple[str, ...]] = {
    # Of the row itself; below, where in the message a column is found.
    "number": (),
    "recorded_at": (),
    "kind": (),
    "topic": (),
    "seq": (),
    "camera": ("camera",),
    "roi": ("roi",),
    "verdict": ("verdict",),
    "reason": ("reason",),
    "label": ("label",),
    "score": ("score",),
    "state": ("state",),
    "part_id": ("part_id",),
    "trigger_id": ("trigger_id",),
    "frame_index": ("frame", "index"),
    "captured_at": ("captured_at",),
    "published_at": ("published_at",),
    "latency_total_ms": ("latency_ms", "total"),
    "latency_trigger_ms": ("latency_ms", "trigger"),
    "vote": ("vote",),
    "frames_total": ("frames", "total"),
    "frames_passed": ("frames", "passed"),
    "frames_failed": ("frames", "failed"),
    "frames_uncertain": ("frames", "uncertain"),
    "frames_unseen": ("frames", "unseen"),
    "first_at": ("first_at",),
    "last_at": ("last_at",),
    "recipe": ("recipe",),
    "model": ("model",),
    "config": ("config",),
    "evidence": ("evidence",),
    "boot_id": (),
    "data": (),
}
"""Columns of the CSV. `data` is the whole body of what is no message: an event, or what nobody can read."""

_CORRECTED = "SELECT EXISTS (SELECT 1 FROM rows WHERE boot_id = ? AND topic = ? AND seq = ? AND number > ?)"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604_800}


@dataclass(frozen=True)
class Selection:
    """Which rows: handed over from `since_us` to before `until_us` (Unix time), topics that begin with `topic`."""

    since_us: int | None = None
    until_us: int | None = None
    topic: str | None = None

    def has(self, row: Row) -> bool:
        return (
            (self.since_us is None or row.at_us >= self.since_us)
            and (self.until_us is None or row.at_us < self.until_us)
            and (self.topic is None or (row.topic or "").startswith(self.topic))
        )


def parse_time(text: str, now_us: int) -> int:
    """A time as people write it, in Unix microseconds: RFC 3339, or how long ago: `90s`, `15m`, `2h`, `7d`, `1w`.

    Without a zone it is UTC, like every time that inspectd writes.

    Raises:
        UsageError: it is neither.
    """
    if ago := re.fullmatch(r"(\d{1,9})([smhdw])", text):
        return now_us - int(ago[1]) * _UNITS[ago[2]] * 1_000_000
    try:
        at = datetime.fromisoformat(text)
        return ((at if at.tzinfo else at.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is no time: write 2026-01-31T06:00:00Z, or how long ago: 90s, 15m, 2h, 7d"
        ) from None


def export(path: Path, out: TextIO, form: Format, selection: Selection) -> int:
    """Write the selected rows in the order of their numbers; how many there were.

    A message that was corrected appears once, as it was corrected.

    Raises:
        UsageError: it is no journal, or there is none.
        InspectdError: it cannot be read to its end.
    """
    with closing(open_to_read(path)) as connection:
        write = _csv_writer(out) if form == "csv" else _jsonl_writer(out)
        written = 0
        try:
            for row in _selected(connection, selection):
                write(row)
                written += 1
        except (sqlite3.Error, MemoryError) as err:  # the latter of rows whose header makes no sense
            raise InspectdError(f"{path}: cannot be read any further after {written} rows: {err}") from err
    return written


def _selected(connection: sqlite3.Connection, selection: Selection) -> Iterator[Row]:
    # The clock may have been stepped back, so times do not rise with numbers. They only say where to begin and to end.
    (start,) = connection.execute(
        "SELECT min(number) FROM rows WHERE at_us >= ?",
        (BEFORE_ALL if selection.since_us is None else selection.since_us,),
    ).fetchone()
    if start is None:
        return
    end = None
    if selection.until_us is not None:
        (end,) = connection.execute("SELECT max(number) FROM rows WHERE at_us < ?", (selection.until_us,)).fetchone()
        if end is None:
            return
    for page in pages(connection, start - 1):
        for row in page.rows:
            if end is not None and row.number > end:
                return
            if selection.has(row) and not _corrected(connection, row):
                yield row


def _corrected(connection: sqlite3.Connection, row: Row) -> bool:
    """Whether a later row has the same place in the stream, and counts instead."""
    if row.seq is None:
        return False
    (yes,) = connection.execute(_CORRECTED, (row.boot_id, row.topic, row.seq, row.number)).fetchone()
    return bool(yes)


def _jsonl_writer(out: TextIO) -> Callable[[Row], None]:
    def write(row: Row) -> None:
        line: dict[str, Any] = {
            "number": row.number,
            "recorded_at": recorded_at(row.at_us),
            "kind": row.kind,
            "boot_id": row.boot_id,
            "topic": row.topic,
            "seq": row.seq,
        }
        body = _body(row)
        line |= {"body_base64": base64.b64encode(row.body).decode()} if body is None else {"body": body}
        out.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")

    return write


def _csv_writer(out: TextIO) -> Callable[[Row], None]:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)

    def write(row: Row) -> None:
        body = _body(row)
        own: dict[str, Any] = {
            "number": row.number,
            "recorded_at": recorded_at(row.at_us),
            "kind": row.kind,
            "topic": row.topic,
            "seq": row.seq,
            "boot_id": row.boot_id,
        }
        if body is None:
            own["data"] = "base64:" + base64.b64encode(row.body).decode()
        elif row.kind not in ("message", "late"):
            own["data"] = json.dumps(body, ensure_ascii=False)
            body = {}
        writer.writerow([_cell(own.get(name) if not path else _at(body, path)) for name, path in COLUMNS.items()])

    return write


def _body(row: Row) -> dict[str, Any] | None:
    """The message or event inside; None when nobody can read it."""
    try:
        body = json.loads(row.body) if is_json(row.body) else msgpack.unpackb(row.body)
    except (ValueError, RecursionError, msgpack.UnpackException):
        return None
    return body if isinstance(body, dict) else None


def _at(body: Mapping[str, Any] | None, path: tuple[str, ...]) -> Any:
    value: Any = body
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe in front: part ids come from outside."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value if isinstance(value, str | int | float | None) else json.dumps(value, ensure_ascii=False)
