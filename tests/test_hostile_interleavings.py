"""Slots, queue, engine, accounting and change-overs together: whatever comes between what, each frame has one fate."""

import threading
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from scripted_engine import EngineError, FatalEngineError, ScriptedEngine

from inspectd.config import CameraConfig, DecisionConfig
from inspectd.engine.batcher import Batcher, QueueSpec, slots_needed
from inspectd.engine.runner import EngineRunner
from inspectd.errors import Stopped
from inspectd.frame import Frame
from inspectd.model.manifest import ClassSpec, Manifest
from inspectd.model.preprocess import PreprocessSpec
from inspectd.observe.ledger import Ledger
from inspectd.observe.logs import Counted
from inspectd.pipeline import CropProducer, Judge, RoiLane
from inspectd.verdict.decide import Decider, Origin

ROIS = ("left", "middle", "right")
RECIPES = (("left", "right"), ("right",), ("middle", "right", "left"))
MANIFEST = Manifest(
    format_version=1,
    architecture="resnet18",
    classes=(ClassSpec(name="good", role="ok"), ClassSpec(name="bad", role="defect")),
    preprocess=PreprocessSpec(width=16, height=16),
    files={},
)


class CropError(Exception):
    pass


class NoMetrics:
    def stage(self, name):
        return lambda seconds: None


class ModelLineUp:
    """One engine that the test turns by hand, one step after the other, in place of its thread."""

    def __init__(self, line, number, rois):
        self.config = f"config-{number}"
        self.camera = CameraConfig(
            name="cam",
            source="usb:0",
            queue_size=2,
            rois=[{"name": name, "box": [ROIS.index(name) * 16, 0, 16, 16]} for name in rois],
        )
        self.engine = ScriptedEngine(size=(16, 16), max_batch_size=3, answer=self._answer)
        queues = {"cam": QueueSpec(2 * len(rois), live=True)}
        self.batcher = Batcher(
            self.engine.allocate(slots_needed(queues, 3, self.engine.depth)), queues, self.engine.max_batch_size
        )
        self.slots = self.batcher.free
        self.held = 0  # by the producer
        self.nan = False
        self.dead = self.ended = False
        origin = Origin("0" * 12, self.config)
        judge = Judge(origin, Decider(MANIFEST, DecisionConfig()), line.publish, NoMetrics())
        self.runner = EngineRunner(
            "engine", self.engine, self.batcher, judge, lambda size: None, lambda err: None, Counted()
        )
        self.lanes = [
            RoiLane(roi, origin, self.batcher, lambda frame, area, out: line.crop(self, frame, area, out))
            for roi in self.camera.rois
        ]

    def turn(self):
        """One turn of the engine's thread, where that would not wait."""
        if not self.ended and (self.batcher.waiting or self.engine.in_flight or self.batcher._closed):
            self.ended = not self.runner._turn()

    def run_out(self):
        """The engine's thread to its end, which is near because the batcher is closed or the device about to die."""
        if not self.ended:
            self.ended = True
            try:
                self.runner._run(threading.Event())
            except FatalEngineError:
                self.dead = True

    def die(self):
        if not self.ended and (self.batcher.waiting or self.engine.in_flight):
            self.engine.fail_next.clear()
            self.engine.fail_next.append(FatalEngineError("device lost"))
            self.run_out()

    def conserved(self):
        with_engine = sum(len(slots) for slots, _ in self.engine._pending)
        return self.dead or self.batcher.free + self.batcher.waiting + with_engine + self.held == self.slots

    def _answer(self, pixels):
        """What the pixels say; and the slot is of no use to anybody who reads it later."""
        label = int(pixels[0, 0, 0])
        pixels[:] = 255
        return np.full(2, np.nan, np.float32) if self.nan else np.eye(2, dtype=np.float32)[label] * 10


