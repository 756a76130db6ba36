"""Triggers: every accepted one ends in exactly one verdict per ROI by its deadline.

All of it happens in the thread "zeromq", which accepts triggers and sends verdicts; so whether a ROI of a trigger
still is owed an answer is decided in one place, one after the other, and needs no lock. Only the boards, on which
triggers wait for their frame, are shared with the capture threads.

    request -> accept() -> board -> frame -> engine -> outcome -> settle() -> verdict
                  └── its time is over: overdue() ─────────────────────────> no_result(deadline)
                  └── camera lost, recipe switched: abandon() ─────────────> no_result(camera_down, not_ready)

Full means refused: a camera has at most as many open triggers as its queue holds frames.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Literal

from inspectd.config import CameraConfig
from inspectd.trigger import Trigger, TriggerBoard
from inspectd.verdict.control_schema import MAX_DEADLINE_MS, MIN_DEADLINE_MS, ControlError, TriggerRequest

GUARD_S = 0.004
"""So long before its deadline a trigger is answered `no_result(deadline)`: sending takes time as well."""
REMEMBERED_S = 10.0
"""A part_id is refused as a duplicate until so long after its answer: a client that lost the reply asks again."""

Settled = Literal["answered", "overdue", "late"]
Owed = tuple[Trigger, str]
"""A trigger and one of its ROIs."""


class TriggerDesk:
    """The open triggers of all cameras that are triggered by command."""

    def __init__(
        self, boot_id: str, cameras: Sequence[CameraConfig], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.boards: Mapping[str, TriggerBoard] = {
            camera.name: TriggerBoard() for camera in cameras if camera.triggered
        }
        self._cameras = {camera.name: camera for camera in cameras}
        self._boot = boot_id[:8]
        self.guard_s = GUARD_S
        self._clock = clock
        self._numbers = count(1)
        self._open: dict[Trigger, set[str]] = {}  # the ROIs that still are owed an answer
        self._pending: Counter[str] = Counter()  # open triggers by camera
        self._deadlines: list[tuple[float, int, Trigger]] = []  # a heap; answered ones are left until their time
        self._parts: dict[tuple[str, str], str] = {}  # (camera, part_id) -> trigger_id, open or remembered
        self._forget: deque[tuple[float, tuple[str, str]]] = deque()

    def use(self, cameras: Sequence[CameraConfig]) -> None:
        """Other delays and queues from now on; the cameras' names and their mode stay."""
        self._cameras = {camera.name: camera for camera in cameras}

    def accept(self, request: TriggerRequest, rois: Sequence[str], config: str) -> Trigger:
        """Take a trigger. It is not on its board yet: `post` it once its acceptance may take effect.

        Raises:
            ControlError: it is refused; nothing is owed.
        """
        camera = self._cameras.get(request.camera)
        if camera is None:
            raise ControlError("unknown_camera", f"no camera {request.camera!r}; known: {', '.join(self._cameras)}")
        if request.camera not in self.boards:
            raise ControlError("not_triggered", f"camera {camera.name} runs free; it needs trigger = 'command'")
        if not MIN_DEADLINE_MS <= request.deadline_ms <= MAX_DEADLINE_MS:
            raise ControlError(
                "bad_deadline",
                f"deadline_ms is {request.deadline_ms:g}, expected {MIN_DEADLINE_MS} to {MAX_DEADLINE_MS}",
            )
        if request.deadline_ms <= camera.trigger_delay_ms:
            raise ControlError("bad_deadline", f"deadline_ms is within trigger_delay_ms ({camera.trigger_delay_ms:g})")
        now = self._clock()
        self._forget_old(now)
        part = None if request.part_id is None else (camera.name, request.part_id)
        if part is not None and (earlier := self._parts.get(part)) is not None:
            raise ControlError("duplicate", "this part_id was triggered already", trigger_id=earlier)
        if self.busy(camera.name):
            raise ControlError("busy", f"{self._pending[camera.name]} triggers are open, as many as queue_size allows")
        number = next(self._numbers)
        trigger = Trigger(
            trigger_id=f"{self._boot}-{number}",
            camera=camera.name,
            part_id=request.part_id,
            rois=tuple(rois),
            config=config,
            accepted_at=now,
            due_at=now + camera.trigger_delay_ms / 1000,
            deadline_at=now + request.deadline_ms / 1000,
        )
        self._open[trigger] = set(rois)
        self._pending[camera.name] += 1
        heapq.heappush(self._deadlines, (trigger.deadline_at, number, trigger))
        if part is not None:
            self._parts[part] = trigger.trigger_id
        return trigger

    def post(self, trigger: Trigger) -> None:
        """Let the next frame that is due answer it."""
        self.boards[trigger.camera].post(trigger)

    def settle(self, trigger: Trigger, roi: str) -> Settled:
        """A result is there: whether it is the answer, or came too late (`overdue`: nothing was said before)."""
        rois = self._open.get(trigger)
        if rois is None or roi not in rois:
            return "late"
        self._close(trigger, roi)
        return "overdue" if self._clock() >= trigger.deadline_at else "answered"

    def overdue(self) -> list[Owed]:
        """What must be answered now, its time is over. It counts as answered from here on."""
        until = self._clock() + self.guard_s
        owed: list[Owed] = []
        while self._deadlines and self._deadlines[0][0] <= until:
            trigger = heapq.heappop(self._deadlines)[2]
            if trigger in self._open:
                self.boards[trigger.camera].withdraw(trigger)
                owed += self.close(trigger)
        return owed

    def abandon(self, camera: str) -> list[Owed]:
        """What no frame of this camera will answer any more. It counts as answered from here on."""
        board = self.boards.get(camera)
        if board is None:
            return []
        return [owed for trigger in board.withdraw_all() for owed in self.close(trigger)]

    def abandon_everything(self) -> list[Owed]:
        """At the very end: whatever is open, also what a frame was taken for."""
        return [owed for trigger in list(self._open) for owed in self.close(trigger)]

    def pending(self, camera: str) -> int:
        """Open triggers of a camera."""
        return self._pending[camera]

    def busy(self, camera: str) -> bool:
        """Whether the next trigger of this camera would be refused."""
        return self._pending[camera] >= self._cameras[camera].queue_size

    def wait_s(self) -> float:
        """How long until `overdue` has something to say, at the earliest; infinite when nothing is open."""
        while self._deadlines and self._deadlines[0][2] not in self._open:
            heapq.heappop(self._deadlines)
        return max(0.0, self._deadlines[0][0] - self.guard_s - self._clock()) if self._deadlines else float("inf")

    def close(self, trigger: Trigger) -> list[Owed]:
        """Every ROI of it that still is owed an answer, which counts as given from here on."""
        rois = [roi for roi in trigger.rois if roi in self._open.get(trigger, ())]
        for roi in rois:
            self._close(trigger, roi)
        return [(trigger, roi) for roi in rois]

    def _close(self, trigger: Trigger, roi: str) -> None:
        rois = self._open[trigger]
        rois.remove(roi)
        if not rois:
            del self._open[trigger]
            self._pending[trigger.camera] -= 1
            if trigger.part_id is not None:
                self._forget.append((self._clock() + REMEMBERED_S, (trigger.camera, trigger.part_id)))

    def _forget_old(self, now: float) -> None:
        while self._forget and self._forget[0][0] <= now:
            self._parts.pop(self._forget.popleft()[1], None)
