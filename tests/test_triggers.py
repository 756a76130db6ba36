"""The trigger desk: who is owed an answer, decided once; and the boards where triggers wait for their frame."""

from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from inspectd.config import CameraConfig
from inspectd.trigger import TriggerBoard
from inspectd.verdict.control_schema import ControlError, TriggerRequest
from inspectd.verdict.triggers import GUARD_S, REMEMBERED_S, TriggerDesk

ROIS = ("left", "right")


def camera(name="line1", **keys):
    rois = [{"name": roi, "box": [0, 0, 16, 16]} for roi in ROIS]
    return CameraConfig(**{"name": name, "source": "usb:0", "trigger": "command", "rois": rois, **keys})


class Desk(TriggerDesk):
    """A desk with a clock of the test's own, in seconds."""

    def __init__(self, *cameras):
        self.now = 100.0
        super().__init__("b00t" * 8, cameras or (camera(),), clock=lambda: self.now)

    def trigger(self, part_id=None, deadline_ms=100.0, name="line1"):
        request = TriggerRequest(op="trigger", camera=name, part_id=part_id, deadline_ms=deadline_ms)
        trigger = self.accept(request, ROIS, "c0nf19")
        self.post(trigger)
        return trigger


def refusal(desk, **request):
    with pytest.raises(ControlError) as caught:
        desk.trigger(**request)
    return caught.value.code


def test_a_board_gives_a_frame_only_what_it_is_new_enough_for():
    """A frame captured at the very moment answers; an older one never does."""
    desk = Desk(camera(trigger_delay_ms=20))
    first = desk.trigger()
    desk.now += 0.01
    second = desk.trigger()
    board = desk.boards["line1"]
    assert board.take(100.019) == ()
    assert board.take(first.due_at) == (first,)
    assert board.take(first.due_at) == ()
    assert board.take(200.0) == (second,)


def test_a_withdrawn_trigger_is_taken_by_no_frame():
    """Its time is over; withdrawing what a frame took does nothing."""
    desk = Desk()
    one, two = desk.trigger(), desk.trigger()
    board = TriggerBoard()
    board.post(one)
    board.post(two)
    board.withdraw(one)
    board.withdraw(one)
    assert board.withdraw_all() == (two,)
    assert board.take(1000.0) == ()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"name": "nobody"}, "unknown_camera"),
        ({"name": "free"}, "not_triggered"),
        ({"deadline_ms": 0.0}, "bad_deadline"),
        ({"deadline_ms": -5.0}, "bad_deadline"),
        ({"deadline_ms": 3_600_000.0}, "bad_deadline"),
        ({"name": "far", "deadline_ms": 80.0}, "bad_deadline"),
    ],
)
def test_what_cannot_be_kept_is_refused(request_, code):
    """With a code; nothing is owed then."""
    desk = Desk(camera(), camera("free", trigger="free_run"), camera("far", trigger_delay_ms=80))
    assert refusal(desk, **request_) == code
    assert desk.pending("line1") == 0


def test_a_part_is_triggered_once_at_a_time_and_shortly_after():
    """A client that lost the reply learns the trigger_id; later the same part may be inspected again."""
    desk = Desk()
    first = desk.trigger("17")
    with pytest.raises(ControlError) as caught:
        desk.trigger("17")
    assert (caught.value.code, caught.value.details) == ("duplicate", {"trigger_id": first.trigger_id})
    for roi in ROIS:
        assert desk.settle(first, roi) == "answered"
    assert refusal(desk, part_id="17") == "duplicate"
    desk.now += REMEMBERED_S + 0.1
    assert desk.trigger("17").trigger_id != first.trigger_id
    assert desk.trigger("18").part_id == "18"


def test_a_burst_beyond_the_queue_is_refused_and_a_place_is_free_again_after_the_last_region():
    """As many open triggers as queue_size; a trigger is open until all of its regions are answered."""
    desk = Desk(camera(queue_size=2), camera("other", queue_size=1))
    first, _ = desk.trigger(), desk.trigger()
    assert refusal(desk) == "busy"
    desk.trigger(name="other")
    desk.settle(first, "left")
    assert refusal(desk) == "busy"
    desk.settle(first, "right")
    desk.trigger()


def test_a_result_is_an_answer_once_and_only_before_the_deadline():
    """The second result is late, and so is the first one after the deadline: then nothing may be judged."""
    desk = Desk()
    trigger = desk.trigger(deadline_ms=100)
    desk.now += 0.0999
    assert desk.settle(trigger, "left") == "answered"
    assert desk.settle(trigger, "left") == "late"
    desk.now += 0.001
    assert desk.settle(trigger, "right") == "overdue"
    assert desk.settle(trigger, "right") == "late"
    assert desk.overdue() == []


def test_what_nobody_answered_is_due_before_the_deadline():
    """So that the answer is out in time; and the poller is told until when it may sleep."""
    desk = Desk()
    trigger = desk.trigger(deadline_ms=100)
    desk.settle(trigger, "left")
    assert desk.wait_s() == pytest.approx(0.1 - GUARD_S)
    desk.now += 0.1 - GUARD_S - 0.001
    assert desk.overdue() == []
    desk.now += 0.0011
    assert desk.wait_s() == 0.0
    assert desk.overdue() == [(trigger, "right")]
    assert desk.wait_s() == float("inf")
    assert desk.boards["line1"].take(1000.0) == ()
    assert desk.settle(trigger, "right") == "late"


def test_a_lost_camera_gives_up_only_what_no_frame_was_taken_for():
    """A frame that is with the engine still answers."""
    desk = Desk()
    taken = desk.trigger()
    assert desk.boards["line1"].take(1000.0) == (taken,)
    waiting = desk.trigger()
    assert desk.abandon("line1") == [(waiting, "left"), (waiting, "right")]
    assert desk.settle(taken, "left") == "answered"
    assert desk.abandon_everything() == [(taken, "right")]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("trigger"), st.integers(0, 5), st.sampled_from((5.0, 20.0, 100.0))),
        st.tuples(st.just("frame")),
        st.tuples(st.just("result"), st.integers(0, 30)),
        st.tuples(st.just("time"), st.floats(0.0, 0.05)),
        st.tuples(st.just("overdue")),
        st.tuples(st.just("abandon")),
    ),
    max_size=60,
)


@examples(150)
@given(STEPS)
def test_whatever_happens_each_region_of_each_trigger_is_answered_once(steps):
    """Random interleavings of triggers, frames, results, time and lost cameras; afterwards all time passes."""
    desk = Desk(camera(queue_size=3))
    accepted, in_engine, answers = [], [], Counter()
    for step in [*steps, ("time", 1.0), ("overdue",)]:
        match step:
            case ("trigger", part, deadline_ms):
                with suppress(ControlError):
                    accepted.append(desk.trigger(str(part) if part else None, deadline_ms))
            case ("frame",):
                for trigger in desk.boards["line1"].take(desk.now):
                    in_engine += [(trigger, roi) for roi in ROIS]
            case ("result", which) if in_engine:
                owed = in_engine.pop(which % len(in_engine))
                settled = desk.settle(*owed)
                if settled != "late":
                    answers[owed] += 1
                    assert settled == ("answered" if desk.now < owed[0].deadline_at else "overdue")
            case ("time", seconds):
                desk.now += seconds
            case ("overdue",):
                answers.update(desk.overdue())
            case ("abandon",):
                answers.update(desk.abandon("line1"))
        assert desk.pending("line1") <= 3
    assert answers == Counter({(trigger, roi): 1 for trigger in accepted for roi in ROIS})
    assert desk.pending("line1") == 0
