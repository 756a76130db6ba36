"""Free run with an `empty` class: which frames show one part, so that each part gets one verdict.

A frame shows *something* (pass, fail, or uncertain about anything but an empty station), an *empty* station,
is *unclear* (uncertain, and most like an empty station), or *unseen* (never judged: corrupt, overload, ...).

The station counts as empty after `leave_frames` empty frames that nothing interrupts. What lies between two
such moments is one stretch; it is a part if something was in view for `enter_frames` frames that no empty one
interrupts, else it was flicker, which is counted. Unclear and unseen frames interrupt neither. So one rule
serves both edges: shorter gaps do not split a part, whether they come first or last in it, and a defect that
was seen right before or after such a gap belongs to the part.

In doubt against a pass, and against silence:
- Unclear and unseen frames next to a part, up to the nearest empty one, may have shown it: they count as its
  frames, and more than half of all its frames must pass. None of them may be not_ready: what is not vouched for
  does not pass by what it said a moment ago.
- `leave_frames` frames in a row, none of which shows anything, may hide where one part ends and the next begins:
  what has them within it does not pass. Frames that are missing (`missing_frames.py`: by the time between two
  judged ones) count among them.
- A part that was in view before the station was seen empty (after the start, after an interruption) cannot
  pass: nobody saw all of it.
- Unseen and missing frames may be what a run lacks to `enter_frames`: such a stretch is told, not taken for flicker,
  but does not pass.
- Where `leave_frames` are missing between two judged frames, what is seen after it is nobody's continuation: there
  ends a part, and what was unseen in between counts with what follows.
- A part that was in view while nobody vouched for what is judged does not pass, also if no frame was told just then.
- A part longer than `max_s` is told once, as no_result unless it fails, and nothing begins before the station
  was empty again. Flicker that lasted so long ends without a word; what lies behind it stays, for the next part, which
  cannot pass before the station was empty again.

Order. The judged frames of one region come in the order of their index: they wait in one queue for one engine.
A frame that is refused or displaced does not wait, so an unseen frame comes early, seldom late. As it neither
begins nor ends anything, it is put aside until a judged frame with a higher index comes, and then counted where
its own index belongs; no judged frame ever waits for another. One that is still missing when its part ends is
counted nowhere.
"""

from __future__ import annotations

import heapq
import math
from typing import Literal

from inspectd.config import PartConfig
from inspectd.verdict.missing_frames import JITTER_S, MissingFrames
from inspectd.verdict.schema import FrameInfo, NoResultReason, Verdict
from inspectd.verdict.vote import Aside, PartResult, Tally

__all__ = ["PartCounter", "PartResult"]

EARLY = 1024
"""Unseen frames put aside; the lowest index gives way and is counted at once. More than can wait for an engine:
a camera's queue and the batches in flight."""

Sight = Literal["something", "empty", "unclear", "unseen"]


