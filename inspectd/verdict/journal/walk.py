"""Walking the chain: which rows fit behind the row before them, and what was done to those that do not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from inspectd.verdict.journal.database import Chain
from inspectd.verdict.journal.row import Row, chain_hash

MAX_BREAKS = 300
"""So many are looked at closely; whoever rewrote more is found out all the same."""

MAX_FAULTS = 10_000
"""More are not listed."""

What = Literal["missing", "cut", "content", "hash", "inserted", "exchanged", "unfit"]
_WORDS: dict[What, tuple[str, str]] = {
    "missing": ("is missing", "are missing"),
    "cut": ("is missing: the end was cut off", "are missing: the end was cut off"),
    "content": ("was changed", "were changed"),  # of one row, see __str__
    "hash": ("has a changed hash", "have changed hashes"),
    "inserted": ("was inserted", "were inserted"),
    "exchanged": ("", ""),
    "unfit": (
        "does not fit behind the row before it: one of the two was changed or exchanged",
        "do not fit: something before or among them was changed, exchanged, inserted or removed",
    ),
}


@dataclass(slots=True)
class Fault:
    """Rows `first` to `last`, of which something is wrong. For an exchange these are the two rows."""

    first: int
    last: int
    what: What

    def __str__(self) -> str:
        if self.what == "exchanged":
            return f"rows {self.first} and {self.last}: were exchanged"
        if self.what == "content" and self.first == self.last:
            return f"row {self.first}: was changed (or row {self.first - 1} was, and its hash with it)"
        one, many = _WORDS[self.what]
        return f"row {self.first}: {one}" if self.first == self.last else f"rows {self.first} to {self.last}: {many}"


@dataclass(slots=True)
class _Break:
    """A row whose hash is not the one it should have behind `previous`, the hash that the row before it carries."""

    row: Row
    previous: bytes
    what: What = "unfit"


class Walk:
    """Goes along the rows of one journal in their order; `faults` once `finish` was called."""

    def __init__(self) -> None:
        self.rows = 0
        self.faults: list[Fault] = []
        self._chain: Chain | None = None
        self._expected = 0
        self._previous: bytes | None = None  # the hash that the row before carries; None: that row is missing
        self._computed: bytes | None = None  # the hash that it should carry, if that is another
        self._skipped: bytes | None = None  # the hash that the row before it carries
        self._breaks: list[_Break] = []
        self._pending: _Break | None = None  # the row before, if it is broken: what follows tells why

    def page(self, chain: Chain, rows: Iterable[Row]) -> bool:
        """The next rows, and the chain's ends as they stood when these were read.

        False when retention was faster than this walk: rows before these are gone, and that is in order.
        """
        overtaken = self._chain is not None and chain.first_number > self._expected
        if self._chain is None or overtaken:
            self._begin(chain)
        self._chain = chain
        for row in rows:
            if row.number < self._expected or row.number > chain.head_number:
                self._fault(row.number, row.number, "inserted")
                continue
            if row.number > self._expected:
                self._fault(self._expected, row.number - 1, "missing")
                self._resolve("unfit")
                self._previous = None
            self._step(row)
            self.rows += 1
            self._expected = row.number + 1
        return not overtaken

    def finish(self) -> None:
        """The rows are at their end: compare it with the head, and explain what did not fit."""
        chain = self._chain
        assert chain is not None
        if self._expected <= chain.head_number:
            self._fault(self._expected, chain.head_number, "cut")
        elif chain.head_hash == self._previous:
            self._resolve("content")
        elif chain.head_hash == self._computed:
            self._resolve("hash")
        elif self._pending is None:
            self._fault(chain.head_number, chain.head_number, "unfit")
        self._resolve("unfit")
        self._explain()
        self.faults.sort(key=lambda fault: (fault.first, fault.last))

    def _begin(self, chain: Chain) -> None:
        self._resolve("unfit")
        self._expected = chain.first_number
        self._previous = chain.first_before
        self._computed = self._skipped = None

    def _step(self, row: Row) -> None:
        previous = self._previous
        if previous is None:  # so this row's place cannot be checked, only the next one's
            self._previous, self._computed, self._skipped = row.hash, None, None
            return
        should = chain_hash(previous, row)
        if should == row.hash:
            self._resolve("content")
            computed = None
        elif self._computed is not None and chain_hash(self._computed, row) == row.hash:
            self._resolve("hash")
            computed = None
        elif self._skipped is not None and chain_hash(self._skipped, row) == row.hash:
            if self._follows_a_break():
                self._resolve("unfit")
            else:
                self._pending = None
                self._fault(row.number - 1, row.number - 1, "inserted")
            computed = None
        else:
            self._resolve("unfit")
            self._pending = _Break(row, previous)
            computed = should
        self._previous, self._computed, self._skipped = row.hash, computed, previous

    def _follows_a_break(self) -> bool:
        """Whether the broken row stands right behind another one: then they may have been exchanged."""
        number = self._pending.row.number if self._pending else 0
        return bool(self._breaks) and self._breaks[-1].row.number == number - 1

    def _resolve(self, what: What) -> None:
        """What came behind a broken row tells what was done to it."""
        broken, self._pending = self._pending, None
        if broken is None:
            return
        broken.what = what
        if len(self._breaks) < MAX_BREAKS:
            self._breaks.append(broken)
        else:
            self._fault(broken.row.number, broken.row.number, what)

    def _explain(self) -> None:
        """Find broken rows that stand in each other's place; of the others say what is known."""
        breaks = {broken.row.number: broken for broken in self._breaks}
        for number, broken in list(breaks.items()):
            if number in breaks and (other := self._place_of(broken, breaks)) is not None:
                self.faults.append(Fault(min(number, other), max(number, other), "exchanged"))
                pair = {number: breaks.pop(number), other: breaks.pop(other)}
                for place, mate in ((number, other), (other, number)):
                    after = breaks.get(place + 1)
                    if after is not None and chain_hash(pair[mate].row.hash, after.row) == after.row.hash:
                        del breaks[place + 1]
        unfit: set[int] = set()  # behind such a row nobody can say which of the two it was
        for number, broken in breaks.items():
            what: What = "unfit" if number - 1 in unfit else broken.what
            if what == "unfit":
                unfit.add(number)
            self._fault(number, number, what)

    def _place_of(self, broken: _Break, breaks: dict[int, _Break]) -> int | None:
        """The number of the broken row in whose place this one would fit."""
        for number, other in breaks.items():
            if number != broken.row.number:
                moved = broken.row._replace(number=number)
                if chain_hash(other.previous, moved) == moved.hash:
                    return number
        return None

    def _fault(self, first: int, last: int, what: What) -> None:
        if self.faults and self.faults[-1].what == what != "exchanged" and self.faults[-1].last == first - 1:
            self.faults[-1].last = last
        elif len(self.faults) < MAX_FAULTS:
            self.faults.append(Fault(first, last, what))
