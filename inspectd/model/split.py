"""Splitting pictures by part: what shows the same part lies on one side, whatever the seed.

A part's pictures are found by equal content, by near duplicates, and by a pattern on the file's name.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from inspectd.errors import DataError, UsageError
from inspectd.model.folder import SPLITS, Split

_BIGGEST_SHARE = 0.5  # of a class's pictures in one group of near duplicates, from which on they mean nothing
_FEWEST_GROUPS = 4
_SMALL_CLASS = 8  # below, only what makes a split impossible counts


def assign(
    labels: Sequence[int],
    contents: Sequence[str],
    given: Sequence[Split | None],
    near: Sequence[tuple[int, int]],
    parts: Sequence[str | None],
    seed: int,
    fractions: Sequence[float],
) -> tuple[list[Split], set[int]]:
    """The split of each picture, and the labels whose near duplicates could not be kept together.

    Args:
        labels: the class of each picture.
        contents: its hash.
        given: its split where that is settled; None where it is to be decided.
        near: pairs of near duplicates.
        parts: what names the part that it shows, from `name_groups`; None where nothing does.
        fractions: shares of each class, of what is to be decided, for val and, if there is a second, for test.
    """
    rows = [row for row, split in enumerate(given) if split is None]
    position = {row: index for index, row in enumerate(rows)}
    own_labels = [labels[row] for row in rows]
    own_contents = [contents[row] for row in rows]
    own_parts = [parts[row] for row in rows]
    sure = _equals(own_contents) + _equals(own_parts)
    own_near = [(position[i], position[j]) for i, j in near if i in position and j in position]
    pairs, chained = _without_chains(own_labels, sure, own_near)
    keys = [part or content for part, content in zip(own_parts, own_contents, strict=True)]
    decided = split_groups(own_labels, _join(len(rows), pairs), keys, seed, fractions)
    split: list[Split] = [settled or "train" for settled in given]
    for row, part in zip(rows, decided, strict=True):
        split[row] = SPLITS[part]
    return split, chained


def name_groups(names: Sequence[str], pattern: str) -> list[str | None]:
    """What the pattern's one capture group finds in each file name; None where it does not match.

    Raises:
        UsageError: no regular expression, or not of one capture group.
        DataError: it matches no name.
    """
    try:
        expression = re.compile(pattern)
    except re.error as err:
        raise UsageError(f"groups: {pattern!r} is no regular expression: {err}") from err
    if expression.groups != 1:
        raise UsageError(f"groups: {pattern!r} has {expression.groups} capture groups, one is needed: (part\\d+)_")
    found = [match.group(1) if (match := expression.search(name)) else None for name in names]
    if names and not any(found):
        raise DataError(f"groups: {pattern!r} matches none of {len(names)} file names, as {names[0]}")
    return found


def _join(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """The group of each of `count` items, named by its first member, when both of every pair are in one."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for one, other in pairs:
        a, b = sorted((root(one), root(other)))
        parent[b] = a
    return [root(item) for item in range(count)]


def _equals(keys: Sequence[str | None]) -> list[tuple[int, int]]:
    """Pairs that join items of equal key. None equals nothing."""
    first: dict[str, int] = {}
    return [(first.setdefault(key, index), index) for index, key in enumerate(keys) if key is not None]


def _without_chains(
    labels: Sequence[int], sure: Sequence[tuple[int, int]], near: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], set[int]]:
    """The pairs to group by, and the labels whose near duplicates are left out: they chain into too few groups.

    That is where a class would have less than two groups, or (from 8 pictures on) less than four, or one with more
    than half of its pictures, and would not without its near duplicates.
    """
    chained: set[int] = set()
    unavoidable = _too_few(labels, _join(len(labels), sure))
    while True:
        kept = [(i, j) for i, j in near if labels[i] not in chained and labels[j] not in chained]
        pairs = [*sure, *kept]
        more = _too_few(labels, _join(len(labels), pairs)) - unavoidable - chained
        if not more:
            return pairs, chained
        chained |= more


def split_groups(
    labels: Sequence[int], groups: Sequence[int], keys: Sequence[str], seed: int, fractions: Sequence[float]
) -> list[int]:
    """The part of each item: 1 + k where it is set aside by fractions[k] (of each class), 0 for the rest.

    Groups are taken in the order of a seeded hash of their smallest key, each where it brings the part nearer to
    its share, so that an item that is added or removed moves few of the others. Every class that has the groups
    for it keeps one for the rest, and then one in every part with a fraction above 0.
    """
    placement = _Placement(labels, groups, keys, seed)
    for part, fraction in enumerate(fractions, start=1):
        if fraction > 0:
            placement.set_aside(part, fraction)
    return [placement.part[group] for group in groups]


class _Placement:
    """Which part each group went to, 0 at first; and for each label how many groups are left there."""

    def __init__(self, labels: Sequence[int], groups: Sequence[int], keys: Sequence[str], seed: int) -> None:
        self._counts: dict[int, Counter[int]] = defaultdict(Counter)  # group -> label -> items
        least: dict[int, str] = {}
        for label, group, key in zip(labels, groups, keys, strict=True):
            self._counts[group][label] += 1
            least[group] = min(key, least.get(group, key))
        self._order = sorted(least, key=lambda group: hashlib.sha256(f"{seed}/{least[group]}".encode()).digest())
        self._total = Counter(labels)
        self._left = Counter(label for count in self._counts.values() for label in count)
        self.part = dict.fromkeys(self._order, 0)

    def set_aside(self, part: int, fraction: float) -> None:
        """Move the groups of one part."""
        missing = {label: max(1, round(count * fraction)) for label, count in self._total.items()}
        taken: set[int] = set()
        for group in self._order:
            count = self._counts[group]
            nearer = sum(abs(missing[label]) - abs(missing[label] - items) for label, items in count.items())
            if nearer > 0 and self._is_free(group):
                self._take(group, part, missing, taken)
        for label in sorted(self._total.keys() - taken):  # its groups are all large: rather too many than none
            if free := [group for group in self._order if label in self._counts[group] and self._is_free(group)]:
                self._take(min(free, key=lambda group: self._counts[group].total()), part, missing, taken)

    def _is_free(self, group: int) -> bool:
        """Whether it may go: none of its classes loses its last group."""
        return self.part[group] == 0 and all(self._left[label] > 1 for label in self._counts[group])

    def _take(self, group: int, part: int, missing: dict[int, int], taken: set[int]) -> None:
        self.part[group] = part
        for label, items in self._counts[group].items():
            missing[label] -= items
            self._left[label] -= 1
            taken.add(label)


def _too_few(labels: Sequence[int], groups: Sequence[int]) -> set[int]:
    """Classes that cannot be split in a way that says anything."""
    sizes: dict[int, Counter[int]] = defaultdict(Counter)
    for label, group in zip(labels, groups, strict=True):
        sizes[label][group] += 1
    few = set()
    for label, by_group in sizes.items():
        total, biggest = sum(by_group.values()), max(by_group.values())
        large = total >= _SMALL_CLASS
        if len(by_group) < (_FEWEST_GROUPS if large else 2) or (large and biggest > _BIGGEST_SHARE * total):
            few.add(label)
    return few
