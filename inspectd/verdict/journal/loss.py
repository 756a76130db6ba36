"""What was lost before it reached the journal: counted while it happens, told by a row of its own, read from there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from inspectd.verdict.journal.row import Entry, entry
from inspectd.verdict.schema import timestamp

Range = tuple[int, int]
"""First and last `seq`, both in it."""


class Loss:
    """Entries that never reach the journal, until the next that does. Becomes a row of its own, so that it shows."""

    def __init__(self) -> None:
        self.rows = 0
        self._first_us = self._last_us = 0
        self._messages: dict[str, list[list[int]]] = {}
        self._others: Counter[str] = Counter()

    def add(self, entry: Entry) -> None:
        self._first_us = entry.at_us if self.rows == 0 else self._first_us
        self._last_us = entry.at_us
        self.rows += 1
        if not isinstance(entry.topic, str) or not isinstance(entry.seq, int):  # it may be lost for just that
            self._others[entry.kind] += 1
            return
        ranges = self._messages.setdefault(entry.topic, [[entry.seq, entry.seq]])
        if 0 <= entry.seq - ranges[-1][1] <= 1:  # the same seq twice is a correction
            ranges[-1][1] = entry.seq
        else:
            ranges.append([entry.seq, entry.seq])

    def entry(self) -> Entry:
        """The row that tells of it; ranges of `seq` by topic, and what has no `seq` by kind."""
        told: dict[str, Any] = {
            "rows": self.rows,
            "first_at": timestamp(self._first_us / 1e6),
            "last_at": timestamp(self._last_us / 1e6),
            "messages": self._messages,
            "others": self._others,
        }
        return entry("lost", None, None, json.dumps(told).encode())


@dataclass(frozen=True)
class ToldLoss:
    """The body of a row of kind `lost`."""

    rows: int = 0
    first_at: str = "?"
    last_at: str = "?"
    messages: dict[str, list[Range]] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)


def read_loss(body: bytes) -> ToldLoss:
    """What a row of kind `lost` tells; nothing if it tells nothing that can be read."""
    try:
        told = json.loads(body)
        messages = {str(topic): [(int(a), int(b)) for a, b in ranges] for topic, ranges in told["messages"].items()}
        return ToldLoss(int(told["rows"]), str(told["first_at"]), str(told["last_at"]), messages, dict(told["others"]))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return ToldLoss()


def without(gap: Range, covered: Iterable[Range]) -> list[Range]:
    """What of a range of numbers, both ends in it, lies in none of others."""
    left = []
    first, last = gap
    for a, b in sorted(covered):
        if a > last:
            break
        if a > first:
            left.append((first, a - 1))
        first = max(first, b + 1)
    return [*left, (first, last)] if first <= last else left
