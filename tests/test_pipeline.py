"""From a frame to an outcome: what is judged, what is refused, and that every ticket is settled once."""

import threading
import time

import numpy as np
import pytest
from journal_kit import eventually
from scripted_engine import EngineError, FatalEngineError, ScriptedEngine

from inspectd.config import CameraConfig, DecisionConfig
from inspectd.engine import runner
from inspectd.engine.batcher import Batcher, QueueSpec, slots_needed
from inspectd.engine.runner import EngineRunner
from inspectd.errors import Stopped
from inspectd.frame import Frame
from inspectd.model.manifest import ClassSpec, Manifest
from inspectd.model.preprocess import Preprocessor, PreprocessSpec
from inspectd.observe.ledger import Ledger
from inspectd.observe.logs import Counted
from inspectd.pipeline import CropProducer, Judge, RoiLane, captured_monotonic
from inspectd.verdict.decide import Decider, Origin

CLASSES = (ClassSpec(name="good", role="ok"), ClassSpec(name="bad", role="defect"))


class NoMetrics:
    def stage(self, name):
        return lambda seconds: None


class Bench:
    """One camera with two ROIs, one scripted engine, and the outcomes in a list."""

    def __init__(self, source="usb:0", queue_size=2, max_age_ms=60_000, max_batch_size=4, **engine):
        self.camera = CameraConfig(
            name="cam",
            source=source,
            queue_size=queue_size,
            max_age_ms=max_age_ms,
            rois=[{"name": "left", "box": [0, 0, 32, 32]}, {"name": "right", "box": [32, 0, 32, 32]}],
        )
        spec = PreprocessSpec(width=16, height=16)
        manifest = Manifest(
            format_version=1,
            architecture="resnet18",
            classes=CLASSES,
            preprocess=spec,
            files={},
        )
        origin = Origin("0" * 12, "c0nf19")
        self.engine = ScriptedEngine(size=(16, 16), max_batch_size=max_batch_size, **engine)
        queues = {"cam": QueueSpec(queue_size * 2, self.camera.live)}
        memory = self.engine.allocate(slots_needed(queues, max_batch_size, self.engine.depth))
        self.batcher = Batcher(memory, queues, max_batch_size)
        self.slots = self.batcher.free
        self.ledger = Ledger([("cam", "left"), ("cam", "right")])
        self.outcomes, self.failures = [], []
        self.arrived = threading.Condition()
        judge = Judge(origin, Decider(manifest, DecisionConfig()), self.publish, NoMetrics())
        self.runner = EngineRunner(
            "engine",
            self.engine,
            self.batcher,
            judge,
            on_batch=lambda n: None,
            on_failure=self.failures.append,
            trouble=Counted(),
        )
        lanes = [RoiLane(roi, origin, self.batcher, Preprocessor(spec)) for roi in self.camera.rois]
        self.producer = CropProducer(self.camera, lanes, self.ledger, self.publish, NoMetrics())

    def publish(self, outcome):
        with self.arrived:
            decision = outcome.decision
            self.ledger.verdict(outcome.ticket, decision.verdict, decision.reason or "")
            self.outcomes.append(outcome)
            self.arrived.notify_all()

    def wait_for(self, count):
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.outcomes) >= count, 20), len(self.outcomes)

    def frame(self, left=0, right=0, arrival=None):
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[:, :32], picture[:, 32:] = left, right
        return Frame(
            format="rgb24",
            width=64,
            height=48,
            planes=(picture,),
            matrix="bt709",
            full_range=True,
            arrival=time.monotonic() if arrival is None else arrival,
            captured_at=time.time(),
            clock="arrival",
        )

    def verdicts(self):
        return [(o.index, o.ticket.roi, o.decision.verdict, o.decision.reason) for o in self.outcomes]

    def balanced(self):
        return all(account.balanced for account in self.ledger.snapshot())


def test_each_roi_gets_the_verdict_of_its_own_pixels():
    """The left half good, the right half bad: two tickets, two verdicts, never swapped."""
    bench = Bench(queue_size=50)
    bench.runner.start()
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, (40, 2))
    for left, right in truth:
        bench.producer.inspect(bench.frame(int(left), int(right)))
    assert bench.runner.stop(10)
    got = {(index, roi): verdict for index, roi, verdict, _ in bench.verdicts()}
    for index, (left, right) in enumerate(truth):
        assert got[index, "left"] == ("pass", "fail")[left]
        assert got[index, "right"] == ("pass", "fail")[right]
    assert len(bench.outcomes) == 80
    assert bench.ledger.in_flight == 0
    assert bench.batcher.free == bench.slots
    assert bench.engine.closed


