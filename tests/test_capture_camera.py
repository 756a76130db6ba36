"""The camera supervisor: retry, stalls, hung threads, stopping. Real threads, scripted sources, a clock by hand."""

import queue
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media import write_clip
from structlog.testing import capture_logs

from inspectd.capture import camera as camera_module
from inspectd.capture.backoff import Backoff
from inspectd.capture.camera import MAX_ABANDONED, Camera
from inspectd.capture.probe import check_rois, probe
from inspectd.capture.refusals import Refusals
from inspectd.capture.source import Source
from inspectd.config import CameraConfig
from inspectd.errors import CaptureError, ConfigError, InspectdError, Stopped
from inspectd.frame import Frame
from inspectd.workers import HANG_S, LATE_S

WAIT_S = 20.0
"""For what happens at once, unless it never happens."""
CONNECT_S, STALL_S = 5.0, 3.0


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Script(Source):
    """Does what the test puts into its queue: a frame is yielded, an exception raised, a function called."""

    def __init__(self):
        self.steps = queue.Queue()
        self.opened, self.closed, self.interrupted = threading.Event(), threading.Event(), threading.Event()
        self.on_open = lambda: None
        self.on_interrupt = lambda: self.steps.put(Stopped("interrupted"))

    def open(self):
        self.on_open()
        self.opened.set()

    def frames(self):
        while (step := self.steps.get()) is not None:
            if isinstance(step, Exception):
                raise step
            if callable(step):
                step()
            else:
                yield step

    def interrupt(self):
        self.interrupted.set()
        self.on_interrupt()

    def close(self):
        self.closed.set()


class Sink:
    def __init__(self):
        self.taken = []  # (kind, frame)
        self.changed = threading.Condition()
        self.hold = lambda: None

    def _take(self, kind, frame):
        self.hold()
        with self.changed:
            self.taken.append((kind, frame))
            self.changed.notify_all()

    def inspect(self, frame):
        self._take("inspect", frame)

    def refuse(self, frame, reason):
        self._take(reason, frame)

    def skip(self, frame, reason):
        self._take(reason, frame)

    def wait_for(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.taken) >= count, WAIT_S), self.kinds
        return self.kinds

    @property
    def kinds(self):
        return [kind for kind, _ in self.taken]


class Metrics:
    def __init__(self):
        self.arrivals, self.ups, self.reconnects, self.decodes = [], [], [], []

    def frame_arrived(self, camera, at_monotonic):
        self.arrivals.append(at_monotonic)

    def camera_up(self, camera, up):
        self.ups.append(up)

    def reconnect(self, camera, reason):
        self.reconnects.append(reason)

    def image(self, camera, seen):
        pass

    def stage(self, name):
        return {"decode": self.decodes.append}[name]


class Rig:
    """A camera with everything around it recorded. Sources are made in the order of `sources`, then new ones."""

    def __init__(self, source="conveyor:", sources=(), **changes):
        changes = {"connect_timeout_s": CONNECT_S, "stall_timeout_s": STALL_S, "frozen_after_s": 0} | changes
        self.config = CameraConfig(name="cam", source=source, rois=[{"name": "a", "box": [0, 0, 16, 16]}], **changes)
        self.clock, self.sink, self.metrics = Clock(), Sink(), Metrics()
        self.statuses = []
        self.changed = threading.Condition()
        self.prepared = list(sources)
        self.made = []
        self.camera = Camera(self.config, self.sink, self.metrics, self._on_status, self._make_source, clock=self.clock)

    def _on_status(self, name, state, reason):
        with self.changed:
            self.statuses.append(state if reason is None else f"{state} {reason}")
            self.changed.notify_all()

    def _make_source(self, config):
        source = self.prepared[len(self.made)] if len(self.made) < len(self.prepared) else Script()
        with self.changed:
            self.made.append(source)
            self.changed.notify_all()
        return source

    def source(self, number):
        """The source of that attempt, once it is open."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.made) > number, WAIT_S)
        source = self.made[number]
        assert source.opened.wait(WAIT_S)
        self.until(lambda: self.camera._generation.opened_at is not None)
        return source

    def wait_for_status(self, status):
        with self.changed:
            assert self.changed.wait_for(lambda: status in self.statuses, WAIT_S), self.statuses

    def until(self, condition):
        """For the few things that nobody announces."""
        limit = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < limit
            time.sleep(0.001)

    def frame(self, **changes):
        luma = np.random.default_rng().integers(0, 255, (32, 32), np.uint8)
        fields = {
            "format": "gray", "width": 32, "height": 32, "planes": (luma,), "matrix": "bt709", "full_range": True,
            "arrival": self.clock.now, "captured_at": 0.0, "clock": "arrival", "decode_s": 0.004,
        }  # fmt: skip
        return Frame(**(fields | changes))

    def show(self, source, count=1, **changes):
        """Let the source yield frames, and wait until they are through."""
        before = len(self.sink.taken)
        for _ in range(count):
            source.steps.put(self.frame(**changes))
        self.sink.wait_for(before + count)
        self.until(lambda: not self.camera._generation.delivering)

    def pass_time(self, seconds, step=0.5):
        """Let time go by as the main loop sees it."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + step)
            self.camera.supervise()

    def thread_gone(self):
        worker = self.camera._generation.worker
        self.until(lambda: not worker.alive)


