"""The meeting point of cameras and engine: order, fairness, bounds, slots, and what closing means."""

import threading
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from inspectd.engine.batcher import Batcher, Crop, QueueSpec, slots_needed
from inspectd.errors import Stopped
from inspectd.frame import Box
from inspectd.observe.ledger import Ticket

LIVE = QueueSpec(capacity=4, live=True)
FILE = QueueSpec(capacity=4, live=False)


def make_batcher(queues, max_batch_size=8, max_wait_s=0.0, depth=2):
    count = slots_needed(queues, max_batch_size, depth)
    return Batcher(np.zeros((count, 2, 2, 3), np.uint8), queues, max_batch_size, max_wait_s)


def make_crop(batcher, camera, index):
    return Crop(
        ticket=Ticket(camera, "roi"),
        slot=batcher.acquire(camera),
        area=Box(0, 0, 2, 2),
        index=index,
        pts=None,
        clock="arrival",
        captured_at=0.0,
        arrival=0.0,
        expires_at=np.inf,
        decode_s=0.0,
    )


def put(batcher, camera, index):
    return batcher.put(make_crop(batcher, camera, index))


def indices(batch):
    return [(crop.ticket.camera, crop.index) for crop in batch]


def test_takes_everything_that_waits_up_to_the_maximum():
    """Natural batching: a free engine takes what is there, in order, never more than max_batch_size."""
    batcher = make_batcher({"a": QueueSpec(8, live=True)}, max_batch_size=3)
    for index in range(5):
        put(batcher, "a", index)
    assert indices(batcher.take(block=True)) == [("a", 0), ("a", 1), ("a", 2)]
    assert indices(batcher.take(block=True)) == [("a", 3), ("a", 4)]
    assert batcher.take(block=False) == []


def test_a_full_live_queue_gives_up_its_oldest_and_says_which():
    """The freshest crops stay; the displaced one comes back to the caller, its slot free again."""
    batcher = make_batcher({"a": LIVE})
    free_before = batcher.free
    assert [put(batcher, "a", index) for index in range(4)] == [None] * 4
    assert put(batcher, "a", 4).index == 0
    assert batcher.free == free_before - 4
    assert indices(batcher.take(block=True)) == [("a", index) for index in (1, 2, 3, 4)]


def test_one_flooding_camera_does_not_displace_or_starve_another():
    """Queues are per camera and taken in turn."""
    batcher = make_batcher({"flood": LIVE, "calm": LIVE}, max_batch_size=4)
    put(batcher, "calm", 0)
    for index in range(50):
        put(batcher, "flood", index)
    assert Counter(camera for camera, _ in indices(batcher.take(block=True))) == {"flood": 3, "calm": 1}
    for index in range(1, 3):
        put(batcher, "calm", index)
    for index in range(50, 60):
        put(batcher, "flood", index)
    assert Counter(camera for camera, _ in indices(batcher.take(block=True))) == {"flood": 2, "calm": 2}


def test_the_turn_goes_on_across_batches():
    """With batches of one, two waiting cameras alternate."""
    batcher = make_batcher({"a": LIVE, "b": LIVE}, max_batch_size=1)
    for index in range(3):
        put(batcher, "a", index)
        put(batcher, "b", index)
    taken = [batcher.take(block=True)[0].ticket.camera for _ in range(6)]
    assert taken == ["a", "b", "a", "b", "a", "b"]


def test_a_recording_waits_and_loses_nothing():
    """`acquire` blocks while the queue is full, so every frame of a file arrives, in order."""
    batcher = make_batcher({"file": FILE}, max_batch_size=3)
    seen = []

    def produce():
        for index in range(200):
            assert put(batcher, "file", index) is None
        batcher.close()

    producer = threading.Thread(target=produce)
    producer.start()
    while (batch := batcher.take(block=True)) is not None:
        assert len(batch) <= 3
        seen += [crop.index for crop in batch]
        batcher.release([crop.slot for crop in batch])
    producer.join(10)
    assert seen == list(range(200))


def test_who_does_not_want_to_wait_for_ever_says_so():
    """An engine that takes nothing, and somebody who has better things to do."""
    batcher = make_batcher({"file": QueueSpec(1, live=False)})
    put(batcher, "file", 0)
    with pytest.raises(TimeoutError):
        batcher.acquire("file", 0.01)
    batcher.take(block=False)
    batcher.give_back(batcher.acquire("file", 0.01))


