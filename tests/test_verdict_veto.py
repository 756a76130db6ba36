"""What must not be told as it was decided, case by case; the publisher's tests see that it is asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from part_kit import verdict
from test_verdict_publisher import MAX_AGE_S, ORIGIN, roster

from inspectd.config import PartConfig
from inspectd.observe.ledger import Ticket
from inspectd.verdict.decide import Decision, Origin, Outcome
from inspectd.verdict.part_stream import PartStream, RoiParts
from inspectd.verdict.schema import FrameInfo, Part
from inspectd.verdict.veto import Veto

PASS = Decision("pass", None, "good", 0.9, {"good": 0.9})


def veto(*, vouched: bool = True, required: bool = False) -> Veto:
    plain = roster(("top",))
    return Veto(plain.cameras, plain.origins, lambda: vouched, required=required)


def outcome(**changes: Any) -> Outcome:
    fields: dict[str, Any] = {
        "ticket": Ticket("top", "part"),
        "decision": PASS,
        "origin": ORIGIN,
        "index": 0,
        "pts": None,
        "clock": "arrival",
        "captured_at": 1769860800.0,
        "arrival": time.monotonic(),
        "decode_s": 0,
        "queue_s": 0,
        "engine_s": 0,
    }
    return Outcome(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"arrival": time.monotonic() - 2 * MAX_AGE_S}, "stale"),
        ({"waited_s": 2 * MAX_AGE_S}, "stale"),
        ({"origin": Origin("an0ther", ORIGIN.config)}, "not_ready"),
        ({"origin": Origin(ORIGIN.model, ORIGIN.config)}, "not_ready"),  # an equal line-up, but not this one
        ({"ticket": Ticket("top", "gone")}, "not_ready"),
    ],
)
def test_a_judgement_counts_while_it_is_fresh_and_its_line_up_in_force(changes: Any, reason: str | None) -> None:
    """Whatever else changes on its way out."""
    assert veto().on(outcome(**changes)) == reason


def test_a_part_counts_while_it_is_fresh_vouched_for_and_recorded() -> None:
    """As a verdict does: the last moment is when it is sent."""
    parts: list[Part] = []

    def tell(make: Callable[[int], Part], camera: str, roi: str, known_at: float) -> None:
        parts.append(make(1))
        assert known_at == begin + 6

    class Metrics:
        def part(self, *what: Any) -> None: ...

        part_flicker = part_stuck = part

    stream = PartStream("b00t", tell, Metrics())
    stream.use({("top", "part"): RoiParts(PartConfig(), frozenset({"empty"}))})
    begin = time.monotonic()
    for index, kind in enumerate("...ppp..."):
        frame = FrameInfo(index=index, pts=float(index), clock="arrival")
        stream.verdict(verdict(kind, index, frame=frame), begin + index, begin + index - 2)
    (part,) = parts
    assert part.verdict == "pass"
    now = time.monotonic()
    assert veto().at_last_on_part(part, now, recorded=True) is None
    assert veto().at_last_on_part(part, now - 2 * MAX_AGE_S, recorded=True) == "stale"
    assert veto(vouched=False).at_last_on_part(part, now, recorded=True) == "not_ready"
    assert veto(required=True).at_last_on_part(part, now, recorded=False) == "not_ready"
    unseen = part.model_copy(update={"verdict": "no_result", "reason": "uncertain"})
    assert veto(vouched=False).at_last_on_part(unseen, now, recorded=True) is None


def test_what_an_earlier_line_up_saw_begins_no_part_of_the_next() -> None:
    """Its last verdicts may be told when the next one is in force already."""
    parts: list[Part] = []

    class Metrics:
        def part(self, *what: Any) -> None: ...

        part_flicker = part_stuck = part

    before = time.monotonic()
    stream = PartStream("b00t", lambda make, *_: parts.append(make(1)), Metrics())
    stream.use({("top", "part"): RoiParts(PartConfig(), frozenset({"empty"}))})
    for index in range(3):
        stream.verdict(verdict(".", index), before, before)
    now = time.monotonic()
    for index, kind in enumerate("ppp...", start=3):
        stream.verdict(verdict(kind, index), now, now)
    assert [part.reason for part in parts] == ["not_ready"]