def test_overload_is_said_not_hidden():
    """With the engine busy the oldest crops give way, each as no_result(overload); the freshest are judged."""
    bench = Bench(queue_size=2)
    bench.engine.gate.clear()
    bench.runner.start()
    bench.producer.inspect(bench.frame())
    assert bench.engine.entered.wait(10)
    for _ in range(20):
        bench.producer.inspect(bench.frame())
        assert bench.balanced()
    bench.engine.gate.set()
    assert bench.runner.stop(10)
    overloaded = [index for index, _, _, reason in bench.verdicts() if reason == "overload"]
    judged = [index for index, _, verdict, _ in bench.verdicts() if verdict == "pass"]
    assert overloaded
    assert 20 in judged
    assert len(overloaded) + len(judged) == 42
    assert bench.ledger.in_flight == 0


def test_a_recording_is_never_dropped():
    """The same flood from a file: inspect() waits for the engine and everything is judged."""
    bench = Bench(source="file:clip.mp4", queue_size=1)
    bench.runner.start()
    for _ in range(60):
        bench.producer.inspect(bench.frame())
    assert bench.runner.stop(10)
    assert {verdict for _, _, verdict, _ in bench.verdicts()} == {"pass"}
    assert len(bench.outcomes) == 120


def test_a_late_verdict_is_stale_not_pass():
    """A crop that is older than max_age_ms when the engine gets to it, or when it answers, never passes."""
    bench = Bench(max_age_ms=50)
    bench.runner.start()
    bench.producer.inspect(bench.frame(arrival=time.monotonic() - 1))
    bench.wait_for(2)
    assert bench.engine.batches == []
    bench.engine.gate.clear()
    bench.producer.inspect(bench.frame())
    assert bench.engine.entered.wait(10)
    expires = time.monotonic() + 0.06
    while time.monotonic() < expires:
        threading.Event().wait(0.01)
    bench.engine.gate.set()
    assert bench.runner.stop(10)
    assert {reason for _, _, _, reason in bench.verdicts()} == {"stale"}
    assert len(bench.outcomes) == 4
    assert bench.batcher.free == bench.slots


def test_what_a_frame_had_waited_before_it_arrived_counts_as_age():
    """A backlog that alone is young enough to be judged, and a busy engine that alone is quick enough."""
    bench = Bench(max_age_ms=500)
    late = bench.frame(arrival=time.monotonic() - 0.3)
    late.waited_s = 0.3
    bench.runner.start()
    bench.producer.inspect(late)
    bench.wait_for(2)
    assert bench.runner.stop(10)
    assert {(verdict, reason) for _, _, verdict, reason in bench.verdicts()} == {("no_result", "stale")}


@pytest.mark.parametrize(("clock", "behind_s"), [("arrival", 0.0), ("rtcp", 0.1), ("rtcp", -5.0), ("driver", 9.0)])
def test_a_frame_out_of_a_backlog_answers_no_trigger_that_came_while_it_waited(clock, behind_s):
    """Whatever clock stamped it, and however wrong that is: it shows the part before."""
    frame = Bench().frame()
    frame.clock, frame.waited_s, frame.captured_at = clock, 0.3, time.time() - behind_s
    assert captured_monotonic(frame, max_age_s=0.5) <= frame.arrival - 0.3


def test_one_failed_batch_costs_only_its_own_crops():
    """An EngineError becomes no_result(engine_error) for that batch; the next is judged."""
    bench = Bench(max_batch_size=2)
    bench.engine.fail_next.append(EngineError("one bad batch"))
    bench.producer.inspect(bench.frame())  # before the engine runs, so that both crops make one batch
    bench.runner.start()
    bench.wait_for(2)
    bench.producer.inspect(bench.frame())
    assert bench.runner.stop(10)
    reasons = {index: reason for index, _, _, reason in bench.verdicts()}
    assert reasons[0] == "engine_error"
    assert reasons[1] is None
    assert not bench.failures


