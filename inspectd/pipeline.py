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
from inspectd.model.bundle import Bundle
from inspectd.model.preprocess import Preprocessor
from inspectd.observe.ledger import Ledger, Ticket
from inspectd.observe.metrics import Stage
from inspectd.verdict.decide import Decider, Decision, Outcome, no_result
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
    bundle: Bundle
    batcher: Batcher
    preprocess: Preprocessor


class CropProducer:
    """A camera's sink: in the capture thread, turns each frame into one crop per ROI.

    One per camera, called by one thread at a time (the camera guards that). Every ROI's ticket is
    settled on every path: by the crop's verdict, by a `no_result` at once, or by a counted drop.
    """

    def __init__(
        self, camera: CameraConfig, lanes: Sequence[RoiLane], ledger: Ledger, publish: Publish, metrics: StageMetrics
    ) -> None:
        self._camera = camera
        self._lanes = tuple(lanes)
        self._ledger = ledger
        self._publish = publish
        self._observe_crop = metrics.stage("crop")
        self._max_age_s = camera.max_age_ms / 1000 if camera.live else math.inf

    def inspect(self, frame: Frame) -> None:
        """Crop every ROI into a slot and queue it; a recording waits here while its queue is full."""
        index, tickets = self._ledger.captured(self._camera.name)
        done = 0
        try:
            for lane, ticket in zip(self._lanes, tickets, strict=True):
                self._crop(lane, frame, index, ticket)
                done += 1
        except Stopped:
            for ticket in tickets[done:]:
                self._ledger.dropped(ticket, "shutdown")
            raise
        except BaseException:
            for lane, ticket in zip(self._lanes[done:], tickets[done:], strict=True):
                self._publish(frame_outcome(frame, index, ticket, lane.bundle, no_result("engine_error")))
            raise

    def refuse(self, frame: Frame, reason: NoResultReason) -> None:
        """Publish `no_result(reason)` for every ROI; nothing is cropped."""
        index, tickets = self._ledger.captured(self._camera.name)
        for lane, ticket in zip(self._lanes, tickets, strict=True):
            self._publish(frame_outcome(frame, index, ticket, lane.bundle, no_result(reason)))

    def skip(self, frame: Frame, reason: str) -> None:
        """Count the frame as dropped on purpose."""
        _, tickets = self._ledger.captured(self._camera.name)
        for ticket in tickets:
            self._ledger.dropped(ticket, reason)

    def _crop(self, lane: RoiLane, frame: Frame, index: int, ticket: Ticket) -> None:
        slot = lane.batcher.acquire(self._camera.name)
        started = time.monotonic()
        try:
            lane.preprocess(frame, lane.roi.area, slot.pixels)
        except BaseException:
            lane.batcher.give_back(slot)
            raise
        self._observe_crop(time.monotonic() - started)
        crop = Crop(
            ticket=ticket,
            slot=slot,
            area=lane.roi.area,
            index=index,
            pts=frame.pts,
            clock=frame.clock,
            captured_at=frame.captured_at,
            arrival=frame.arrival,
            expires_at=frame.arrival + self._max_age_s,
            decode_s=frame.decode_s,
        )
        displaced = lane.batcher.put(crop)
        if displaced is not None:
            # Not silently: an uninspected frame is said to be one. The displaced crop may be of another
            # ROI of this camera with the same bundle, never of another camera.
            self._publish(crop_outcome(displaced, lane.bundle, no_result("overload")))


class Judge:
    """An engine's sink: from scores to outcomes, for one bundle, in the engine's thread."""

    def __init__(self, bundle: Bundle, decider: Decider, publish: Publish, metrics: StageMetrics) -> None:
        self._bundle = bundle
        self._decider = decider
        self._publish = publish
        self._observe_queue = metrics.stage("queue")
        self._observe_engine = metrics.stage("engine")

    def scored(self, crop: Crop, scores: Scores, engine_s: float) -> None:
        outcome = crop_outcome(crop, self._bundle, self._decider.decide(scores, crop.area))
        outcome.engine_s = engine_s
        outcome.queue_s = max(0.0, time.monotonic() - engine_s - crop.queued_at)
        self._observe_queue(outcome.queue_s)
        self._observe_engine(engine_s)
        self._publish(outcome)

    def expired(self, crop: Crop) -> None:
        self._publish(crop_outcome(crop, self._bundle, no_result("stale")))

    def failed(self, crop: Crop) -> None:
        self._publish(crop_outcome(crop, self._bundle, no_result("engine_error")))


def frame_outcome(frame: Frame, index: int, ticket: Ticket, bundle: Bundle, decision: Decision) -> Outcome:
    """The outcome of a frame that was never cropped."""
    return Outcome(
        ticket=ticket,
        decision=decision,
        model=bundle.short_hash,
        index=index,
        pts=frame.pts,
        clock=frame.clock,
        captured_at=frame.captured_at,
        arrival=frame.arrival,
        decode_s=frame.decode_s,
    )


def crop_outcome(crop: Crop, bundle: Bundle, decision: Decision) -> Outcome:
    """The outcome of a crop; queue and engine times are the caller's to fill."""
    return Outcome(
        ticket=crop.ticket,
        decision=decision,
        model=bundle.short_hash,
        index=crop.index,
        pts=crop.pts,
        clock=crop.clock,
        captured_at=crop.captured_at,
        arrival=crop.arrival,
        decode_s=crop.decode_s,
    )