@contextmanager
def rig(*args, **kwargs):
    """A started rig; at the end everything that was made is let go, and no thread is left."""
    rig = Rig(*args, **kwargs)
    releases = []
    rig.hang = lambda: _hang(releases)
    rig.camera.start()
    try:
        yield rig
    finally:
        rig.camera.signal()
        for release in releases:
            release.set()
        for source in rig.made:
            source.steps.put(Stopped("test over"))
        rig.until(lambda: not any(thread.name == "capture-cam" for thread in threading.enumerate()))


def _hang(releases):
    """A function that no interrupt ends, only the test."""
    release = threading.Event()
    releases.append(release)

    def hang():
        assert release.wait(WAIT_S * 3)

    hang.release = release
    return hang


def test_a_camera_is_starting_then_ready_with_its_first_frame():
    with rig() as r:
        source = r.source(0)
        assert (r.camera.state, r.camera.reason) == ("starting", None)
        r.show(source, 3)
        assert r.statuses == ["starting", "ready"]
        assert r.metrics.ups == [False, True]
        assert r.sink.kinds == ["inspect"] * 3
        assert r.metrics.arrivals == [r.clock.now] * 3
        assert r.metrics.decodes == [0.004] * 3
        assert r.metrics.reconnects == []


def test_every_captured_frame_goes_to_the_sink_exactly_once_by_its_admission():
    with rig(max_fps=10) as r:
        source = r.source(0)
        r.show(source)
        r.clock.now += 0.01
        r.show(source)
        r.clock.now += 0.1
        r.show(source, corrupt=True)
        r.clock.now += 0.1
        r.show(source, width=16, planes=(np.zeros((32, 16), np.uint8),))
        r.clock.now += 0.7
        r.show(source, arrival=r.clock.now - 0.6)
        assert r.sink.kinds == ["inspect", "max_fps", "corrupt", "resized", "stale"]
        assert len(r.metrics.arrivals) == 5


