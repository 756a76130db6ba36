"""The trigger desk against a model of it that is too simple to be wrong, whatever comes after what."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from properties import examples

from inspectd.config import CameraConfig
from inspectd.verdict.control_schema import ControlError, TriggerRequest
from inspectd.verdict.triggers import GUARD_S, REMEMBERED_S, TriggerDesk

ROIS = ("left", "right")
CAMERAS = ("one", "two")
PARTS = st.sampled_from([None, "1", "2", "3"])


@dataclass(eq=False)
class Accepted:
    """What the model knows of a trigger: where it is, and what it still is owed."""

    camera: str
    part: str | None
    due_at: float
    deadline_at: float
    where: str = "accepted"  # then "board", then "taken", or "gone" once nobody may take it any more
    owed: set[str] = field(default_factory=lambda: set(ROIS))
    closed_at: float | None = None


def camera(name, queue_size, delay_ms):
    rois = [{"name": roi, "box": [0, 0, 16, 16]} for roi in ROIS]
    keys = {"trigger": "command", "queue_size": queue_size, "trigger_delay_ms": delay_ms, "rois": rois}
    return CameraConfig(name=name, source="usb:0", **keys)


class Desk(RuleBasedStateMachine):
    """Requests, frames, results, time, lost cameras and recipes, in any order."""

    @initialize(queues=st.tuples(st.integers(1, 3), st.integers(1, 3)), delay_ms=st.sampled_from([0, 0, 15]))
    def begin(self, queues, delay_ms):
        self.now = 100.0
        self.delay_ms = delay_ms
        self.use(queues)
        self.desk = TriggerDesk("b00t" * 8, self.cameras, clock=lambda: self.now)
        self.model = {}  # the desk's trigger -> Accepted
        self.with_engine = []  # (trigger, roi): a frame was taken for it
        self.answers = Counter()

    def use(self, queues):
        self.cameras = [camera(name, size, self.delay_ms) for name, size in zip(CAMERAS, queues, strict=True)]
        self.queues = dict(zip(CAMERAS, queues, strict=True))

    def open(self, name=None):
        return [each for each in self.model.values() if each.owed and name in (None, each.camera)]

    def close(self, trigger, roi):
        known = self.model[trigger]
        assert roi in known.owed, "answered twice"
        known.owed.remove(roi)
        self.answers[trigger, roi] += 1
        if not known.owed:
            known.closed_at = self.now

    @rule(
        name=st.sampled_from(CAMERAS),
        part=st.none() | st.integers(1, 3),
        deadline_ms=st.sampled_from([5, 20, 100, 3000]),
    )
    def request(self, name, part, deadline_ms):
        part = None if part is None else str(part)
        same = [
            trigger
            for trigger, each in self.model.items()
            if part is not None
            and (each.camera, each.part) == (name, part)
            and (each.owed or self.now < each.closed_at + REMEMBERED_S)
        ]
        if deadline_ms <= self.delay_ms:
            expected = "bad_deadline"
        elif same:
            expected = "duplicate"
        else:
            expected = "busy" if len(self.open(name)) >= self.queues[name] else None
        request = TriggerRequest(op="trigger", camera=name, part_id=part, deadline_ms=deadline_ms)
        if expected is not None:
            with pytest.raises(ControlError) as caught:
                self.desk.accept(request, ROIS, "c0nf19")
            assert caught.value.code == expected
            assert not same or expected == "bad_deadline" or caught.value.details["trigger_id"] == same[-1].trigger_id
            return
        trigger = self.desk.accept(request, ROIS, "c0nf19")
        assert trigger.trigger_id not in {each.trigger_id for each in self.model}
        due_at, deadline_at = self.now + self.delay_ms / 1000, self.now + deadline_ms / 1000
        assert (trigger.due_at, trigger.deadline_at) == (due_at, deadline_at)
        self.model[trigger] = Accepted(name, part, due_at, deadline_at)

    def of(self, where):
        return [trigger for trigger, each in self.model.items() if each.where == where]

    @precondition(lambda self: self.of("accepted"))
    @rule()
    def post(self):
        """In the order of acceptance, once the reply is on its way."""
        trigger = self.of("accepted")[0]
        self.desk.post(trigger)
        self.model[trigger].where = "board"

    @precondition(lambda self: self.of("accepted"))
    @rule()
    def camera_is_away(self):
        """The trigger is answered at once, instead of being posted."""
        trigger = self.of("accepted")[0]
        owed = self.desk.close(trigger)
        assert {roi for _, roi in owed} == self.model[trigger].owed
        self.model[trigger].where = "gone"
        for each in owed:
            self.close(*each)

    @rule(name=st.sampled_from(CAMERAS), age_s=st.sampled_from([0.0, 0.0, 0.004, 0.05]))
    def frame(self, name, age_s):
        """Captured so long ago."""
        captured_at = self.now - age_s
        on_board = [trigger for trigger in self.of("board") if self.model[trigger].camera == name]
        taken = self.desk.boards[name].take(captured_at)
        assert list(taken) == [trigger for trigger in on_board if self.model[trigger].due_at <= captured_at]
        for trigger in taken:
            self.model[trigger].where = "taken"
            self.with_engine += [(trigger, roi) for roi in ROIS]

    @precondition(lambda self: self.with_engine)
    @rule(data=st.data())
    def result(self, data):
        trigger, roi = self.with_engine.pop(data.draw(st.integers(0, len(self.with_engine) - 1)))
        known = self.model[trigger]
        if roi not in known.owed:
            expected = "late"
        else:
            expected = "overdue" if self.now >= known.deadline_at else "answered"
        assert self.desk.settle(trigger, roi) == expected
        if expected != "late":
            self.close(trigger, roi)

    @rule(seconds=st.sampled_from([0.001, 0.004, 0.016, 0.1, REMEMBERED_S]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def deadlines(self):
        """What is not answered by GUARD_S before its deadline, the earliest first."""
        late = [each for each in self.model if self.model[each].owed and each.deadline_at <= self.now + GUARD_S]
        late.sort(key=lambda trigger: trigger.deadline_at)
        owed = self.desk.overdue()
        assert owed == [(trigger, roi) for trigger in late for roi in ROIS if roi in self.model[trigger].owed]
        for trigger, roi in owed:
            self.close(trigger, roi)
        for trigger in late:
            if self.model[trigger].where == "board":
                self.model[trigger].where = "gone"

    @rule(name=st.sampled_from(CAMERAS))
    def camera_lost(self, name):
        """Or another recipe: what waits for a frame will get none; a frame that is with the engine still answers."""
        waiting = [trigger for trigger in self.of("board") if self.model[trigger].camera == name]
        owed = self.desk.abandon(name)
        # One whose time was over before it was posted is answered already.
        assert owed == [(trigger, roi) for trigger in waiting for roi in ROIS if roi in self.model[trigger].owed]
        for trigger, roi in owed:
            self.close(trigger, roi)
        for trigger in waiting:
            self.model[trigger].where = "gone"

    @rule(queues=st.tuples(st.integers(1, 3), st.integers(1, 3)))
    def other_queues(self, queues):
        """A reload."""
        self.use(queues)
        self.desk.use(self.cameras)

    @invariant()
    def says_what_is_open(self):
        for name in CAMERAS:
            assert self.desk.pending(name) == len(self.open(name))
            assert self.desk.busy(name) == (len(self.open(name)) >= self.queues[name])
        nearest = min((each.deadline_at for each in self.open()), default=float("inf"))
        assert self.desk.wait_s() == pytest.approx(max(0.0, nearest - GUARD_S - self.now), abs=1e-9)

    def teardown(self):
        """At the end everything is answered, each once."""
        if not hasattr(self, "desk"):
            return
        for trigger, roi in self.desk.abandon_everything():
            self.close(trigger, roi)
        assert self.answers == Counter({(trigger, roi): 1 for trigger in self.model for roi in ROIS})
        assert not any(self.desk.pending(name) for name in CAMERAS)
        assert self.desk.wait_s() == float("inf")


Desk.TestCase.settings = examples(50, stateful_step_count=40)
TestTheDeskDoesAsTheModelSays = Desk.TestCase