def test_failures_that_follow_one_another_are_told_until_a_batch_succeeds(monkeypatch):
    """Some within a second, or three with any pause between them; not a few, long after the last of them."""
    sick = True
    bench = Bench(answer=lambda pixels: np.array([np.nan if sick else 1, 0], np.float32), max_batch_size=2)
    bench.runner.start()
    assert not bench.runner.failing(time.monotonic())
    monkeypatch.setattr(runner, "LATE_S", 0.0)
    bench.producer.inspect(bench.frame())
    bench.wait_for(2)
    eventually(lambda: bench.runner.failing(time.monotonic()))
    monkeypatch.setattr(runner, "LATE_S", 60.0)
    assert not bench.runner.failing(time.monotonic()), "an accident"
    for _ in range(runner.FAILURES):
        bench.producer.inspect(bench.frame())
    eventually(lambda: bench.runner.failing(time.monotonic() + 1000))
    sick = False
    bench.producer.inspect(bench.frame())
    assert bench.runner.stop(10)
    assert not bench.runner.failing(time.monotonic())


def test_an_engine_that_fails_for_too_long_is_dead(monkeypatch):
    """Its failure is fatal: only a new process helps, if anything does."""
    monkeypatch.setattr(runner, "LATE_S", 0.0)
    monkeypatch.setattr(runner, "HANG_S", 0.0)
    bench = Bench(answer=lambda pixels: np.array([np.nan, 0], np.float32), max_batch_size=1)
    for _ in range(2):
        bench.producer.inspect(bench.frame())
    bench.runner.start()
    assert bench.runner.worker.join(10)  # by itself
    assert [type(err) for err in bench.failures] == [FatalEngineError]
    assert {reason for _, _, _, reason in bench.verdicts()} == {"engine_error"}
    assert bench.balanced()


def test_a_fatal_engine_error_answers_everything_and_ends():
    """No verdict from a dead engine: all that was with it or waiting is no_result(engine_error)."""
    bench = Bench(queue_size=4, max_batch_size=2)
    bench.engine.gate.clear()
    bench.runner.start()
    for _ in range(4):
        bench.producer.inspect(bench.frame())
    bench.engine.fail_next.append(FatalEngineError("device lost"))
    bench.engine.gate.set()
    bench.wait_for(8)
    assert bench.runner.stop(10)
    assert {reason for _, _, _, reason in bench.verdicts()} == {"engine_error"}
    assert [type(err) for err in bench.failures] == [FatalEngineError]
    with pytest.raises(Stopped):
        bench.producer.inspect(bench.frame())
    assert bench.ledger.in_flight == 0
    assert bench.ledger.snapshot()[0].dropped == {"shutdown": 1}


def test_scores_that_are_no_numbers_never_pass():
    """NaN from the device is an engine error of that crop."""
    bench = Bench(answer=lambda pixels: np.array([np.nan, 0], np.float32))
    bench.runner.start()
    bench.producer.inspect(bench.frame())
    assert bench.runner.stop(10)
    assert {reason for _, _, _, reason in bench.verdicts()} == {"engine_error"}


def test_a_refused_frame_is_answered_without_the_engine():
    """Corrupt, frozen and the like: every ROI gets no_result with that reason, and the index is used up."""
    bench = Bench()
    bench.producer.refuse(bench.frame(), "corrupt")
    bench.producer.skip(bench.frame(), "max_fps")
    assert bench.verdicts() == [(0, "left", "no_result", "corrupt"), (0, "right", "no_result", "corrupt")]
    account = bench.ledger.snapshot()[0]
    assert (account.captured, account.dropped, account.in_flight) == (2, {"max_fps": 1}, 0)


def test_a_frame_that_cannot_be_cropped_is_answered_and_the_error_is_raised():
    """A ROI outside the frame settles its ticket and keeps no slot."""
    bench = Bench()
    small = bench.frame()
    small.width, small.planes = 40, (small.planes[0][:, :40],)
    with pytest.raises(ValueError, match=r"does not fit"):
        bench.producer.inspect(small)
    assert [(roi, reason) for _, roi, _, reason in bench.verdicts()] == [("right", "engine_error")]
    assert bench.batcher.free == bench.slots - 1  # the left crop waits for the engine
    assert bench.balanced()


def test_stopping_mid_file_settles_every_ticket():
    """A producer blocked on a full queue is released by the stop, and its frame counted as dropped."""
    bench = Bench(source="file:clip.mp4", queue_size=1)
    bench.producer.inspect(bench.frame())

    def produce():
        with pytest.raises(Stopped):
            bench.producer.inspect(bench.frame())

    blocked = threading.Thread(target=produce)
    blocked.start()
    bench.batcher.close()
    blocked.join(10)
    assert not blocked.is_alive()
    assert bench.ledger.snapshot()[1].dropped == {"shutdown": 1}
    assert bench.balanced()