class TestRetry:
    def test_a_source_that_fails_is_tried_again_and_the_camera_comes_back(self):
        refused = Script()
        refused.on_open = lambda: (_ for _ in ()).throw(CaptureError("refused", "nobody listens"))
        with rig(sources=[refused]) as r:
            r.wait_for_status("fault refused")
            r.thread_gone()
            assert refused.closed.is_set()
            r.pass_time(1.0)
            r.show(r.source(1))
            assert r.statuses == ["starting", "fault refused", "ready"]
            assert r.metrics.ups == [False, False, True]
            assert r.metrics.reconnects == ["refused"]

    def test_no_attempt_is_made_before_its_time(self):
        with rig() as r:
            r.source(0).steps.put(CaptureError("ended", "gone"))
            r.wait_for_status("fault ended")
            r.thread_gone()
            r.pass_time(0.1, step=0.05)
            assert len(r.made) == 1
            r.pass_time(0.3, step=0.05)
            assert r.source(1)

    def test_the_same_failure_again_is_counted_but_is_no_news(self):
        with rig() as r, capture_logs() as logs:
            for attempt in range(6):
                r.source(attempt).steps.put(CaptureError("ended", "gone"))
                r.thread_gone()
                r.pass_time(1.0)
            assert r.statuses == ["starting", "fault ended"]
            assert r.metrics.reconnects == ["ended"] * 6
            assert [entry["event"] for entry in logs] == ["camera_fault"]

    def test_the_end_of_a_live_stream_is_a_disconnect(self):
        with rig() as r:
            r.source(0).steps.put(None)
            r.wait_for_status("fault ended")
            assert not r.camera.finished

    def test_attempts_grow_rarer_until_a_connection_was_healthy(self):
        """Eight failures: the last waits about a second. After ten good seconds the wait is short again."""
        with rig() as r:
            for attempt in range(8):
                r.source(attempt).steps.put(CaptureError("ended", "gone"))
                r.thread_gone()
                r.pass_time(1.0)
            source = r.source(8)
            for _ in range(12):
                r.show(source)
                r.pass_time(1.0)
            source.steps.put(CaptureError("ended", "gone"))
            r.thread_gone()
            r.pass_time(0.25, step=0.05)
            assert r.source(9)

    def test_a_wrong_password_is_not_tried_again_at_once(self):
        with rig() as r:
            r.source(0).steps.put(CaptureError("auth", "unauthorised"))
            r.thread_gone()
            r.pass_time(29)
            assert len(r.made) == 1
            r.pass_time(1)
            assert r.source(1)

    def test_an_unexpected_exception_is_logged_once_with_its_traceback_and_tried_again(self):
        with capture_logs() as logs, rig() as r:
            r.source(0).steps.put(ZeroDivisionError("ours"))
            r.thread_gone()
            assert r.statuses == ["starting", "fault internal"]
            r.pass_time(1.0)
            r.show(r.source(1))
        faults = [entry for entry in logs if entry["event"] == "camera_fault"]
        assert len(faults) == 1
        assert isinstance(faults[0]["exc_info"], ZeroDivisionError)

    def test_a_sink_that_fails_is_an_internal_fault_not_a_silent_end(self):
        with rig() as r:
            r.sink.hold = lambda: 1 // 0
            r.source(0).steps.put(r.frame())
            r.wait_for_status("fault internal")
            r.thread_gone()
            r.sink.hold = lambda: None
            r.pass_time(1.0)
            r.show(r.source(1))
            assert r.camera.state == "ready"

    def test_a_secret_that_cannot_be_read_is_a_fault_of_the_settings(self):
        with rig() as r:
            r.source(0).steps.put(ConfigError("credentials_file: cannot be read"))
            r.wait_for_status("fault settings")

    def test_credentials_in_a_message_are_not_logged(self):
        with capture_logs() as logs, rig() as r:
            r.source(0).steps.put(CaptureError("refused", "rtsp://user:secret@camera/1: refused"))
            r.thread_gone()
        assert "rtsp://***@camera/1" in str(logs)
        assert "secret" not in str(logs)

    def test_a_thread_that_ends_without_a_word_is_replaced(self):
        with rig() as r:
            r.source(0).steps.put(Stopped("by nobody we know"))
            r.thread_gone()
            r.camera.supervise()
            assert r.statuses == ["starting", "fault internal"]
            r.pass_time(1.0)
            assert r.source(1)

    def test_the_first_frame_after_a_reconnect_takes_the_same_path(self):
        """Gate included: the size of before still counts."""
        with rig() as r:
            r.show(r.source(0))
            r.source(0).steps.put(CaptureError("ended", "gone"))
            r.thread_gone()
            r.pass_time(1.0)
            r.show(r.source(1), width=64, planes=(np.zeros((32, 64), np.uint8),))
            assert r.sink.kinds == ["inspect", "resized"]

    def test_a_reconnect_starts_the_clocks_of_the_gate_anew(self):
        """Even if the stream's times seem to go on: nothing is known of what the new connection has queued."""
        with rig("rtsp://camera/1") as r:
            for _ in range(40):
                r.show(r.source(0), pts=r.clock.now - 7)
                r.pass_time(0.04, step=0.04)
            assert r.camera.state == "ready"
            r.source(0).steps.put(CaptureError("ended", "gone"))
            r.thread_gone()
            r.pass_time(1.0)
            r.show(r.source(1), pts=r.clock.now - 7)
            assert r.sink.kinds[-1] == "stale"
            for _ in range(40):
                r.pass_time(0.04, step=0.04)
                r.show(r.source(1), pts=r.clock.now - 7)
            assert r.sink.kinds[-1] == "inspect"
            assert r.statuses == ["starting", "ready", "fault ended", "ready"]


