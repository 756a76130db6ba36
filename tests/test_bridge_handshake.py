"""The four-phase handshake of a trigger, step by step and in any order. No sockets, no clock."""

import pytest
from bridge_loop import LAYOUT
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from inspectd.bridge import codes
from inspectd.bridge.handshake import GRACE_S, REPLY_TIMEOUT_S, Handshake
from inspectd.bridge.image import LineImage
from inspectd.bridge.modbus_memory import Memory
from inspectd.verdict.schema import Heartbeat


@pytest.fixture
def hand():
    """At rest, with two regions."""
    made = Handshake("top", frozenset({"part", "lid"}))
    made.write(False, 0, 1000, 0.0)
    return made


def signals(hand, now=0.0):
    found = hand.signals(now)
    return found.ack, found.busy, found.done, found.error


AT_REST = (False, False, False, codes.NO_ERROR)


@pytest.mark.parametrize(("first", "second"), [("part", "lid"), ("lid", "part")])
def test_four_phases(hand, first, second):
    """Set, accepted, answered by every region, reset."""
    assert signals(hand) == AT_REST
    order = hand.write(True, 77, 500, 0.0)
    assert (order.number, order.part_id, order.deadline_ms) == (1, "77", 500)
    assert signals(hand) == (False, True, False, codes.NO_ERROR)
    hand.accepted(order, "t1", 0.01)
    assert signals(hand) == (True, True, False, codes.NO_ERROR)
    hand.answered("t1", first)
    assert signals(hand) == (True, True, False, codes.NO_ERROR)
    hand.answered("t1", second)
    assert signals(hand, 60.0) == (True, False, True, codes.NO_ERROR), "and so it stays until the PLC has read"
    assert hand.number_of("t1") == 1
    assert hand.write(False, 77, 500, 1.0) is None
    assert signals(hand) == AT_REST


def test_a_part_number_of_zero_is_no_part_id(hand):
    """A PLC that does not count parts leaves it 0."""
    assert hand.write(True, 0, 500, 0.0).part_id is None


def test_setting_what_is_set_starts_nothing_more(hand):
    """PLCs write cyclically."""
    assert hand.write(True, 1, 500, 0.0) is not None
    assert hand.write(True, 1, 500, 0.1) is None
    assert hand.number == 1


def test_answers_that_come_before_the_acceptance_count(hand):
    """The two sockets race."""
    order = hand.write(True, 1, 500, 0.0)
    hand.answered("t1", "part")
    hand.answered("t1", "lid")
    hand.accepted(order, "t1", 0.01)
    assert signals(hand, 0.01) == (True, False, True, codes.NO_ERROR)


def test_a_refusal_ends_in_error_with_its_code(hand):
    """And the reset clears it."""
    order = hand.write(True, 1, 500, 0.0)
    hand.refused(order, codes.error_of("busy"), 0.01)
    assert signals(hand) == (False, False, False, codes.error_of("busy"))
    hand.write(False, 1, 500, 0.1)
    assert signals(hand) == AT_REST


def test_no_reply_and_no_answer_end_in_error_in_time(hand):
    """Whenever somebody looks; and what comes afterwards makes no `done` of it."""
    order = hand.write(True, 1, 500, 0.0)
    assert signals(hand, REPLY_TIMEOUT_S - 0.01)[1]
    assert signals(hand, REPLY_TIMEOUT_S) == (False, False, False, codes.NO_REPLY)
    hand.accepted(order, "t1", 1.1)
    assert signals(hand, 1.1) == (False, False, False, codes.NO_REPLY)
    hand.write(False, 1, 500, 1.2)
    order = hand.write(True, 2, 500, 2.0)
    hand.accepted(order, "t2", 2.0)
    hand.answered("t2", "part")
    assert signals(hand, 2.5 + GRACE_S - 0.01) == (True, True, False, codes.NO_ERROR)
    assert signals(hand, 2.5 + GRACE_S) == (True, False, False, codes.NO_ANSWER)
    hand.answered("t2", "lid")
    assert signals(hand, 4.0) == (True, False, False, codes.NO_ANSWER)


