"""What must not be told as it was decided: asked right before a message is sent, whatever held it up on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping

from inspectd.config import CameraConfig
from inspectd.trigger import Trigger
from inspectd.verdict.decide import Origin, Outcome
from inspectd.verdict.schema import NoResultReason, Part, Verdict

Origins = Mapping[str, Mapping[str, Origin]]
"""camera -> ROI -> by what it is judged"""


class Veto:
    """Reasons for `no_result` that outweigh a decision at the moment at which it would be told; None: tell it as it is.

    While `vouched()` is false nothing is told but `not_ready`, and so is what another line-up judged than the one in
    force; what has become older than its camera's `max_age_ms` is `stale`, this process standing still included; with
    `required` nothing passes that is not on disk.
    """

    def __init__(
        self, cameras: Iterable[CameraConfig], origins: Origins, vouched: Callable[[], bool], *, required: bool
    ) -> None:
        self._vouched = vouched
        self._required = required
        self.use(cameras, origins)

    def use(self, cameras: Iterable[CameraConfig], origins: Origins) -> None:
        """Another line-up is in force, and its ages count. A recording is as old as it is."""
        self._max_age_s = {camera.name: camera.max_age_ms / 1000 for camera in cameras if camera.live}
        self._origins = origins

    def on(self, outcome: Outcome) -> NoResultReason | None:
        """Against an outcome that is told now."""
        if not self._vouched():
            return "not_ready"
        said = outcome.decision
        if said.verdict == "no_result" and said.reason is not None:
            return None  # that is as true later
        if self._origins.get(outcome.ticket.camera, {}).get(outcome.ticket.roi) is not outcome.origin:
            return "not_ready"  # there is one object per line-up, also where two are equal
        return self._stale(outcome.ticket.camera, outcome.arrival - outcome.waited_s)

    def at_last(
        self, staged: Verdict, outcome: Outcome, trigger: Trigger | None, *, recorded: bool
    ) -> NoResultReason | None:
        """Against a verdict that is written down already: its trigger's time, or what vouched for it, may be over.

        It may have waited for the disk; and a thread may lose its processor between any two of its steps.
        """
        if staged.verdict == "no_result" and staged.reason is not None:
            return None
        if trigger is not None and time.monotonic() >= trigger.deadline_at:
            return "deadline"
        return self._unrecorded(staged, recorded) or self.on(outcome)

    def at_last_on_part(self, staged: Part, known_at: float, *, recorded: bool) -> NoResultReason | None:
        """Against a part that is written down already; `known_at` is when the frame was taken that ended it."""
        if staged.verdict == "no_result":
            return None
        if not self._vouched():
            return "not_ready"
        return self._unrecorded(staged, recorded) or self._stale(staged.camera, known_at)

    def _stale(self, camera: str, taken_at: float) -> NoResultReason | None:
        return "stale" if time.monotonic() - taken_at >= self._max_age_s.get(camera, math.inf) else None

    def _unrecorded(self, staged: Verdict | Part, recorded: bool) -> NoResultReason | None:
        return "not_ready" if self._required and staged.verdict == "pass" and not recorded else None
