"""Numbering, journaling and sending, with and without waiting for the disk."""

import json

import pytest

from inspectd.verdict.schema import CameraStatus, timestamp
from inspectd.verdict.stream import FADE, Stream


class Disk:
    """A journal that notes what is handed over and when it was waited for."""

    state = "ok"

    def __init__(self, done):
        self._done = done

    def message(self, topic, seq, body):
        self._done.append(("journal", topic, seq))

    def write_through(self, timeout_s):
        self._done.append(("wait",))
        return True


def status(seq, state="ready"):
    return CameraStatus(
        boot_id="b", seq=seq, camera="a", state=state, reason=None, published_at=timestamp(1_769_860_800.0)
    )


@pytest.fixture
def done():
    """What happened, in order."""
    return []


def make(done, *, before_publish):
    def send(topic, body):
        done.append(("send", topic.decode(), json.loads(body)["seq"]))

    return Stream("json", send, Disk(done), before_publish=before_publish)


def test_a_group_commit_never_comes_before_the_message(done):
    """Sent first, then handed over to be written."""
    stream = make(done, before_publish=False)
    stream.tell("x/", status)
    stream.flush()
    assert done == [("send", "x/", 1), ("journal", "x/", 1)]
    assert stream.hold_s == 0


def test_before_publish_a_turn_waits_for_the_disk_once(done):
    """Numbered at once, written together, then sent in order."""
    stream = make(done, before_publish=True)
    for topic in ("x/", "y/", "x/"):
        stream.tell(topic, status)
    assert stream.newest == {"x/": 2, "y/": 1}
    assert done == []
    stream.flush()
    journaled, sent = done[:3], done[4:]
    assert done[3] == ("wait",)
    assert (
        [("send", *row[1:]) for row in journaled] == sent == [("send", "x/", 1), ("send", "y/", 1), ("send", "x/", 2)]
    )


def test_what_changes_its_meaning_while_it_waits_is_journaled_again_and_sent_so(done):
    """The seq stays; the later row counts."""
    stream = make(done, before_publish=True)
    told = []
    stream.tell("x/", status, instead=lambda message, recorded: status(message.seq, "fault"), then=told.append)
    stream.flush()
    assert done == [("journal", "x/", 1), ("wait",), ("journal", "x/", 1), ("send", "x/", 1)]
    assert told[0].state == "fault"
    stream.repeat({b""})
    assert done[-1] == ("send", "x/", 1)


def test_where_nothing_waits_for_the_disk_the_last_moment_counts_as_well(done):
    """One message and one row: what was sent."""
    stream = make(done, before_publish=False)
    asked, told = [], []

    def instead(message, recorded):
        asked.append((message.state, recorded))
        return status(message.seq, "fault")

    stream.tell("x/", status, instead=instead, then=told.append)
    assert asked == [("ready", True)]
    assert done == [("send", "x/", 1), ("journal", "x/", 1)]
    assert told[0].state == "fault"


def test_what_a_message_causes_goes_out_in_the_same_flush(done):
    """Nobody would come back for it before the next event."""
    stream = make(done, before_publish=True)
    stream.tell("x/", status, then=lambda _: stream.tell("y/", status))
    stream.flush()
    assert done[-1] == ("send", "y/", 1)


def test_how_long_the_disk_takes_is_remembered_and_fades(done, monkeypatch):
    """A deadline needs to know by how much a verdict will be held up."""
    stream = make(done, before_publish=True)
    clock = iter((10.0, 10.05, 20.0, 20.0))
    monkeypatch.setattr("inspectd.verdict.stream.time.monotonic", lambda: next(clock))
    for expected in (0.05, 0.05 * FADE):
        stream.tell("x/", status)
        stream.flush()
        assert stream.hold_s == pytest.approx(expected)
