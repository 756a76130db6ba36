"""The queue between cameras and engine, under thousands of schedules of its threads."""

from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from hostile.interleaver import DeadlockError, Interleaver

from inspectd.engine import batcher as batcher_module
from inspectd.engine.batcher import Batcher, Crop, QueueSpec, slots_needed
from inspectd.errors import Stopped
from inspectd.frame import Box
from inspectd.observe.ledger import Ticket

DEPTH = 2  # batches that the engine keeps with the device
QUEUES = {"a": QueueSpec(2, live=True), "b": QueueSpec(1, live=True), "file": QueueSpec(2, live=False)}


class Schedule:
    """Two cameras, a recording, an engine, and somebody who closes: now, or when the others have made all they have."""

    def __init__(self, seed, monkeypatch):
        self.threads = Interleaver(seed)
        fake = SimpleNamespace(Lock=self.threads.lock, Condition=self.threads.condition)
        monkeypatch.setattr(batcher_module, "threading", fake)
        self.dice = self.threads.dice
        self.max_batch_size = self.dice.randint(1, 3)
        self.at_the_end = self.dice.random() < 0.5
        slots = slots_needed(QUEUES, self.max_batch_size, DEPTH)
        self.memory = np.zeros((slots, 1, 1, 1), np.uint8)
        self.batcher = Batcher(self.memory, QUEUES, self.max_batch_size, max_wait_s=self.dice.choice((0, 0, 0.001)))
        self.threads.on_timeout = self.timeout
        self.fates = defaultdict(list)  # by camera: each crop that was made, and what became of it
        self.made = Counter()
        self.position = {}  # of a crop among those that its camera made
        self.owned = set()  # slots that a producer has, or the engine
        self.producing = len(QUEUES)
        for camera in QUEUES:
            self.threads.start(camera, lambda camera=camera: self.produce(camera))
        self.threads.start("engine", self.engine)
        self.threads.start("closer", self.close)

    def timeout(self, condition):
        """Whoever waits for the first crop is told of it; only who waits for more may meet the clock."""
        if not self.batcher.max_wait_s:
            assert not self.batcher._waiting, "the engine slept on while a crop waited"
            assert not self.batcher._closed, "the engine slept on when all was over"

    def produce(self, camera):
        try:
            for index in range(self.dice.choice((0, 4, 12))):
                self.one(camera, index)
        except Stopped:
            assert self.batcher._closed
        self.producing -= 1

    def one(self, camera, index):
        slot = self.batcher.acquire(camera)
        self.own(slot)
        slot.pixels[:] = index + 1
        self.threads.pause()  # the crop is being made
        self.owned.remove(slot.index)
        if self.dice.random() < 0.1:
            self.batcher.give_back(slot)
            return
        self.position[camera, index] = self.made[camera]
        self.made[camera] += 1
        try:
            displaced = self.batcher.put(crop(camera, index, slot))
        except Stopped:
            self.fates[camera].append((index, "refused"))
            raise
        if displaced is not None:
            position = self.position[displaced.ticket.camera, displaced.index]
            assert position <= self.made[camera] - 1 - QUEUES[camera].capacity, "not the oldest gave way"
            self.fates[displaced.ticket.camera].append((displaced.index, "displaced"))

    def own(self, slot):
        assert slot.index not in self.owned, "a slot with two owners"
        self.owned.add(slot.index)

    def engine(self):
        """As the runner turns."""
        in_flight = []
        while (batch := self.batcher.take(block=not in_flight)) is not None or in_flight:
            assert len(batch or ()) <= self.max_batch_size
            for each in batch or ():
                self.own(each.slot)
                self.fates[each.ticket.camera].append((each.index, "judged"))
            in_flight += [batch] if batch else []
            self.pauses((1, 1, 60))  # now and then it is slow, and everything fills up
            if in_flight and (not batch or len(in_flight) == DEPTH):
                done = in_flight.pop(0)
                for each in done:
                    assert each.slot.pixels[0, 0, 0] == each.index + 1, "what is being judged was written into"
                    self.owned.remove(each.slot.index)
                self.batcher.release([each.slot for each in done])

    def pauses(self, counts):
        for _ in range(self.dice.choice(counts)):
            self.threads.pause()

    def close(self):
        while self.at_the_end and self.producing:
            self.threads.pause()
        self.pauses((0, 10, 30, 200))
        self.batcher.close()
        self.batcher.close()

    def check(self):
        """What must hold of every schedule, once it is over."""
        assert (self.batcher.free, self.batcher.waiting, self.owned) == (len(self.memory), 0, set())
        for camera, spec in QUEUES.items():
            fates = self.fates[camera]
            assert len({index for index, _ in fates}) == len(fates), "a crop with two fates"
            assert len(fates) == self.made[camera], "a crop without a fate"
            judged = [index for index, fate in fates if fate == "judged"]
            assert judged == sorted(judged), "out of order"
            told = Counter(fate for _, fate in fates)
            assert told["refused"] <= (not self.at_the_end)
            if spec.live:
                assert not self.threads.waits[camera, self.batcher._freed], "a live camera had to wait"
            else:
                assert not told["displaced"], "a recording has lost a frame"


def crop(camera, index, slot):
    return Crop(
        ticket=Ticket(camera, "roi"),
        slot=slot,
        area=Box(0, 0, 1, 1),
        index=index,
        pts=None,
        clock="arrival",
        captured_at=0.0,
        arrival=0.0,
        expires_at=np.inf,
        decode_s=0.0,
    )


FEW, MANY = range(150), pytest.param(range(150, 6000), marks=[pytest.mark.soak, pytest.mark.timeout(1800)])


@pytest.mark.parametrize("seeds", [FEW, MANY], ids=["few", "many"])
def test_under_any_schedule_each_crop_has_one_fate_in_order_and_nobody_waits_for_ever(monkeypatch, seeds):
    """Slots have one owner, live cameras never wait, a recording loses nothing, and closing ends everybody."""
    fates = Counter()
    for seed in seeds:
        try:
            schedule = Schedule(seed, monkeypatch)
            schedule.threads.run()
            schedule.check()
        except AssertionError as err:
            err.add_note(f"with seed {seed}")
            raise
        fates.update(fate for each in schedule.fates.values() for _, fate in each)
    assert min(fates[fate] for fate in ("judged", "displaced", "refused")) > 3, "the schedules come into every corner"


def test_a_deadlock_is_found():
    """The checker itself: two locks taken in either order, by one schedule or another."""
    ended = Counter()
    for seed in range(50):
        threads = Interleaver(seed)
        one, two = threads.lock(), threads.lock()

        def both(first, second):
            with first, second:
                pass

        threads.start("forth", lambda one=one, two=two: both(one, two))
        threads.start("back", lambda one=one, two=two: both(two, one))
        try:
            threads.run()
            ended["well"] += 1
        except DeadlockError:
            ended["deadlock"] += 1
    assert min(ended["well"], ended["deadlock"]) > 3