class TestFinished:
    def test_a_recording_played_to_its_end_is_finished_and_not_repeated(self):
        with rig("file:clip.mp4") as r:
            source = r.source(0)
            r.show(source, 3)
            source.steps.put(None)
            r.thread_gone()
            assert r.camera.finished
            assert r.statuses == ["starting", "ready", "fault finished"]
            r.pass_time(120)
            assert len(r.made) == 1
            assert r.camera.join(WAIT_S)

    def test_a_conveyor_with_a_number_of_parts_finishes_too(self):
        with rig("conveyor:?frames=3") as r:
            r.source(0).steps.put(CaptureError("finished", "3 frames shown"))
            r.thread_gone()
            assert r.camera.finished

    def test_finished_comes_after_the_last_frame_was_taken(self):
        with rig("file:clip.mp4") as r:
            taken_first = []
            r.sink.hold = lambda: taken_first.append(r.camera.finished)
            source = r.source(0)
            source.steps.put(r.frame())
            source.steps.put(None)
            r.thread_gone()
            assert taken_first == [False]
            assert r.camera.finished


class TestSilence:
    def test_a_stalled_stream_is_a_fault_within_the_limit_and_is_opened_again(self):
        with rig() as r:
            r.show(r.source(0))
            r.pass_time(STALL_S)
            assert r.camera.state == "ready"
            r.pass_time(0.2, step=0.1)
            assert r.statuses == ["starting", "ready", "fault stall"]
            assert r.metrics.ups[-1] is False
            assert r.made[0].interrupted.is_set()
            r.thread_gone()
            r.pass_time(1.0)
            r.show(r.source(1))
            assert r.camera.state == "ready"
            assert r.metrics.reconnects == ["stall"]
            assert r.camera.abandoned == 0

    def test_a_stream_that_opens_but_never_begins_is_a_stall(self):
        with rig() as r:
            r.source(0)
            r.pass_time(STALL_S + 0.5)
            assert r.statuses == ["starting", "fault stall"]

    def test_a_source_that_hangs_in_open_is_abandoned_and_replaced(self):
        hung = Script()
        release = threading.Event()
        hung.on_open = lambda: release.wait(WAIT_S * 3)
        hung.on_interrupt = lambda: None
        with rig(sources=[hung]) as r:
            r.until(lambda: r.made)
            r.pass_time(CONNECT_S + 1.0)
            assert r.statuses == ["starting"]
            r.pass_time(0.5)
            assert r.statuses == ["starting", "fault timeout"]
            assert hung.interrupted.is_set()
            r.pass_time(2.0)
            assert r.statuses == ["starting", "fault timeout", "fault hung"]
            assert r.camera.abandoned == 1
            r.show(r.source(1))
            assert r.camera.state == "ready"
            assert r.metrics.reconnects == ["hung"]
            release.set()
            r.until(lambda: r.camera.abandoned == 0)
            assert hung.closed.is_set()

    def test_a_hung_read_that_wakes_up_late_delivers_nothing(self):
        """Its frame is from another time: not judged, not refused, not counted, and no status changes."""
        with rig() as r:
            old = r.source(0)
            r.show(old)
            hang = r.hang()
            old.steps.put(hang)
            old.on_interrupt = lambda: None
            r.pass_time(STALL_S + 3)
            assert r.statuses == ["starting", "ready", "fault stall", "fault hung"]
            r.show(r.source(1))
            assert r.camera.abandoned == 1
            for _ in range(3):
                old.steps.put(r.frame())
            hang.release.set()
            assert old.closed.wait(WAIT_S)
            r.until(lambda: r.camera.abandoned == 0)
            r.show(r.made[1])
            assert r.sink.kinds == ["inspect"] * 3
            assert len(r.metrics.arrivals) == 3
            assert r.statuses == ["starting", "ready", "fault stall", "fault hung", "ready"]

    def test_a_retired_thread_delivers_nothing_though_its_replacement_has_not_begun(self):
        """From the moment of the fault on, not only once a new thread runs."""
        with rig() as r:
            old = r.source(0)
            r.show(old)
            old.on_interrupt = lambda: old.steps.put(r.frame())  # awake, and with a frame
            r.pass_time(STALL_S + 0.5)
            r.thread_gone()
            assert r.sink.kinds == ["inspect"]
            assert r.statuses == ["starting", "ready", "fault stall"]

    def test_a_thread_retired_between_its_last_look_and_its_delivery_delivers_nothing(self):
        """The race itself: it saw no stop, then it was retired, then it comes with its frame."""
        with rig() as r:
            r.show(r.source(0))
            old = r.camera._generation
            r.pass_time(STALL_S + 0.5)
            assert old.retired
            assert not r.camera.deliver(old, r.frame())
            assert not r.camera.opened(old)
            assert r.sink.kinds == ["inspect"]
            assert r.statuses == ["starting", "ready", "fault stall"]

    def test_an_error_of_a_retired_source_changes_nothing(self):
        with rig() as r:
            old = r.source(0)
            old.on_interrupt = lambda: old.steps.put(RuntimeError("torn down in the middle"))
            r.pass_time(STALL_S + 0.5)
            r.thread_gone()
            assert r.statuses == ["starting", "fault stall"]

    def test_a_source_that_hangs_in_close_is_abandoned(self):
        hung = Script()
        with rig(sources=[hung]) as r:
            hung.close = r.hang()
            r.source(0).steps.put(CaptureError("ended", "gone"))
            r.wait_for_status("fault ended")
            r.pass_time(2.5)
            assert r.statuses == ["starting", "fault ended", "fault hung"]
            r.show(r.source(1))

    def test_too_many_abandoned_threads_end_the_process(self):
        with rig() as r:
            hang = r.hang()

            def hang_every_source():
                for attempt in range(MAX_ABANDONED + 1):
                    source = r.source(attempt)
                    source.on_interrupt = lambda: None
                    source.steps.put(hang)
                    source.steps.put(Stopped("awake at last"))
                    assert r.camera.abandoned == attempt
                    r.pass_time(STALL_S + 0.5)
                    r.pass_time(1.0)

            with pytest.raises(InspectdError, match="camera cam: 9 capture threads hang"):
                hang_every_source()
            hang.release.set()
            r.until(lambda: r.camera.abandoned == 0)
            r.camera.supervise()

    def test_time_in_which_our_own_process_did_not_run_is_not_the_cameras_silence(self):
        """After 30 s of SIGSTOP the main loop may come first: no stall, the frames are there already."""
        with rig() as r:
            r.show(r.source(0))
            r.pass_time(0.5)
            r.pass_time(30, step=30)
            assert r.camera.state == "ready"
            r.pass_time(STALL_S)
            assert r.camera.state == "fault"

    def test_a_main_loop_that_is_always_late_still_finds_a_stall(self):
        with rig() as r:
            r.show(r.source(0))
            r.pass_time(20, step=2)
            assert "fault stall" in r.statuses

    def test_an_interrupt_that_fails_does_not_reach_the_main_loop(self):
        with rig() as r, capture_logs() as logs:
            source = r.source(0)

            def fail():
                raise OSError("bad descriptor")

            source.on_interrupt = fail
            r.pass_time(STALL_S + 0.5)
            assert r.statuses[-1] == "fault stall"
            assert "interrupt_failed" in [entry["event"] for entry in logs]


