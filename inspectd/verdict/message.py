"""From an outcome to the message that says it: the last place where a wrong pass could slip through."""

from __future__ import annotations

import math
import time

import structlog
from pydantic import ValidationError

from inspectd.trigger import Trigger
from inspectd.verdict.decide import Decision, Origin, Outcome, no_result
from inspectd.verdict.schema import FrameInfo, Latency, NoResultReason, Verdict, timestamp

log = structlog.get_logger(__name__)


class VerdictMaker:
    """Makes the verdict messages of one boot. Used by one thread."""

    def __init__(self, boot_id: str) -> None:
        self._boot_id = boot_id
        self._withheld = _OncePerSecond()

    def make(
        self,
        outcome: Outcome,
        seq: int,
        decision: Decision | None = None,
        trigger: Trigger | None = None,
    ) -> Verdict:
        """The message of an outcome, or of another `decision` about it.

        The last defence: one that is not whole becomes no_result(engine_error).
        """
        decision = decision or outcome.decision
        try:
            return self._verdict(outcome, decision, seq, trigger)
        except ValidationError as err:
            if (count := self._withheld.count()) is not None:
                problem = err.errors(include_url=False, include_input=False)[0]
                log.error(  # noqa: TRY400 - the traceback would be pydantic's, the reason is `why`
                    "verdict_withheld",
                    camera=outcome.ticket.camera,
                    roi=outcome.ticket.roi,
                    verdict=decision.verdict,
                    why=problem["msg"],
                    count=count,
                )
            return self._verdict(outcome, no_result("engine_error"), seq, trigger)

    def without_frame(self, trigger: Trigger, roi: str, reason: NoResultReason, origin: Origin, seq: int) -> Verdict:
        """The answer to a trigger that no frame answers."""
        return Verdict(
            boot_id=self._boot_id,
            seq=seq,
            camera=trigger.camera,
            roi=roi,
            verdict="no_result",
            reason=reason,
            part_id=trigger.part_id,
            trigger_id=trigger.trigger_id,
            frame=None,
            captured_at=None,
            published_at=timestamp(time.time()),
            latency_ms=Latency(
                decode=0, queue=0, engine=0, total=0, trigger=_ms(time.monotonic() - trigger.accepted_at)
            ),
            model=origin.model,
            config=origin.config,
            recipe=origin.recipe,
        )

    def _verdict(self, outcome: Outcome, decision: Decision, seq: int, trigger: Trigger | None) -> Verdict:
        now = time.monotonic()
        return Verdict(
            boot_id=self._boot_id,
            seq=seq,
            camera=outcome.ticket.camera,
            roi=outcome.ticket.roi,
            verdict=decision.verdict,
            reason=decision.reason,
            label=decision.label,
            score=decision.score,
            scores=decision.scores,
            boxes=decision.boxes,
            part_id=None if trigger is None else trigger.part_id,
            trigger_id=None if trigger is None else trigger.trigger_id,
            frame=FrameInfo(index=outcome.index, pts=_finite(outcome.pts), clock=outcome.clock),
            captured_at=_timestamp_or_none(outcome.captured_at),
            published_at=timestamp(time.time()),
            latency_ms=Latency(
                decode=_ms(outcome.decode_s),
                queue=_ms(outcome.queue_s),
                engine=_ms(outcome.engine_s),
                total=_ms(now - outcome.arrival),
                trigger=None if trigger is None else _ms(now - trigger.accepted_at),
            ),
            model=outcome.origin.model,
            config=outcome.origin.config,
            recipe=outcome.origin.recipe,
            evidence=outcome.evidence,
        )


class _OncePerSecond:
    """Counts, and says the count at most once a second: trouble is logged, never per frame."""

    def __init__(self) -> None:
        self._count = 0
        self._next = -math.inf

    def count(self) -> int | None:
        """One more; how many since the last answer, or None when that was less than a second ago."""
        self._count += 1
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = now + 1.0
        count, self._count = self._count, 0
        return count


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _ms(seconds: float) -> float:
    # What is no duration counts as none: a latency never costs a verdict.
    return round(seconds * 1000, 3) if 0 <= seconds < math.inf else 0.0


def _timestamp_or_none(unix_s: float) -> str | None:
    try:
        return timestamp(unix_s)
    except ValueError:
        return None