class ModelLine:
    """A camera, its producer, the ledger, and one line-up after the other; every outcome is held against the truth."""

    def __init__(self):
        self.ledger = Ledger([("cam", roi) for roi in RECIPES[0]])
        self.lineups = [ModelLineUp(self, 0, RECIPES[0])]
        self.producer = CropProducer(
            self.lineups[0].camera, self.lineups[0].lanes, self.ledger, self.publish, NoMetrics()
        )
        self.truth = []  # by frame index: the line-up in force, the label of each region, whether it may be judged
        self.told = Counter()
        self.midway = []  # what happens while a crop is being made

    @property
    def at_work(self):
        return self.lineups[-1]

    def publish(self, outcome):
        roi, decision = outcome.ticket.roi, outcome.decision
        lineup, labels, good = self.truth[outcome.index]
        self.ledger.verdict(outcome.ticket, decision.verdict, decision.reason or "")
        self.told[outcome.index, roi] += 1
        assert outcome.origin.config == lineup.config, "a verdict of another line-up"
        assert outcome.ticket.roi in [lane.roi.name for lane in lineup.lanes]
        if decision.verdict != "no_result":
            assert good, "a frame that was refused was judged"
            assert decision.verdict == ("pass", "fail")[labels[ROIS.index(roi)]], "a wrong verdict"

    def crop(self, lineup, frame, area, out):
        lineup.held += 1
        try:
            if self.midway:
                self.do(self.midway.pop())
            out[:] = frame.planes[0][0, area.x]
        finally:
            lineup.held -= 1

    def frame(self, labels, midway=()):
        self.midway = list(midway)
        self.truth.append((self.at_work, labels, True))
        try:
            self.producer.inspect(picture(labels))
        except Stopped:
            assert self.at_work.batcher._closed
        except CropError:
            pass

    def refuse(self, reason):
        self.truth.append((self.at_work, (), False))
        if reason == "max_fps":
            self.producer.skip(picture((0, 0, 0)), reason)
        else:
            self.producer.refuse(picture((0, 0, 0)), reason)

    def change_over(self, recipe):
        """As `Station.switch` does it, between two frames; the old line-up ends some time later."""
        old, new = self.at_work, ModelLineUp(self, len(self.lineups), RECIPES[recipe])
        self.lineups.append(new)
        old.batcher.close()
        self.ledger.inspect_only("cam", RECIPES[recipe])
        self.producer.adopt(new.camera, new.lanes)

    def do(self, action):
        match action:
            case "turn":
                self.at_work.turn()
            case "old ones turn":
                for lineup in self.lineups[:-1]:
                    lineup.turn()
            case "old ones end":
                for lineup in self.lineups[:-1]:
                    lineup.run_out()
            case "a batch fails":
                self.at_work.engine.fail_next.append(EngineError("once"))
            case "scores are no numbers":
                self.at_work.nan = not self.at_work.nan
            case "the device dies":
                self.at_work.die()
            case "stop":
                self.at_work.batcher.close()
            case "cannot be cropped":
                raise CropError
            case "corrupt" | "frozen" | "max_fps":
                self.refuse(action)
            case ("change over", recipe):
                self.change_over(recipe)
            case ("frame", labels, midway):
                self.frame(labels, midway)

    def check(self):
        for account in self.ledger.snapshot():
            assert account.balanced, account
            assert account.captured == len(self.truth)
        assert all(lineup.conserved() for lineup in self.lineups), "a slot is lost, or has two owners"

    def end(self):
        for lineup in self.lineups:
            lineup.batcher.close()
            lineup.run_out()
        self.check()
        assert self.ledger.in_flight == 0
        assert set(self.told.values()) <= {1}
        assert all(lineup.dead or lineup.batcher.free == lineup.slots for lineup in self.lineups)
        dropped = Counter()
        for account in self.ledger.snapshot():
            dropped.update(account.dropped)
        del dropped["not_in_recipe"]
        expected = sum(len(lineup.lanes) for lineup, _, _ in self.truth)
        assert self.told.total() + dropped.total() == expected, "a frame without a fate"


def picture(labels):
    """A frame whose every region shows its label, 0: good, 1: bad."""
    return Frame(
        format="gray",
        width=48,
        height=16,
        planes=(np.repeat(np.array([labels], np.uint8), 16, axis=1).repeat(16, axis=0),),
        matrix="bt601",
        full_range=True,
        arrival=time.monotonic(),
        captured_at=0.0,
        clock="arrival",
    )


MIDWAY = ("turn", "turn", "old ones turn", "stop", "the device dies", "cannot be cropped", "a batch fails")
LABELS = st.tuples(*[st.integers(0, 1)] * 3)
ACTIONS = st.one_of(
    st.tuples(st.just("frame"), LABELS, st.lists(st.sampled_from(MIDWAY), max_size=2)),
    st.tuples(st.just("frame"), LABELS, st.just([])),
    st.sampled_from(["turn", "turn", "corrupt", "frozen", "max_fps", "a batch fails", "scores are no numbers"]),
    st.sampled_from(["old ones turn", "old ones end"]),
    st.tuples(st.just("change over"), st.integers(0, len(RECIPES) - 1)),
)


@examples(300)
@given(st.lists(ACTIONS, max_size=40))
def test_whatever_comes_between_every_region_of_every_frame_has_one_fate_and_it_is_the_right_one(actions):
    """Frames, batches, faults, a dying device, stops in the middle of a crop, and recipes that change the regions."""
    line = ModelLine()
    for action in actions:
        line.do(action)
        line.check()
    line.end()


@pytest.mark.parametrize("recipe", range(len(RECIPES)))
def test_a_recipe_changed_while_crops_wait_leaves_them_to_the_model_they_were_made_for(recipe):
    """The old line-up judges what it has, late and after the new one's first verdicts."""
    line = ModelLine()
    line.frame((1, 0, 0))
    line.change_over(recipe)
    line.frame((0, 1, 1))
    for _ in range(3):  # submit, and collect when nothing more waits
        line.at_work.turn()
    assert line.told.total() == len(RECIPES[recipe])
    line.do("old ones end")
    line.end()
    assert line.told.total() == len(RECIPES[0]) + len(RECIPES[recipe])


@given(st.lists(st.one_of(st.lists(st.sampled_from(ROIS), unique=True), st.just("frame")), max_size=30))
def test_regions_that_come_and_go_keep_balanced_accounts(steps):
    """`inspect_only` in any order: each region's account has every frame, those before and beside its time dropped."""
    ledger, now, frames, inspected = Ledger([("cam", "left")]), ["left"], 0, Counter()
    for step in steps:
        if step == "frame":
            index, tickets = ledger.captured("cam")
            assert index == frames
            assert [ticket.roi for ticket in tickets] == now
            frames += 1
            inspected.update(now)
            for ticket in tickets[:1]:
                ledger.verdict(ticket, "pass", "")
        else:
            now = step
            ledger.inspect_only("cam", now)
        for account in ledger.snapshot():
            assert account.balanced
            assert account.captured == frames
            assert account.dropped.get("not_in_recipe", 0) == frames - inspected[account.roi]