def test_a_line_that_stops_being_safe_ends_what_is_under_way_and_leaves_what_is_done(hand):
    """`done` says that results came, and their blocks say what they are worth now."""
    order = hand.write(True, 1, 500, 0.0)
    hand.unsafe()
    assert signals(hand) == (False, False, False, codes.UNSAFE)
    hand.accepted(order, "t1", 0.1)
    assert signals(hand) == (False, False, False, codes.UNSAFE)
    hand.write(False, 1, 500, 0.2)
    order = hand.write(True, 1, 500, 0.3)
    hand.accepted(order, "t2", 0.3)
    hand.answered("t2", "part")
    hand.answered("t2", "lid")
    hand.unsafe()
    assert signals(hand, 0.4)[2]


def test_silence_ends_a_trigger_without_any_word_of_the_client():
    """The PLC that reads is told by the image's own clock."""
    image = LineImage(LAYOUT, hold_ms=1000)
    orders = []
    memory = Memory(image, {name: Handshake(name, {"part"}) for name in ("top", "side")}, orders.append)
    beat = {"boot_id": "b", "seq": 1, "state": "ready", "topics": {}, "published_at": "2026-01-31T12:00:00.000000Z"}
    image.heartbeat(Heartbeat(**beat), 0.0)
    image.fail_safe(None)
    memory.write_bits(16, [False], 0.1)
    memory.write_registers(1010, [0, 1, 5000, 1], 0.1)
    assert len(orders) == 1
    assert memory.read_bits(16, 5, 0.9) == [True, False, True, False, False]
    assert memory.read_bits(16, 5, 1.0) == [True, False, False, False, True]
    assert memory.read_registers(1004, 1, 1.0) == [codes.UNSAFE.number]


def test_a_trigger_that_was_set_when_the_bridge_started_is_not_carried_out():
    """It may be from before a restart, and the part another one by now."""
    hand = Handshake("top", frozenset({"part"}))
    assert hand.write(True, 1, 500, 0.0) is None
    assert (signals(hand), hand.number) == ((False, False, False, codes.RESET_FIRST), 0)
    hand.write(False, 1, 500, 0.1)
    assert hand.write(True, 1, 500, 0.2) is not None


def test_an_abandoned_trigger_never_answers_the_next_one(hand):
    """Its late acceptance and its late results have their own number."""
    first = hand.write(True, 1, 500, 0.0)
    hand.write(False, 1, 500, 0.1)
    second = hand.write(True, 2, 500, 0.2)
    hand.accepted(first, "t1", 0.3)
    for roi in ("part", "lid"):
        hand.answered("t1", roi)
    assert signals(hand, 0.3) == (False, True, False, codes.NO_ERROR)
    assert (hand.number_of("t1"), second.number) == (1, 2)


def test_the_number_goes_round_without_ever_being_zero(hand):
    """0 means none."""
    hand.number = 0xFFFF
    assert hand.write(True, 1, 500, 0.0).number == 1


def test_somebody_elses_triggers_are_not_remembered_for_ever(hand):
    """Another client's trigger ids come by on the stream."""
    for number in range(1000):
        hand.answered(f"other{number}", "part")
    assert len(hand._early) <= 64
    assert hand.number_of("other7") == hand.number_of(None) == 0


@examples(200)
@given(st.lists(st.tuples(st.sampled_from("srARalpxt"), st.floats(0, 0.6)), max_size=60))
def test_done_means_every_region_answered_this_very_trigger(steps):
    """In any order of everything: done and busy and error exclude each other, and done is earned."""
    hand = Handshake("top", frozenset({"part", "lid"}))
    now, orders, answered = 0.0, [], {}
    for step, pause in steps:
        now += pause
        match step:
            case "s" | "r":
                if (order := hand.write(step == "s", len(orders), 500, now)) is not None:
                    orders.append(order)
                    answered[order.number] = set()
            case "A" | "R" if orders:
                if step == "A":
                    hand.accepted(orders[-1], f"t{orders[-1].number}", now)
                else:
                    hand.refused(orders[-1], codes.error_of("busy"), now)
            case "a" | "l" if orders:
                roi = "part" if step == "a" else "lid"
                hand.answered(f"t{orders[-1].number}", roi)
                answered[orders[-1].number].add(roi)
            case "p" if len(orders) > 1:
                hand.answered(f"t{orders[-2].number}", "part")
            case "x":
                hand.unsafe()
            case "t":
                now += 1.0
        found = hand.signals(now)
        assert found.busy + found.done + (found.error.number != 0) <= 1
        if found.done:
            assert hand.is_set
            assert found.ack
            assert answered[hand.number] == {"part", "lid"}
        if not hand.is_set:
            assert signals(hand, now) == AT_REST
