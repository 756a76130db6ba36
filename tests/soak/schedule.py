"""Which fault comes when: all from the seed, before anything runs."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

QUIET = 0.1
"""This share of the time at either end is free of faults, so that its latencies compare."""
FULL_LENGTH_S = 1800.0
"""From here on faults last as long as their kinds say; a shorter soak has shorter ones, and less rest in between."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault: it lasts `least_s` to `most_s`, and then the line has `settle_s` before the next one comes."""

    name: str
    least_s: float
    most_s: float
    settle_s: float = 8.0


@dataclass(frozen=True)
class Planned:
    """One fault to come. Seconds from the start of the soak; `seed` is for whatever the fault itself leaves open."""

    number: int
    kind: str
    at_s: float
    lasts_s: float
    seed: int


def plan(seed: int, length_s: float, kinds: Sequence[Kind]) -> list[Planned]:
    """Faults from the end of the first tenth to the last: each kind once in every round, in an order of its own."""
    dice = random.Random(seed)
    scale = min(1.0, length_s / FULL_LENGTH_S)
    now, end = QUIET * length_s, (1 - QUIET) * length_s
    planned: list[Planned] = []
    while kinds:
        for kind in dice.sample(kinds, len(kinds)):
            lasts_s = max(kind.least_s, dice.uniform(kind.least_s, kind.most_s) * scale)
            rest_s = kind.settle_s + dice.uniform(0, 8) * scale
            if now + lasts_s + rest_s > end:
                return planned
            planned.append(Planned(len(planned), kind.name, round(now, 2), round(lasts_s, 2), dice.randrange(2**31)))
            now += lasts_s + rest_s
    return planned
