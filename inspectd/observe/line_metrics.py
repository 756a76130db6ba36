"""The metrics of the line-side contract: triggers, parts, challenge, journal, evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inspectd.observe.buckets import SECONDS_BUCKETS

TRIGGER_RESULTS = (
    "accepted",
    "busy",
    "duplicate",
    "bad_deadline",
    "not_triggered",
    "unknown_camera",
    "forbidden",
    "bad_request",
)
EVIDENCE_LOSSES = ("too_many", "queue", "disk", "outside", "encoder", "shutdown")


class LineMetrics:
    """All methods may be called from any thread. Label values are names from the configuration, codes and reasons.

    Only a camera that is triggered has `inspectd_triggers_pending`; alerts and dashboard tell it by that. A trigger
    that names no camera of the configuration counts for the camera "".
    """

    def __init__(self, registry: CollectorRegistry, cameras: Iterable[str]) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self._cameras = frozenset(cameras)
        self._triggers = counter("inspectd_triggers_total", "Triggers: accepted, or why refused", "camera", "result")
        self._pending = gauge("inspectd_triggers_pending", "Accepted triggers that are still owed a verdict", "camera")
        self._late = counter(
            "inspectd_late_results_total", "Results after their trigger's deadline: journaled, not published", "camera"
        )
        self._trigger_to_verdict = Histogram(
            "inspectd_trigger_to_verdict_seconds",
            "Time from the acceptance of a trigger to each of its verdicts",
            ["camera"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._parts = counter("inspectd_parts_total", "Parts counted in free run", "camera", "roi", "verdict")
        self._flickers = counter(
            "inspectd_part_flickers_total", "Times something was in view too briefly to be a part", "camera", "roi"
        )
        self._stuck = gauge(
            "inspectd_part_stuck", "1 while a part is in view for longer than max_s: none is counted", "camera", "roi"
        )
        self._challenge = counter("inspectd_challenges_total", "Golden-part challenges", "result")
        self._challenge_ok = gauge("inspectd_challenge_passed", "0 while the last challenge is a failed one, else 1")
        self._challenge_ok.set(1)
        self._journal_rows = counter("inspectd_journal_written_rows_total", "Rows written to the journal")
        self._journal_lost = counter("inspectd_journal_lost_rows_total", "Rows that could not be written, ever")
        self._journal_kept = gauge("inspectd_journal_rows", "Rows that the journal holds")
        self._journal_bytes = gauge("inspectd_journal_bytes", "Size of the journal on disk")
        self._journal_ok = gauge("inspectd_journal_ok", "0 while the journal cannot be written, else 1")
        self._journal_ok.set(1)
        self._journal_commit = Histogram(
            "inspectd_journal_commit_seconds",
            "Time that one commit of the journal took",
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._evidence = counter("inspectd_evidence_pictures_total", "Pictures kept as evidence")
        self._evidence_lost = counter("inspectd_evidence_lost_total", "Pictures that were not kept, and why", "reason")
        self._evidence_bytes = gauge("inspectd_evidence_bytes", "Size of the kept pictures on disk")
        for camera in self._cameras:
            self._late.labels(camera)
        for camera in ("", *self._cameras):
            for result in TRIGGER_RESULTS:
                self._triggers.labels(camera, result)
        for result in ("passed", "failed"):
            self._challenge.labels(result)
        for reason in EVIDENCE_LOSSES:
            self._evidence_lost.labels(reason)

    def trigger(self, camera: str, result: str) -> None:
        """A trigger was accepted, or refused with that code; `camera` is what it named."""
        self._triggers.labels(camera if camera in self._cameras else "", result).inc()

    def triggers_pending(self, camera: str, n: int) -> None:
        self._pending.labels(camera).set(n)

    def trigger_to_verdict(self, camera: str) -> Callable[[float], None]:
        """What to call with the seconds from a trigger's acceptance to its verdict. Bind it once."""
        return self._trigger_to_verdict.labels(camera).observe

    def late_result(self, camera: str) -> None:
        """A trigger's result came after its deadline: it was journaled and not published."""
        self._late.labels(camera).inc()

    def part(self, camera: str, roi: str, verdict: str) -> None:
        self._parts.labels(camera, roi, verdict).inc()

    def part_flicker(self, camera: str, roi: str) -> None:
        self._flickers.labels(camera, roi).inc()

    def part_stuck(self, camera: str, roi: str, stuck: bool) -> None:
        self._stuck.labels(camera, roi).set(stuck)

    def challenge(self, passed: bool) -> None:
        """A line-up was challenged, perhaps one that is not at work."""
        self._challenge.labels("passed" if passed else "failed").inc()

    def vouched(self, vouched: bool) -> None:
        """Whether the line-up at work passed its last challenge."""
        self._challenge_ok.set(vouched)

    def journal_committed(self, rows: int, seconds: float) -> None:
        self._journal_rows.inc(rows)
        self._journal_commit.observe(seconds)

    def journal_lost(self, rows: int) -> None:
        self._journal_lost.inc(rows)

    def journal_size(self, rows: int, size_bytes: int) -> None:
        self._journal_kept.set(rows)
        self._journal_bytes.set(size_bytes)

    def journal_ok(self, ok: bool) -> None:
        self._journal_ok.set(ok)

    def evidence_written(self) -> None:
        self._evidence.inc()

    def evidence_lost(self, reason: str) -> None:
        self._evidence_lost.labels(reason).inc()

    def evidence_size(self, size_bytes: int) -> None:
        self._evidence_bytes.set(size_bytes)
