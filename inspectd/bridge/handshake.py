"""The four-phase handshake of a trigger, as a PLC without strings and callbacks does it.

    PLC                                        bridge
    writes part number and deadline,
    sets trigger                           ->  number counts up, busy; asks inspectd
                                               ack: inspectd has accepted
                                               done: every region has its result, busy ends
                                               or error: with its code, busy ends
    reads the results, resets trigger      ->  ack, busy, done and error end; ready for the next

One camera, no clock and no socket: times are fed in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from inspectd.bridge import codes
from inspectd.bridge.codes import Code

REPLY_TIMEOUT_S = 1.0
"""Inspectd must have accepted or refused by then."""

GRACE_S = 0.25
"""A deadline is inspectd's to keep; so long after it the bridge gives up waiting."""

REMEMBERED = 64
"""Triggers whose number is still known when their result comes."""


@dataclass(frozen=True, slots=True)
class Order:
    """A trigger that is to be sent."""

    camera: str
    number: int
    part_number: int  # 0: without one
    deadline_ms: int

    @property
    def part_id(self) -> str | None:
        return str(self.part_number) if self.part_number else None


@dataclass(frozen=True, slots=True)
class Signals:
    ack: bool
    busy: bool
    done: bool
    error: Code


@dataclass(slots=True)
class Handshake:
    """Of one camera, whose regions are `rois`."""

    camera: str
    rois: Collection[str]
    number: int = 0  # of the newest trigger, 1..65535 and round again
    _reset_seen: bool = False  # the trigger was 0 at least once since the bridge started
    _set: bool = False
    _error: Code = codes.NO_ERROR
    _trigger_id: str | None = None
    _missing: set[str] = field(default_factory=set)
    _give_up_at: float | None = None  # None: nothing is waited for
    _numbers: OrderedDict[str, int] = field(default_factory=OrderedDict)  # trigger_id -> number
    _early: OrderedDict[str, set[str]] = field(default_factory=OrderedDict)  # answers before their acceptance

    @property
    def is_set(self) -> bool:
        return self._set

    def write(self, value: bool, part_number: int, deadline_ms: int, now: float) -> Order | None:
        """The PLC writes the trigger; the order to send when that starts one.

        Setting what is set already, or resetting what is reset, does nothing.
        """
        if not value:
            # What still comes for an abandoned trigger finds nobody waiting.
            self._set, self._reset_seen, self._error = False, True, codes.NO_ERROR
            self._trigger_id, self._give_up_at = None, None
            return None
        if self._set:
            return None
        self._set = True
        if not self._reset_seen:
            # A trigger left set from before the bridge was restarted would inspect another part under its number.
            self._error = codes.RESET_FIRST
            return None
        self.number = self.number % 0xFFFF + 1
        self._missing = set(self.rois)
        self._give_up_at = now + REPLY_TIMEOUT_S
        return Order(self.camera, self.number, part_number, deadline_ms)

    def accepted(self, order: Order, trigger_id: str, now: float) -> None:
        """Inspectd has taken an order."""
        self._numbers[trigger_id] = order.number
        if len(self._numbers) > REMEMBERED:
            self._numbers.popitem(last=False)
        early = self._early.pop(trigger_id, set())
        if not self._waits_for(order, now):
            return
        self._trigger_id = trigger_id
        self._missing -= early
        self._give_up_at = None if not self._missing else now + order.deadline_ms / 1000 + GRACE_S

    def refused(self, order: Order, error: Code, now: float) -> None:
        """Inspectd has not taken an order, or did not answer."""
        if self._waits_for(order, now):
            self._fail(error)

    def answered(self, trigger_id: str, roi: str) -> None:
        """A region's live result for a trigger, perhaps before its acceptance is known."""
        if trigger_id == self._trigger_id:
            self._missing.discard(roi)
            if not self._missing:
                self._give_up_at = None
        elif trigger_id not in self._numbers:
            self._early.setdefault(trigger_id, set()).add(roi)
            if len(self._early) > REMEMBERED:
                self._early.popitem(last=False)

    def unsafe(self) -> None:
        """Nothing that still comes may be relied on."""
        if self._give_up_at is not None:
            self._fail(codes.UNSAFE)

    def signals(self, now: float) -> Signals:
        self._watch(now)
        done = self._trigger_id is not None and not self._missing and self._error is codes.NO_ERROR
        return Signals(
            ack=self._set and self._trigger_id is not None,
            busy=self._give_up_at is not None,
            done=self._set and done,
            error=self._error,
        )

    def number_of(self, trigger_id: str | None) -> int:
        """Which of the bridge's triggers this is; 0 when it is none of them, or long ago."""
        return 0 if trigger_id is None else self._numbers.get(trigger_id, 0)

    def _waits_for(self, order: Order, now: float) -> bool:
        self._watch(now)
        return self._give_up_at is not None and order.number == self.number and self._trigger_id is None

    def _watch(self, now: float) -> None:
        if self._give_up_at is not None and now >= self._give_up_at:
            self._fail(codes.NO_REPLY if self._trigger_id is None else codes.NO_ANSWER)

    def _fail(self, error: Code) -> None:
        self._error, self._give_up_at = error, None
