"""The way of a frame, wired: camera -> crop into a slot -> batcher -> engine -> decision -> publisher."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from inspectd.config import CameraConfig, RoiConfig
from inspectd.engine.base import Scores
from inspectd.engine.batcher import Batcher, Crop
from inspectd.errors import Stopped
from inspectd.frame import Frame
from inspectd.model.preprocess import Preprocessor
from inspectd.observe.ledger import Ledger, Ticket
from inspectd.observe.metrics import Stage
from inspectd.trigger import Trigger, TriggerBoard
from inspectd.verdict.decide import Decider, Decision, Origin, Outcome, no_result
from inspectd.verdict.schema import NoResultReason

Observe = Callable[[float], None]
Publish = Callable[[Outcome], None]


class StageMetrics(Protocol):
    """The part of the metrics that the pipeline fills."""

    def stage(self, name: Stage) -> Observe: ...


@dataclass(frozen=True, slots=True)
class RoiLane:
    """What one ROI of one camera needs: its bundle's preprocessing and the batcher of its bundle's engine."""

    roi: RoiConfig
    origin: Origin
    batcher: Batcher
    preprocess: Preprocessor


class CropProducer:
    """A camera's sink: in the capture thread, turns each frame into one crop per ROI.

    One per camera, called by one thread at a time (the camera guards that). Every ROI's ticket is
    settled on every path: by the crop's verdict, by a `no_result` at once, or by a counted drop.

    With a `board` only frames are judged that a trigger waits for; the others are dropped("untriggered").
    """

    def __init__(
        self,
        camera: CameraConfig,
        lanes: Sequence[RoiLane],
        ledger: Ledger,
        publish: Publish,
        metrics: StageMetrics,
        *,
        board: TriggerBoard | None = None,
        keep_frames: bool = False,
    ) -> None:
        self._ledger = ledger
        self._publish = publish
        self._observe_crop = metrics.stage("crop")
        self._board = board
        self._keep_frames = keep_frames
        self.adopt(camera, lanes)

    def adopt(self, camera: CameraConfig, lanes: Sequence[RoiLane]) -> None:
        """Use other lanes from now on. Never while a frame is being delivered."""
        self._camera = camera
        self._lanes = tuple(lanes)
        self._rois = tuple(lane.roi.name for lane in lanes)
        self._max_age_s = camera.max_age_ms / 1000 if camera.live else math.inf

    def inspect(self, frame: Frame) -> None:
        """Crop every ROI into a slot and queue it; a recording waits here while its queue is full."""
        triggers = self._due(frame)
        if triggers is None:
            self.skip(frame, "untriggered")
            return
        index, tickets = self._ledger.captured(self._camera.name)
        done = 0
        try:
            for lane, ticket in zip(self._lanes, tickets, strict=True):
                self._crop(lane, frame, index, ticket, triggers)
                done += 1
        except Stopped:
            for lane, ticket in zip(self._lanes[done:], tickets[done:], strict=True):
                if triggers:
                    self._refuse(lane, frame, index, ticket, triggers, "not_ready")
                else:
                    self._ledger.dropped(ticket, "shutdown")
            raise
        except BaseException:
            for lane, ticket in zip(self._lanes[done:], tickets[done:], strict=True):
                self._refuse(lane, frame, index, ticket, triggers, "engine_error")
            raise

    def refuse(self, frame: Frame, reason: NoResultReason) -> None:
        """Publish `no_result(reason)` for every ROI; nothing is cropped."""
        # A backlog's frames may well be older than the trigger: such a frame answers none.
        triggers = self._due(frame) if reason != "stale" or self._board is None else None
        if triggers is None:
            self.skip(frame, "untriggered")
            return
        index, tickets = self._ledger.captured(self._camera.name)
        for lane, ticket in zip(self._lanes, tickets, strict=True):
            self._refuse(lane, frame, index, ticket, triggers, reason)

    def skip(self, frame: Frame, reason: str) -> None:
        """Count the frame as dropped on purpose."""
        _, tickets = self._ledger.captured(self._camera.name)
        for ticket in tickets:
            self._ledger.dropped(ticket, reason)

    def _due(self, frame: Frame) -> tuple[Trigger, ...] | None:
        """The triggers that this frame answers, none of them in free run; None when it is not wanted."""
        if self._board is None:
            return ()
        taken = self._board.take(captured_monotonic(frame, self._max_age_s))
        # What was accepted under another recipe is answered by nobody: its deadline says so.
        config = self._lanes[0].origin.config
        return tuple(trigger for trigger in taken if trigger.config == config) or None

    def _refuse(
        self,
        lane: RoiLane,
        frame: Frame,
        index: int,
        ticket: Ticket,
        triggers: tuple[Trigger, ...],
        reason: NoResultReason,
    ) -> None:
        self._publish(frame_outcome(frame, index, ticket, lane.origin, no_result(reason), triggers))

    def _crop(self, lane: RoiLane, frame: Frame, index: int, ticket: Ticket, triggers: tuple[Trigger, ...]) -> None:
        slot = lane.batcher.acquire(self._camera.name)
        started = time.monotonic()
        try:
            lane.preprocess(frame, lane.roi.area, slot.pixels)
        except BaseException:
            lane.batcher.give_back(slot)
            raise
        self._observe_crop(time.monotonic() - started)
        expires_at = frame.arrival - frame.waited_s + self._max_age_s
        if triggers:
            expires_at = min(expires_at, max(trigger.deadline_at for trigger in triggers))
        crop = Crop(
            ticket=ticket,
            slot=slot,
            area=lane.roi.area,
            index=index,
            pts=frame.pts,
            clock=frame.clock,
            captured_at=frame.captured_at,
            arrival=frame.arrival,
            waited_s=frame.waited_s,
            expires_at=expires_at,
            decode_s=frame.decode_s,
            triggers=triggers,
            frame=frame if self._keep_frames else None,
        )
        displaced = lane.batcher.put(crop)
        if displaced is not None:
            # Not silently: an uninspected frame is said to be one. The displaced crop may be of another
            # ROI of this camera with the same bundle, never of another camera.
            self._publish(crop_outcome(displaced, lane.origin, no_result("overload")))


class Judge:
    """An engine's sink: from scores to outcomes, for one bundle, in the engine's thread."""

    def __init__(self, origin: Origin, decider: Decider, publish: Publish, metrics: StageMetrics) -> None:
        self._origin = origin
        self._decider = decider
        self._publish = publish
        self._observe_queue = metrics.stage("queue")
        self._observe_engine = metrics.stage("engine")

    def scored(self, crop: Crop, scores: Scores, engine_s: float) -> None:
        outcome = crop_outcome(crop, self._origin, self._decider.decide(scores, crop.area))
        outcome.engine_s = engine_s
        outcome.queue_s = max(0.0, time.monotonic() - engine_s - crop.queued_at)
        self._observe_queue(outcome.queue_s)
        self._observe_engine(engine_s)
        self._deliver(crop, outcome)

    def expired(self, crop: Crop) -> None:
        self._deliver(crop, crop_outcome(crop, self._origin, no_result("stale")))

    def failed(self, crop: Crop) -> None:
        self._deliver(crop, crop_outcome(crop, self._origin, no_result("engine_error")))

    def _deliver(self, crop: Crop, outcome: Outcome) -> None:
        if crop.asked_by is None:
            self._publish(outcome)
        else:
            crop.asked_by(outcome)


def captured_monotonic(frame: Frame, max_age_s: float) -> float:
    """When the frame was captured at the latest, in monotonic seconds: what it shows is not newer than that.

    A driver's or an RTCP clock tells more than the arrival does, but it is believed only where it puts the capture
    within `max_age_s` before the arrival; a camera whose clock is wrong by more does not make every trigger fail.
    A frame is never taken for newer than its arrival, less what it had waited before that.
    """
    newest = frame.arrival - frame.waited_s
    if frame.clock == "arrival":
        return newest
    captured = time.monotonic() - (time.time() - frame.captured_at)
    return captured if frame.arrival - max_age_s <= captured < newest else newest


def frame_outcome(
    frame: Frame,
    index: int,
    ticket: Ticket,
    origin: Origin,
    decision: Decision,
    triggers: tuple[Trigger, ...] = (),
) -> Outcome:
    """The outcome of a frame that was never cropped."""
    return Outcome(
        ticket=ticket,
        decision=decision,
        origin=origin,
        index=index,
        pts=frame.pts,
        clock=frame.clock,
        captured_at=frame.captured_at,
        arrival=frame.arrival,
        waited_s=frame.waited_s,
        decode_s=frame.decode_s,
        triggers=triggers,
    )


def crop_outcome(crop: Crop, origin: Origin, decision: Decision) -> Outcome:
    """The outcome of a crop; queue and engine times are the caller's to fill."""
    return Outcome(
        ticket=crop.ticket,
        decision=decision,
        origin=origin,
        index=crop.index,
        pts=crop.pts,
        clock=crop.clock,
        captured_at=crop.captured_at,
        arrival=crop.arrival,
        waited_s=crop.waited_s,
        decode_s=crop.decode_s,
        triggers=crop.triggers,
        frame=crop.frame,
        area=crop.area,
    )
