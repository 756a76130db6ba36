"""What subscribers know of each camera: its newest state, told whenever it is another one."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol, get_args

from inspectd.errors import CaptureReason
from inspectd.verdict.schema import CameraStatus, State, status_topic, timestamp
from inspectd.verdict.stream import Stream
from inspectd.verdict.triggers import TriggerDesk

_CAPTURE_REASONS = frozenset(get_args(CaptureReason))


class StatusMetrics(Protocol):
    """The part of the metrics that is filled here."""

    def triggers_pending(self, camera: str, n: int) -> None: ...


class CameraStatuses:
    """The states of all cameras, `starting` at first. Owned by the thread "zeromq".

    A camera that is ready is told as `busy` while it owes an answer to as many triggers as it takes.
    """

    def __init__(self, boot_id: str, cameras: Iterable[str], desk: TriggerDesk, metrics: StatusMetrics) -> None:
        self._boot_id = boot_id
        self._desk = desk
        self._metrics = metrics
        self._stream: Stream
        self._states: dict[str, tuple[State, str | None]] = dict.fromkeys(cameras, ("starting", None))
        self._told: dict[str, tuple[State, str | None]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._states)

    def begin(self, stream: Stream) -> None:
        """The stream is there: tell of every camera."""
        self._stream = stream
        for camera in self._states:
            self.tell(camera)

    def change(self, camera: str, state: State, reason: str | None) -> None:
        """A camera's new state, told if it is one."""
        self._states[camera] = (state, reason)
        self.tell(camera)

    def is_down(self, camera: str) -> bool:
        """No frame can be had; a camera whose frames are refused answers with the reason of that."""
        state, reason = self._states[camera]
        return state == "starting" or (state == "fault" and reason in _CAPTURE_REASONS)

    def tell(self, camera: str) -> None:
        """Tell of a camera, unless it is as it was told last; its triggers may have made it busy, or no longer so."""
        state, reason = self._states[camera]
        if camera in self._desk.boards:
            self._metrics.triggers_pending(camera, self._desk.pending(camera))
            if state == "ready" and self._desk.busy(camera):
                state = "busy"
        if self._told.get(camera) == (state, reason):
            return
        self._told[camera] = (state, reason)

        def make(seq: int) -> CameraStatus:
            return CameraStatus(
                boot_id=self._boot_id,
                seq=seq,
                camera=camera,
                state=state,
                reason=reason,
                published_at=timestamp(time.time()),
            )

        self._stream.tell(status_topic(camera), make)
