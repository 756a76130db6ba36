"""Verifying a journal: every row is as it was written, none is missing, every message is there or known to be lost."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from inspectd.verdict.journal.database import Chain, open_to_read, read_chain, snapshot
from inspectd.verdict.journal.loss import Range, read_loss, without
from inspectd.verdict.journal.reader import pages
from inspectd.verdict.journal.row import Row
from inspectd.verdict.journal.walk import Walk

MAX_GAPS = 10_000
"""Ranges of missing messages that are looked at; more than these are not told apart."""

_BOOTS = "SELECT boot_id, first_number FROM boots WHERE first_number BETWEEN ? AND ?"

Stream = tuple[str, str]  # boot_id, topic


@dataclass(frozen=True)
class Verification:
    """What `verify` found. `faults` and `lost` are lines for people; without faults it is as it was written."""

    rows: int
    messages: int
    boots: int
    first_number: int
    pruned: bool
    first_us: int | None
    last_us: int | None
    head_number: int
    head_hash: str
    noted_number: int | None  # of the row that carries the noted head
    faults: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def verify(path: Path, noted_head: str | None = None) -> Verification:
    """Walk a journal from end to end, also while a daemon writes it.

    `noted_head`: a head's hash (or the beginning of it, in hex) that was noted earlier: some row must still carry it.

    Raises:
        UsageError: it is no journal, or there is none.
    """
    walk, streams = Walk(), _Streams()
    chain: Chain | None = None
    first: Row | None = None
    last: Row | None = None
    noted: int | None = None
    faults: list[str] = []
    with closing(open_to_read(path)) as connection:
        try:
            for page in pages(connection):
                chain = page.chain
                if not walk.page(chain, page.rows):
                    streams.restart()
                streams.rows(page.rows)
                first = first or (page.rows[0] if page.rows else None)
                last = page.rows[-1] if page.rows else last
                if noted_head is not None and noted is None:
                    noted = next((row.number for row in page.rows if row.hash.hex().startswith(noted_head)), None)
            walk.finish()
            with snapshot(connection):
                faults += streams.index_faults(connection, last.number if last else 0)
        except sqlite3.Error as err:
            behind = f" behind row {last.number}" if last else ""
            faults.append(f"the file is damaged{behind} and cannot be read any further: {err}")
    if chain is None:
        chain = Chain(0, b"", 0, b"")
    if noted_head is not None and noted is None:
        faults.append(_unnoted(noted_head, chain))
    return Verification(
        rows=walk.rows,
        messages=streams.messages,
        boots=streams.boots,
        first_number=chain.first_number,
        pruned=chain.first_number > 1,
        first_us=first.at_us if first else None,
        last_us=last.at_us if last else None,
        head_number=chain.head_number,
        head_hash=chain.head_hash.hex(),
        noted_number=noted,
        faults=[*map(str, walk.faults), *streams.faults(), *faults],
        lost=streams.lost,
    )


def _unnoted(noted_head: str, chain: Chain) -> str:
    if chain.first_number > 1:
        return (
            f"no row from {chain.first_number} on carries the noted head {noted_head}: "
            "it was pruned since, or the journal was rewritten"
        )
    return f"no row carries the noted head {noted_head}: the journal was rewritten, cut or replaced"


class _Streams:
    """Whether each topic's messages are all there: `seq` counts without gaps from 1, and what was lost is told of."""

    def __init__(self) -> None:
        self.messages = 0
        self.lost: list[str] = []
        self._firsts: dict[str, int] = {}  # each boot's first row
        self._whole: set[str] = set()  # boots that are here from their start
        self._newest: dict[Stream, int] = {}
        self._events: dict[str, int] = {}
        self._gaps: list[tuple[Stream, Range]] = []
        self._declared: dict[Stream, list[Range]] = defaultdict(list)

    @property
    def boots(self) -> int:
        return len(self._firsts)

    def rows(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if row.boot_id not in self._firsts:
                self._firsts[row.boot_id] = row.number
                if row.kind == "boot":
                    self._whole.add(row.boot_id)
            if row.topic is not None and row.seq is not None:
                self._message(row.boot_id, row.topic, row.seq)
            elif row.kind != "late":
                self._events[row.kind] = row.number
            if row.kind == "lost":
                self._loss(row)

    def restart(self) -> None:
        """What comes next does not follow what came last: retention has taken the rows between."""
        self._newest.clear()
        self._whole.clear()

    def faults(self) -> list[str]:
        """Messages that are missing although nothing tells that they were lost."""
        found = []
        for (boot, topic), gap in self._gaps:
            for first, last in without(gap, self._declared[boot, topic]):
                which = f"message {first}" if first == last else f"messages {first} to {last}"
                found.append(f"{which} of {topic} in boot {boot}: missing, and no loss is recorded")
        return found

    def index_faults(self, connection: sqlite3.Connection, last: int) -> list[str]:
        """Tables that repeat what the rows up to `last` say, and say something else."""
        kept = read_chain(connection).first_number  # of the boot that this row is in, the beginning may be pruned
        boots = dict(connection.execute(_BOOTS, (kept + 1, last)))
        events = dict(connection.execute("SELECT kind, number FROM last_events WHERE typeof(number) = 'integer'"))
        found = []
        if boots != {boot: number for boot, number in self._firsts.items() if number > kept}:
            found.append("the table boots does not agree with the rows")
        if any(events.get(kind, 0) < number for kind, number in self._events.items()):
            found.append("the table last_events does not agree with the rows")
        return found

    def _message(self, boot: str, topic: str, seq: int) -> None:
        self.messages += 1
        stream = boot, topic
        newest = self._newest.get(stream)
        if newest is None:
            newest = 0 if boot in self._whole else seq - 1
        if seq > newest + 1 and len(self._gaps) < MAX_GAPS:
            self._gaps.append((stream, (newest + 1, seq - 1)))
        self._newest[stream] = max(newest, seq)  # an earlier one again is a correction

    def _loss(self, row: Row) -> None:
        told = read_loss(row.body)
        for topic, ranges in told.messages.items():
            self._declared[row.boot_id, topic] += ranges
        what = [f"{topic} {', '.join(_span(r) for r in ranges)}" for topic, ranges in told.messages.items()]
        what += [f"{rows} of kind {kind}" for kind, rows in told.others.items()]
        self.lost.append(f"{told.rows} rows were never written, {told.first_at} to {told.last_at}: {'; '.join(what)}")


def _span(numbers: Range) -> str:
    return str(numbers[0]) if numbers[0] == numbers[1] else f"{numbers[0]}–{numbers[1]}"