class TestSlowSink:
    def test_a_recording_that_waits_for_the_engine_is_no_stall(self):
        with rig("file:clip.mp4") as r:
            source = r.source(0)
            r.sink.hold = r.hang()
            source.steps.put(r.frame())
            r.until(lambda: r.camera._generation.delivering)
            r.pass_time(STALL_S * 20)
            assert r.statuses == ["starting", "ready"]
            assert not source.interrupted.is_set()
            r.sink.hold.release.set()
            r.sink.wait_for(1)
            r.until(lambda: not r.camera._generation.delivering)
            r.pass_time(STALL_S)
            assert r.camera.state == "ready"  # the wait counts from the end of the delivery

    def test_a_live_camera_whose_frame_is_not_taken_is_a_fault_but_not_replaced(self):
        with rig() as r:
            source = r.source(0)
            r.sink.hold = r.hang()
            source.steps.put(r.frame())
            r.until(lambda: r.camera._generation.delivering)
            r.pass_time(STALL_S + LATE_S + HANG_S - 0.5)
            assert r.statuses == ["starting", "ready", "fault hung"]
            assert len(r.made) == 1
            r.sink.hold.release.set()
            r.sink.wait_for(1)
            r.show(source)
            assert r.camera.state == "ready"
            assert r.sink.kinds == ["inspect", "inspect"]

    def test_a_live_camera_whose_frame_is_never_taken_ends_the_process(self):
        with rig() as r:
            source = r.source(0)
            r.sink.hold = r.hang()
            source.steps.put(r.frame())
            r.until(lambda: r.camera._generation.delivering)
            with pytest.raises(InspectdError, match="a frame has not been taken for"):
                r.pass_time(STALL_S + LATE_S + HANG_S + 1.0)
            r.sink.hold.release.set()

    def test_a_pause_before_a_frame_is_not_counted_as_time_in_the_sink(self):
        with rig() as r:
            source = r.source(0)
            r.pass_time(STALL_S - 0.1)
            r.sink.hold = r.hang()
            source.steps.put(r.frame())
            r.until(lambda: r.camera._generation.delivering)
            r.pass_time(1.0)
            assert r.statuses == ["starting", "ready"]


