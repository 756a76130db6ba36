"""Every command gets one answer, whoever gives it."""

import pytest

from inspectd.command_queue import CommandQueue, stopping
from inspectd.verdict.control_schema import ChallengeRequest, ControlError

REQUEST = ChallengeRequest(op="challenge")


def put(queue):
    """The list that its answers come into."""
    answers = []
    queue.put(REQUEST, answers.append)
    return answers


def code_of(refused):
    return [answer.code for answer in refused]


def test_one_after_the_other_is_answered_once():
    queue = CommandQueue(2)
    queue.open()
    first, second = put(queue), put(queue)
    with pytest.raises(ControlError, match="2 commands wait already") as busy:
        put(queue)
    assert busy.value.code == "busy"
    assert queue.take(0) is REQUEST
    queue.answer("done")
    queue.answer(stopping())  # of nothing
    assert (first, second) == (["done"], [])
    assert queue.take(0) is REQUEST
    queue.answer("done")
    assert second == ["done"]
    assert queue.take(0) is None


def test_after_its_end_nothing_is_left_unanswered():
    """What is under way, what waits, and what comes later."""
    queue = CommandQueue(2)
    queue.open()
    under_way = put(queue)
    queue.take(0)
    waiting = put(queue)
    queue.close()
    queue.close()
    assert (code_of(waiting), under_way) == (["stopping"], [])
    with pytest.raises(ControlError) as refused:
        put(queue)
    assert refused.value.code == "stopping"
    queue.answer(stopping())  # whoever waited for it in vain
    queue.answer("done")  # too late
    assert code_of(under_way) == ["stopping"]
