"""What the line is told: verdicts, answers to triggers, parts, camera states, heartbeats.

All of it belongs to the thread "zeromq": one thing after the other, in the order in which it was handed over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from inspectd.config import CameraConfig
from inspectd.frame import Box, Frame
from inspectd.observe.ledger import Ledger, Ticket
from inspectd.trigger import Trigger, TriggerBoard
from inspectd.verdict.camera_status import CameraStatuses, StatusMetrics
from inspectd.verdict.control_schema import ControlError, ErrorCode, TriggerAccepted, TriggerRequest
from inspectd.verdict.decide import Origin, Outcome, no_result
from inspectd.verdict.message import VerdictMaker
from inspectd.verdict.part_stream import PartMetrics, PartStream, RoiParts
from inspectd.verdict.schema import (
    Heartbeat,
    NoResultReason,
    Part,
    State,
    Verdict,
    VerdictKind,
    part_topic,
    timestamp,
    verdict_topic,
)
from inspectd.verdict.stream import MessageJournal, Stream
from inspectd.verdict.triggers import GUARD_S, TriggerDesk
from inspectd.verdict.veto import Origins, Veto

Observe = Callable[[float], None]


class TellerMetrics(PartMetrics, StatusMetrics, Protocol):
    """The part of the metrics that is filled here. Seconds."""

    def stage(self, name: Literal["publish"]) -> Observe: ...
    def capture_to_verdict(self, camera: str) -> Observe: ...
    def trigger_to_verdict(self, camera: str) -> Observe: ...
    def trigger(self, camera: str, result: Literal["accepted"] | ErrorCode) -> None: ...
    def late_result(self, camera: str) -> None: ...


class Evidence(Protocol):
    """Keeps pictures; never blocks."""

    def keep(
        self,
        camera: str,
        roi: str,
        kind: VerdictKind,
        index: int,
        captured_at: float,
        frame: Frame,
        area: Box,
    ) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Roster:
    """What is inspected: replaced whole when a recipe, a model or the configuration is."""

    config: str
    recipe: str | None
    cameras: tuple[CameraConfig, ...]
    origins: Origins
    parts: Mapping[tuple[str, str], RoiParts]

    def rois(self, camera: str) -> tuple[str, ...]:
        return tuple(self.origins.get(camera, ()))


@dataclass(frozen=True, slots=True)
class Waiting:
    """An outcome that was handed over, at `since` (monotonic seconds)."""

    outcome: Outcome
    since: float


class Teller:
    """Decides what is said, and has the stream say it.

    This is the one place where every verdict passes, so the veto is asked here, right before it is sent.
    """

    def __init__(
        self,
        boot_id: str,
        roster: Roster,
        ledger: Ledger,
        metrics: TellerMetrics,
        vouched: Callable[[], bool],
        journal: MessageJournal | None,
        evidence: Evidence | None,
        *,
        required: bool = False,
    ) -> None:
        self._boot_id = boot_id
        self._roster = roster
        self._ledger = ledger
        self._metrics = metrics
        self._veto = Veto(roster.cameras, roster.origins, vouched, required=required)
        self._journal = journal
        self._evidence = evidence
        self._observe_publish = metrics.stage("publish")
        names = [camera.name for camera in roster.cameras]
        self._observe_total = {camera: metrics.capture_to_verdict(camera) for camera in names}
        self._observe_trigger = {camera: metrics.trigger_to_verdict(camera) for camera in names}
        self._stream: Stream
        self._desk = TriggerDesk(boot_id, roster.cameras)
        self._parts = PartStream(boot_id, self._tell_part, metrics)
        self._parts.use(roster.parts)
        self._maker = VerdictMaker(boot_id)
        self._cameras = CameraStatuses(boot_id, names, self._desk, metrics)
        self._heartbeat_seq = 0

    @property
    def boards(self) -> Mapping[str, TriggerBoard]:
        """Where the triggered cameras look for triggers."""
        return self._desk.boards

    def pending_triggers(self, camera: str) -> int:
        return self._desk.pending(camera)

    def begin(self, stream: Stream) -> None:
        """The stream is there: every camera is starting."""
        self._stream = stream
        self._cameras.begin(stream)

    def wait_s(self) -> float:
        """How long nothing needs to be said unasked, at most."""
        return self._desk.wait_s()

    def due(self) -> None:
        """Say what time demands: deadlines, and parts that last too long."""
        self._desk.guard_s = GUARD_S + self._stream.hold_s  # what is said now goes out that much later
        for trigger, roi in self._desk.overdue():
            self._answer_without_frame(trigger, roi, "deadline")
        self._parts.due(time.monotonic())

    def goodbye(self) -> None:
        """Whatever is owed is answered; every camera is stopped."""
        for trigger, roi in self._desk.abandon_everything():
            self._answer_without_frame(trigger, roi, "not_ready")
        self._parts.interrupt("not_ready")
        for camera in self._cameras.names:
            self.status(camera, "fault", "stopped")

    # -- verdicts -----------------------------------------------------------------------------------

    def outcome(self, waiting: Waiting) -> None:
        if waiting.outcome.triggers:
            self._answer_triggers(waiting)
        else:
            self._tell_verdict(waiting, waiting.outcome.ticket, None, None)

    def _answer_triggers(self, waiting: Waiting) -> None:
        """One verdict for each trigger that the frame answers and that is still open."""
        outcome = waiting.outcome
        camera, roi = outcome.ticket.camera, outcome.ticket.roi
        ticket: Ticket | None = outcome.ticket
        for trigger in outcome.triggers:
            settled = self._desk.settle(trigger, roi)
            if settled != "answered":
                self._note_late(outcome, trigger)
            if settled != "late":
                # The frame's own ticket is for the first; what else it answers has no frame of its own.
                ticket = ticket or self._ledger.without_frame(camera, roi)
                self._tell_verdict(waiting, ticket, trigger, "deadline" if settled == "overdue" else None)
                ticket = None
        if ticket is not None:
            self._ledger.dropped(ticket, "late")
        self._cameras.tell(camera)

    def _tell_verdict(
        self, waiting: Waiting, ticket: Ticket, trigger: Trigger | None, instead: NoResultReason | None
    ) -> None:
        """Publish an outcome, as it is or as no_result for a reason that outweighs it; then settle its ticket."""
        outcome = waiting.outcome
        instead = self._veto.on(outcome) or instead
        decision = outcome.decision if instead is None else no_result(instead)
        if decision.verdict != "no_result" or decision.reason is not None:  # of an empty station nothing is to be seen
            self._keep_evidence(outcome, decision.verdict)

        def make(seq: int) -> Verdict:
            return self._maker.make(outcome, seq, decision, trigger)

        def withheld(staged: Verdict, recorded: bool) -> Verdict | None:
            why = self._veto.at_last(staged, outcome, trigger, recorded=recorded)
            if why is None:
                return None
            if why == "deadline" and trigger is not None:
                self._note_late(outcome, trigger)
            return self._maker.make(outcome, staged.seq, no_result(why), trigger)

        def settle(sent: Verdict) -> None:
            self._settle(sent, ticket)
            now = time.monotonic()
            self._observe_publish(now - waiting.since)
            self._observe_total[sent.camera](now - outcome.arrival)
            if trigger is None:
                taken_at = outcome.arrival - outcome.waited_s
                self._parts.verdict(sent, outcome.arrival, taken_at)
            else:
                self._observe_trigger[sent.camera](now - trigger.accepted_at)

        self._stream.tell(verdict_topic(ticket.camera, ticket.roi), make, instead=withheld, then=settle)

    def _answer_without_frame(self, trigger: Trigger, roi: str, reason: NoResultReason) -> None:
        """Publish no_result for a trigger that no frame answers, or none in time."""
        origin = self._roster.origins[trigger.camera].get(roi, Origin("", self._roster.config, self._roster.recipe))
        ticket = self._ledger.without_frame(trigger.camera, roi)

        def make(seq: int) -> Verdict:
            return self._maker.without_frame(trigger, roi, reason, origin, seq)

        def settle(sent: Verdict) -> None:
            self._settle(sent, ticket)
            self._observe_trigger[sent.camera](time.monotonic() - trigger.accepted_at)

        self._stream.tell(verdict_topic(trigger.camera, roi), make, then=settle)
        self._cameras.tell(trigger.camera)

    def _settle(self, sent: Verdict, ticket: Ticket) -> None:
        reason = sent.reason or ("empty" if sent.verdict == "no_result" else "")
        self._ledger.verdict(ticket, sent.verdict, reason, sent.label if sent.verdict == "fail" else None)

    def _keep_evidence(self, outcome: Outcome, kind: VerdictKind) -> None:
        if self._evidence is None or outcome.frame is None or outcome.area is None:
            return
        frame, outcome.frame = outcome.frame, None  # once, also if it answers several triggers
        ticket = outcome.ticket
        outcome.evidence = self._evidence.keep(
            ticket.camera, ticket.roi, kind, outcome.index, outcome.captured_at, frame, outcome.area
        )

    def _note_late(self, outcome: Outcome, trigger: Trigger) -> None:
        """A result after its deadline: counted and journaled, never published."""
        self._metrics.late_result(trigger.camera)
        if self._journal is not None:
            message = self._maker.make(outcome, 1, trigger=trigger)
            self._journal.late(message.model_dump_json(exclude={"seq"}).encode())

    def _tell_part(self, part: Callable[[int], Part], camera: str, roi: str, known_at: float) -> None:
        def withheld(staged: Part, recorded: bool) -> Part | None:
            why = self._veto.at_last_on_part(staged, known_at, recorded=recorded)
            return None if why is None else staged.model_copy(update={"verdict": "no_result", "reason": why})

        def count(sent: Part) -> None:
            self._metrics.part(camera, roi, sent.verdict)

        self._stream.tell(part_topic(camera, roi), part, instead=withheld, then=count)

    # -- states and heartbeats ----------------------------------------------------------------------

    def status(self, camera: str, state: State, reason: str | None) -> None:
        self._cameras.change(camera, state, reason)
        if self._cameras.is_down(camera):
            if reason != "finished":  # the last frames of a recording still are on their way
                self._parts.interrupt("camera_down", camera)
            for trigger, roi in self._desk.abandon(camera):
                self._answer_without_frame(trigger, roi, "camera_down")

    def heartbeat(self, state: State, reason: str | None) -> Heartbeat:
        """The next heartbeat."""
        self._heartbeat_seq += 1
        return Heartbeat(
            boot_id=self._boot_id,
            seq=self._heartbeat_seq,
            state=state,
            reason=reason,
            topics=self._stream.newest,
            journal="off" if self._journal is None else self._journal.state,
            recipe=self._roster.recipe,
            config=self._roster.config,
            published_at=timestamp(time.time()),
        )

    def use(self, roster: Roster) -> None:
        """Another line-up: what waits for a frame of the old one is answered, no part goes on into the new one."""
        for camera in self._desk.boards:
            for trigger, roi in self._desk.abandon(camera):
                self._answer_without_frame(trigger, roi, "not_ready")
        self._parts.interrupt("not_ready")
        self._roster = roster
        self._veto.use(roster.cameras, roster.origins)
        self._desk.use(roster.cameras)
        self._parts.use(roster.parts)

    def vouched(self, since: float) -> None:
        """Verdicts may pass again."""
        self._parts.vouched(since)

    # -- triggers -----------------------------------------------------------------------------------

    def accept(self, request: TriggerRequest, reply: Callable[[TriggerAccepted], None]) -> None:
        """Take a trigger and reply at once; its verdicts follow on the stream.

        Raises:
            ControlError: it is refused, and was not replied to.
        """
        try:
            trigger = self._desk.accept(request, self._roster.rois(request.camera), self._roster.config)
        except ControlError as refusal:
            self._metrics.trigger(request.camera, refusal.code)
            raise
        self._metrics.trigger(trigger.camera, "accepted")
        now = time.time()
        accepted = TriggerAccepted(
            trigger_id=trigger.trigger_id,
            accepted_at=timestamp(now),
            deadline_at=timestamp(now + trigger.deadline_at - trigger.accepted_at),
        )
        reply(accepted)
        if self._cameras.is_down(trigger.camera):
            for owed, roi in self._desk.close(trigger):
                self._answer_without_frame(owed, roi, "camera_down")
        else:
            self._desk.post(trigger)
            self._cameras.tell(trigger.camera)