class TestUnfit:
    """Frames arrive, but none may be judged."""

    def test_a_frozen_picture_is_a_fault_until_it_changes(self):
        with rig(frozen_after_s=2) as r:
            still = (np.zeros((32, 32), np.uint8),)
            for _ in range(5):
                r.show(r.source(0), planes=still)
                r.pass_time(0.5)
            r.show(r.source(0), planes=still)
            assert r.statuses == ["starting", "ready", "fault frozen"]
            assert r.metrics.ups == [False, True, False]
            r.show(r.source(0))
            assert r.camera.state == "ready"

    def test_a_changed_size_is_a_fault_after_a_second_and_the_log_says_what_is_wrong(self):
        with rig() as r, capture_logs() as logs:
            source = r.source(0)
            r.show(source)
            for _ in range(3):
                r.pass_time(0.5)
                r.show(source, width=16, planes=(np.zeros((32, 16), np.uint8),))
            assert r.statuses == ["starting", "ready", "fault resized"]
            fault = next(entry for entry in logs if entry["event"] == "camera_fault")
            assert fault["detail"] == "the frame is 16x32, expected 32x32"

    def test_single_bad_frames_are_no_fault_but_are_summarised_once_a_second(self):
        with capture_logs() as logs, rig() as r:
            source = r.source(0)
            for _ in range(10):
                r.show(source)
                r.show(source, 3, corrupt=True)
                r.pass_time(0.1, step=0.1)
            assert r.statuses == ["starting", "ready"]
            r.pass_time(0.5, step=0.1)
        refused = [entry for entry in logs if entry["event"] == "frames_refused"]
        assert len(refused) == 1
        assert refused[0]["corrupt"] >= 27

    @pytest.mark.parametrize(("change", "reason"), [({"corrupt": True}, "decode"), ({"arrival": 0.0}, "stale")])
    def test_nothing_but_stale_or_corrupt_frames_ends_in_a_new_connection(self, change, reason):
        with rig() as r:
            for _ in range(10):
                r.show(r.source(0), **change)
                r.pass_time(1.0)
            assert r.camera.state == "fault"
            assert len(r.made) == 1
            r.source(0).steps.put(r.frame(**change))
            r.thread_gone()
            r.pass_time(1.0)
            r.show(r.source(1))
            assert r.metrics.reconnects == [reason]
            assert r.camera.state == "ready"

    def test_a_recording_with_nothing_but_damage_is_still_played_to_its_end(self):
        with rig("file:clip.mp4") as r:
            for _ in range(15):
                r.show(r.source(0), corrupt=True)
                r.pass_time(1.0)
            r.source(0).steps.put(None)
            r.thread_gone()
            assert r.camera.finished
            assert r.sink.kinds == ["corrupt"] * 15

    def test_refusals_for_changing_reasons_change_the_status_at_most_once_a_second(self):
        with rig() as r:
            for number in range(100):
                change = {"corrupt": True} if number % 2 else {"arrival": 0.0}
                r.show(r.source(0), **change)
                r.pass_time(0.05, step=0.05)
            assert 1 <= len(r.statuses) - 1 <= 5

    def test_summaries_grow_rarer_while_the_trouble_lasts_and_start_anew_after_it(self):
        refusals = Refusals(0.0)
        told = []
        for second in range(1000):
            refusals.count("frozen", second)
            if counts := refusals.summary(second):
                told.append((second, counts["frozen"]))
        assert [second for second, _ in told][:4] == [1, 3, 7, 15]
        assert sum(count for _, count in told) >= 1000 - 60
        assert len(told) < 25
        assert refusals.summary(1061) is not None
        assert refusals.summary(1122) is None  # a quiet minute
        refusals.count("frozen", 1122.5)
        assert refusals.summary(1123.1) == {"frozen": 1}


