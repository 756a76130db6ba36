"""Parts in free run: from the verdicts of a region to one message per part."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

from inspectd.config import PartConfig
from inspectd.verdict.parts import PartCounter, PartResult
from inspectd.verdict.schema import NoResultReason, Part, Verdict, VerdictKind, timestamp


@dataclass(frozen=True, slots=True)
class RoiParts:
    """How parts are told apart at one ROI, and which labels of its bundle mean that there is none."""

    config: PartConfig
    empty_labels: frozenset[str]


class PartMetrics(Protocol):
    """The part of the metrics that is filled here."""

    def part(self, camera: str, roi: str, verdict: VerdictKind) -> None: ...
    def part_flicker(self, camera: str, roi: str) -> None: ...
    def part_stuck(self, camera: str, roi: str, stuck: bool) -> None: ...


@dataclass(slots=True)
class _Counter:
    parts: PartCounter
    flickers: int = 0  # as told to the metrics
    stuck: bool = False


class PartStream:
    """The part counters of all ROIs that have one. Owned by the thread "zeromq".

    `tell(make, camera, roi, known_at)` publishes what `make(seq)` gives, and counts it by what was published.
    `known_at` is when the frame was taken, in monotonic seconds, that told that the part had gone.
    """

    def __init__(
        self,
        boot_id: str,
        tell: Callable[[Callable[[int], Part], str, str, float], None],
        metrics: PartMetrics,
    ) -> None:
        self._boot_id = boot_id
        self._tell = tell
        self._metrics = metrics
        self._counters: dict[tuple[str, str], _Counter] = {}

    def use(self, rois: Mapping[tuple[str, str], RoiParts]) -> None:
        """Begin anew with these (camera, ROI). `interrupt` first: open parts are forgotten here.

        Frames that arrived before this call and are told later belong to no part.
        """
        self._counters = {key: _Counter(PartCounter(roi.config, roi.empty_labels)) for key, roi in rois.items()}
        self.interrupt("not_ready")

    def verdict(self, verdict: Verdict, arrival: float, taken_at: float) -> None:
        """A verdict was published. Of its frame: when it arrived, and was taken at the latest, in monotonic seconds."""
        key = (verdict.camera, verdict.roi)
        counter = self._counters.get(key)
        if counter is not None and verdict.frame is not None:
            shown = arrival if verdict.frame.pts is None else verdict.frame.pts  # a stream's own time is even
            self._publish(key, counter.parts.frame(verdict, arrival, shown), taken_at)

    def due(self, now: float) -> None:
        """To be called now and then: closes what lasts too long."""
        for key, counter in self._counters.items():
            self._publish(key, counter.parts.due(now), now)

    def interrupt(self, reason: NoResultReason, camera: str | None = None) -> None:
        """What is in view now cannot be judged to its end: at one camera, or at all of them."""
        for key, counter in self._counters.items():
            if camera in (None, key[0]):
                now = time.monotonic()
                self._publish(key, counter.parts.interrupt(reason, now), now)

    def vouched(self, since: float) -> None:
        """Somebody vouches for what is judged, again; a part that was in view before does not pass by it."""
        for counter in self._counters.values():
            counter.parts.vouched(since)

    def _publish(self, key: tuple[str, str], result: PartResult | None, known_at: float) -> None:
        self._measure(key)
        if result is None:
            return

        def make(seq: int) -> Part:
            return Part(boot_id=self._boot_id, seq=seq, published_at=timestamp(time.time()), **asdict(result))

        self._tell(make, *key, known_at)

    def _measure(self, key: tuple[str, str]) -> None:
        counter = self._counters[key]
        while counter.flickers < counter.parts.flickers:
            counter.flickers += 1
            self._metrics.part_flicker(*key)
        if counter.stuck != counter.parts.stuck:
            counter.stuck = counter.parts.stuck
            self._metrics.part_stuck(*key, stuck=counter.stuck)