class PartCounter:
    """The parts of one region. No clock, no thread: told every published verdict in the order of publication.

    `arrival` and `now` are monotonic seconds. A result is the part that has just ended, to be published; a call
    ends at most one.
    """

    def __init__(self, config: PartConfig, empty_labels: frozenset[str]) -> None:
        self.flickers = 0
        """Stretches too short for a part, so far."""
        self.stuck = False
        """A part was in view for longer than `max_s`, and the station was not empty since."""
        self._config = config
        self._empty_labels = empty_labels
        self._tally: Tally | None = None  # the stretch that something was seen in; None before
        self._aside = Aside()  # since the last empty frame; whatever shows something next makes it part of a stretch
        self._empties = 0  # in a row that nothing interrupts
        self._gap_from = -1  # index of the first of them, within a stretch
        self._empty_at = -1  # index of the last empty frame
        self._begins_after = -1  # index of the last one that counts with nothing that is seen from then on
        self._unwitnessed: NoResultReason | None = "not_ready"  # why nobody saw the station empty before this stretch
        self._valid_from = -math.inf  # arrival; older frames are from before the last interruption
        self._vouched_since = -math.inf  # arrival; a part that was in view before cannot pass
        self._early: list[tuple[int, NoResultReason]] = []  # a heap by index
        self._newest = -1  # index of the last judged frame
        self._missing = MissingFrames()

    def frame(self, verdict: Verdict, arrival: float, shown: float) -> PartResult | None:
        """A published verdict of this region, of a frame that arrived then.

        `shown` is when the scene was as it shows, in seconds of an even clock.
        """
        if verdict.frame is None or arrival < self._valid_from:
            return None
        ended = self.due(arrival)  # nothing is open after it, so that at most one part ends in this call
        index, sight = verdict.frame.index, self._sight(verdict)
        if sight == "unseen" and verdict.reason is not None:
            self._put_aside(index, verdict.reason)
            return ended
        least_s = JITTER_S if verdict.frame.pts is None else 0.0
        missing = self._missing.before(index, shown, least_s=least_s)
        if missing >= self._config.leave_frames:
            self._count_early(self._newest)
            ended = self._break_off("camera_down") or ended
        self._count_early(index)
        if missing:
            self._beside(index).missing += missing
            self._nothing_shown(index, missing)
        self._newest = index
        if sight == "something":
            self._something(verdict, verdict.frame, arrival)
        elif sight == "unclear":
            self._beside(index).uncertain += 1
            self._nothing_shown(index)
        else:
            ended = self._empty(index) or ended
        return ended

    def due(self, now: float) -> PartResult | None:
        """The part that has been in view for longer than `max_s`: something is stuck."""
        if self._tally is None or now - self._tally.since <= self._config.max_s:
            return None
        self._count_early(self._newest)
        if self._empties and not self._tally.is_part:
            self._begins_after = self._empty_at
            self._unwitnessed = "deadline"
            return self._end(None, in_doubt=False)
        self._count_early()
        self.stuck = True
        return self._end("deadline", in_doubt=True)

    def vouched(self, since: float) -> None:
        """Somebody vouches for what is judged, again; a part that was in view before does not pass by it."""
        self._vouched_since = since

    def interrupt(self, reason: NoResultReason, now: float = -math.inf) -> PartResult | None:
        """What is seen from now on does not continue what was seen: camera lost, recipe switched, shutdown.

        Frames that arrived before `now` and are told later belong to what was interrupted; they count nowhere.
        Without `now` such frames may be taken for a part of their own, which cannot pass.
        """
        self._count_early()
        self._valid_from = now
        return self._break_off(reason)

    def _sight(self, verdict: Verdict) -> Sight:
        if verdict.verdict != "no_result":
            return "something"
        if verdict.reason is None:
            return "empty"
        if verdict.reason != "uncertain":
            return "unseen"
        return "unclear" if verdict.label is None or verdict.label in self._empty_labels else "something"

    def _something(self, verdict: Verdict, frame: FrameInfo, arrival: float) -> None:
        self._empties = 0
        if self.stuck:
            return
        if self._tally is None:
            self._tally = Tally(self._config, arrival)
        self._tally.aside.add(self._aside)
        self._aside = Aside()
        self._tally.judged(verdict, frame)

    def _empty(self, index: int) -> PartResult | None:
        self._empties += 1
        if self._tally is None:
            self._begins_after = index
        else:
            if self._empties == 1:
                self._gap_from = index
                self._tally.interrupted()
            self._tally.gap.add(self._aside)
            self._tally.gap.empty += 1
            self._nothing_shown(index)
        self._aside = Aside()
        self._empty_at = index
        if self._empties < self._config.leave_frames:
            return None
        result = self._end(self._unwitnessed, in_doubt=False)
        self._begins_after = index
        self._unwitnessed = None
        self.stuck = False
        return result

    def _put_aside(self, index: int, reason: NoResultReason) -> None:
        heapq.heappush(self._early, (index, reason))
        if len(self._early) > EARLY:
            self._unseen(*heapq.heappop(self._early))

    def _count_early(self, before: float = math.inf) -> None:
        while self._early and self._early[0][0] < before:
            self._unseen(*heapq.heappop(self._early))

    def _unseen(self, index: int, reason: NoResultReason) -> None:
        self._beside(index).unseen[reason] += 1
        self._nothing_shown(index)

    def _nothing_shown(self, index: int, frames: int = 1) -> None:
        if self._tally is not None:
            self._tally.nothing_shown(index, frames)

    def _beside(self, index: int) -> Aside:
        """Where a frame that does not vote counts: with the part, or with what may become part of one."""
        if index < self._begins_after:
            return Aside()  # the station was seen empty after it: nobody's
        if self._tally is not None and (not self._empties or index < self._gap_from):
            return self._tally.aside
        if self._tally is not None and index < self._empty_at:
            return self._tally.gap
        return self._aside

    def _break_off(self, reason: NoResultReason) -> PartResult | None:
        """Nothing that is seen after the newest judged frame continues what was seen up to it."""
        result = self._end(reason, in_doubt=not self._empties)
        self._aside = Aside()
        self._begins_after = self._newest
        self._empties = 0
        self.stuck = False
        self._unwitnessed = reason
        return result

    def _end(self, cut_short: NoResultReason | None, *, in_doubt: bool) -> PartResult | None:
        """End the stretch, if there is one; `in_doubt` it was about to become a part."""
        tally, self._tally = self._tally, None
        if tally is None:
            return None
        if tally.is_part or in_doubt:
            return tally.result(cut_short or ("not_ready" if tally.since < self._vouched_since else None))
        self.flickers += 1
        return None