class TestStop:
    def test_stop_while_blocked_in_a_read(self):
        with rig() as r:
            r.source(0)
            r.camera.signal()
            r.camera.signal()
            assert r.camera.join(WAIT_S)
            assert r.made[0].closed.is_set()
            assert r.statuses == ["starting"]

    def test_stop_while_blocked_in_open(self):
        source = Script()
        begun, release = threading.Event(), threading.Event()

        def block():
            begun.set()
            assert release.wait(WAIT_S)
            raise Stopped("interrupted")

        source.on_open, source.on_interrupt = block, release.set
        with rig(sources=[source]) as r:
            assert begun.wait(WAIT_S)
            r.camera.signal()
            assert r.camera.join(WAIT_S)
            assert r.statuses == ["starting"]

    def test_stop_before_the_source_is_made_opens_nothing(self):
        with rig() as r:
            r.source(0).steps.put(CaptureError("ended", "gone"))
            r.thread_gone()
            hang = r.hang()
            make = r.camera._make_source
            r.camera._make_source = lambda config: (hang(), make(config))[1]
            r.pass_time(1.0)
            r.camera.signal()
            hang.release.set()
            assert r.camera.join(WAIT_S)
            assert not r.made[1].opened.is_set()

    def test_stop_between_two_attempts(self):
        with rig() as r:
            r.source(0).steps.put(CaptureError("ended", "gone"))
            r.thread_gone()
            r.camera.signal()
            assert r.camera.join(0)
            r.pass_time(10)
            assert len(r.made) == 1

    def test_a_frame_in_the_sink_is_finished_and_none_follows(self):
        with rig("file:clip.mp4") as r:
            r.sink.hold = r.hang()
            for _ in range(3):
                r.source(0).steps.put(r.frame())
            r.until(lambda: r.camera._generation.delivering)
            r.camera.signal()
            assert not r.camera.join(0.01)
            r.sink.hold.release.set()
            assert r.camera.join(WAIT_S)
            assert r.sink.kinds == ["inspect"]

    def test_a_thread_that_does_not_stop_delivers_nothing_after_join_gave_up(self):
        with rig() as r:
            source = r.source(0)
            source.on_interrupt = lambda: None
            hang = r.hang()
            source.steps.put(hang)
            r.camera.signal()
            assert not r.camera.join(0.01)
            r.camera._generation.worker.stopping.clear()  # even a thread that missed the signal
            source.steps.put(r.frame())
            hang.release.set()
            r.thread_gone()
            assert r.sink.kinds == []

    def test_a_sink_that_closes_first_ends_the_thread_without_a_fault(self):
        with rig() as r:
            release = threading.Event()

            def closing():
                assert release.wait(WAIT_S)
                raise Stopped("the batcher is closed")

            r.sink.hold = closing
            r.source(0).steps.put(r.frame())
            r.until(lambda: r.camera._generation.delivering)
            r.camera.signal()
            release.set()
            assert r.camera.join(WAIT_S)
            assert r.statuses == ["starting", "ready"]

    def test_a_camera_that_was_never_started_can_be_stopped(self):
        camera = Rig().camera
        camera.supervise()
        camera.signal()
        assert camera.join(0)

    def test_an_abandoned_thread_is_not_waited_for(self):
        with rig() as r:
            source = r.source(0)
            source.on_interrupt = lambda: None
            source.steps.put(r.hang())
            r.pass_time(STALL_S + 0.5)
            r.camera._retry_at = float("inf")
            r.pass_time(2)
            assert r.camera.abandoned == 1
            r.camera.signal()
            assert r.camera.join(WAIT_S)