def test_a_live_camera_always_finds_a_slot_while_the_engine_keeps_two_batches():
    """The slot count covers full queues, a crop in every hand, and all batches in flight."""
    queues = {"a": LIVE, "b": LIVE}
    batcher = make_batcher(queues, max_batch_size=4, depth=2)
    held = []
    for _ in range(3):  # two with the device, one taken and about to be submitted
        for index in range(8):
            put(batcher, "ab"[index % 2], index)
        held.append(batcher.take(block=True))
    for index in range(8):
        put(batcher, "ab"[index % 2], index)
    in_hand = [batcher.acquire("a"), batcher.acquire("b")]
    assert len({id(slot) for slot in in_hand}) == 2


def test_max_wait_counts_from_the_first_crop():
    """A batch that is not full waits for company, but not longer than max_wait after its first crop."""
    batcher = make_batcher({"a": LIVE}, max_batch_size=4, max_wait_s=0.2)
    started = time.monotonic()
    put(batcher, "a", 0)
    threading.Timer(0.05, put, (batcher, "a", 1)).start()
    batch = batcher.take(block=True)
    assert indices(batch) == [("a", 0), ("a", 1)]
    assert time.monotonic() - started >= 0.2


def test_a_full_batch_does_not_wait():
    """Once max_batch_size crops are there, max_wait is over."""
    batcher = make_batcher({"a": LIVE}, max_batch_size=2, max_wait_s=60)
    put(batcher, "a", 0)
    threading.Timer(0.05, put, (batcher, "a", 1)).start()
    assert len(batcher.take(block=True)) == 2


def test_closing_drains_first_and_then_ends():
    """What waits is still judged; producers are told to stop; then take says None for ever."""
    batcher = make_batcher({"a": LIVE})
    in_hand = make_crop(batcher, "a", 1)
    put(batcher, "a", 0)
    batcher.close()
    with pytest.raises(Stopped):
        batcher.acquire("a")
    batcher.put(in_hand)
    assert indices(batcher.take(block=True)) == [("a", 0), ("a", 1)]
    assert batcher.take(block=True) is None
    assert batcher.take(block=False) is None


def test_a_crop_that_nobody_would_take_is_refused():
    """After the engine has drained, put raises instead of hiding a crop for ever."""
    batcher = make_batcher({"a": LIVE})
    late = make_crop(batcher, "a", 0)
    batcher.close()
    assert batcher.take(block=True) is None
    free = batcher.free
    with pytest.raises(Stopped):
        batcher.put(late)
    assert batcher.free == free + 1


def test_close_wakes_a_blocked_producer_and_a_blocked_engine():
    """Nobody is left waiting."""
    batcher = make_batcher({"file": QueueSpec(1, live=False)})
    put(batcher, "file", 0)
    outcome = []

    def produce():
        try:
            batcher.acquire("file")
        except Stopped:
            outcome.append("stopped")

    producer = threading.Thread(target=produce)
    producer.start()
    batcher.close()
    producer.join(10)
    assert outcome == ["stopped"]
    idle = make_batcher({"a": LIVE})
    taker = threading.Thread(target=lambda: outcome.append(idle.take(block=True)))
    taker.start()
    idle.close()
    taker.join(10)
    assert outcome == ["stopped", None]


@examples(60)
@given(st.lists(st.sampled_from(["put a", "put b", "take", "release"]), max_size=120), st.integers(1, 5))
def test_slots_and_crops_are_conserved(actions, max_batch_size):
    """Whatever the interleaving: each crop leaves once, in order per camera, and no slot has two owners."""
    queues = {"a": QueueSpec(3, live=True), "b": QueueSpec(2, live=True)}
    batcher = make_batcher(queues, max_batch_size)
    total = batcher.free
    counters, left, in_flight = Counter(), {"a": [], "b": []}, []
    for action in actions:
        if action.startswith("put"):
            camera = action[-1]
            displaced = put(batcher, camera, counters[camera])
            counters[camera] += 1
            if displaced is not None:
                left[camera].append(displaced.index)
        elif action == "take":
            if len(in_flight) == 2:
                batcher.release([crop.slot for crop in in_flight.pop(0)])
            batch = batcher.take(block=False)
            for crop in batch:
                left[crop.ticket.camera].append(crop.index)
            in_flight.append(batch)
        elif in_flight:
            batcher.release([crop.slot for crop in in_flight.pop(0)])
        held = [crop.slot.index for batch in in_flight for crop in batch]
        assert len(held) == len(set(held))
        assert batcher.free + batcher.waiting + len(held) == total
    for camera in "ab":
        assert left[camera] == list(range(len(left[camera])))
    assert batcher.waiting == sum(counters.values()) - sum(len(gone) for gone in left.values())
