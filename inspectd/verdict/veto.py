"""What must not be told as it was decided: asked right before a message is sent, whatever held it up on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from inspectd.config import CameraConfig
from inspectd.trigger import Trigger
from inspectd.verdict.decide import Outcome
from inspectd.verdict.schema import NoResultReason, Part, Verdict


class Veto:
    """Reasons for `no_result` that outweigh a decision at the moment at which it would be told; None: tell it as it is.

    While `vouched()` is false nothing is told but `not_ready`; what has become older than its camera's `max_age_ms` is
    `stale`, this process standing still included; with `required` nothing passes that is not on disk.
    """

    def __init__(self, cameras: Iterable[CameraConfig], vouched: Callable[[], bool], *, required: bool) -> None:
        self._vouched = vouched
        self._required = required
        self.use(cameras)

    def use(self, cameras: Iterable[CameraConfig]) -> None:
        """Another line-up's ages count. A recording is as old as it is."""
        self._max_age_s = {camera.name: camera.max_age_ms / 1000 for camera in cameras if camera.live}

    def on(self, outcome: Outcome) -> NoResultReason | None:
        """Against an outcome that is told now."""
        if not self._vouched():
            return "not_ready"
        said = outcome.decision
        if said.verdict == "no_result" and said.reason is not None:
            return None  # that is as true later
        age_s = time.monotonic() - outcome.arrival + outcome.waited_s
        return "stale" if age_s >= self._max_age_s.get(outcome.ticket.camera, math.inf) else None

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

    def at_last_on_part(self, staged: Part, *, recorded: bool) -> NoResultReason | None:
        """Against a part that is written down already."""
        return self._unrecorded(staged, recorded)

    def _unrecorded(self, staged: Verdict | Part, recorded: bool) -> NoResultReason | None:
        return "not_ready" if self._required and staged.verdict == "pass" and not recorded else None