@given(failures=st.integers(1, 30), draw=st.floats(0, 1))
def test_backoff_doubles_up_to_its_limit_and_never_retries_at_once(failures, draw):
    backoff = Backoff(0.25, 5.0, lambda low, high: low + (high - low) * draw)
    delays = [backoff.next_s() for _ in range(failures)]
    for number, delay in enumerate(delays):
        ceiling = min(5.0, 0.25 * 2**number)
        assert ceiling / 2 <= delay <= ceiling
    backoff.reset()
    assert backoff.next_s() <= 0.25


def test_even_the_longest_wait_leaves_time_to_be_back_within_five_seconds():
    """Wait, connection and a key frame of up to two seconds, and a second for the clock to settle."""
    assert camera_module.RETRY_LIMIT_S + 2.0 + 1.0 < 5.0


def test_a_real_recording_is_delivered_frame_by_frame_to_its_end(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 40, size=(64, 48))
    r = Rig(f"file:{clip}")
    camera = Camera(r.config, r.sink, r.metrics, r._on_status)
    camera.start()
    r.wait_for_status("fault finished")
    assert camera.finished
    assert camera.join(WAIT_S)
    assert r.sink.kinds == ["inspect"] * 40
    assert [frame.pts for _, frame in r.sink.taken] == pytest.approx([n / 30 for n in range(40)])


def test_a_real_conveyor_runs_until_it_is_stopped():
    r = Rig("conveyor:?width=320&height=240&fps=100")
    camera = Camera(r.config, r.sink, r.metrics, r._on_status)
    camera.start()
    assert set(r.sink.wait_for(20)) == {"inspect"}
    camera.signal()
    assert camera.join(WAIT_S)
    assert r.statuses == ["starting", "ready"]


class TestProbe:
    def probe(self, source, **changes):
        limits = {"connect_timeout_s": WAIT_S, "stall_timeout_s": WAIT_S} | changes
        return probe(Rig(**limits).config, lambda config: source)

    def test_it_returns_the_first_whole_frame_with_memory_of_its_own(self):
        source, rig = Script(), Rig()
        plane = np.full((32, 32), 7, np.uint8)
        source.steps.put(rig.frame(corrupt=True))
        source.steps.put(rig.frame(planes=(plane,), owner=object()))
        frame = self.probe(source)
        plane[:] = 0
        assert (frame.planes[0] == 7).all()
        assert frame.owner is None
        assert source.closed.is_set()

    def test_what_the_source_says_is_what_it_raises(self):
        source = Script()
        source.steps.put(CaptureError("auth", "wrong password"))
        with pytest.raises(CaptureError, match="wrong password") as caught:
            self.probe(source)
        assert caught.value.reason == "auth"
        assert source.closed.is_set()

    def test_a_configuration_error_stays_one(self):
        source = Script()
        source.steps.put(ConfigError("credentials_file"))
        with pytest.raises(ConfigError):
            self.probe(source)

    def test_an_unexpected_exception_is_an_internal_error(self):
        source = Script()
        source.steps.put(ZeroDivisionError("ours"))
        with pytest.raises(CaptureError, match="ZeroDivisionError: ours") as caught:
            self.probe(source)
        assert caught.value.reason == "internal"

    def test_an_empty_stream_says_so(self):
        source = Script()
        source.steps.put(None)
        with pytest.raises(CaptureError, match="ended before a whole frame came"):
            self.probe(source)

    def test_a_silent_camera_is_interrupted_in_time(self):
        source = Script()
        with pytest.raises(CaptureError, match=r"connected, but sent no whole frame within 0\.2 s") as caught:
            self.probe(source, connect_timeout_s=0.1, stall_timeout_s=0.1)
        assert caught.value.reason == "timeout"
        assert source.closed.is_set()

    def test_a_library_that_hangs_is_left_behind(self):
        source, release = Script(), threading.Event()
        source.on_open = lambda: release.wait(WAIT_S)
        with pytest.raises(CaptureError, match="could not be opened within"):
            self.probe(source, connect_timeout_s=0.05, stall_timeout_s=0.05)
        assert source.interrupted.is_set()
        release.set()
        assert source.closed.wait(WAIT_S)

    def test_rois_are_held_against_a_real_frame(self):
        r = Rig()
        check_rois(r.config, r.frame())
        with pytest.raises(ConfigError, match=r"^camera cam: ROI 'a' \[0, 0, 16, 16\] lies outside the 12x32 frame$"):
            check_rois(r.config, r.frame(width=12))
