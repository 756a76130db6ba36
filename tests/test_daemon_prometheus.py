"""A real Prometheus on the real daemon: the dashboard has data and the books balance in its history."""

import itertools
import json
import threading
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import zmq
from colour_bundle import COLOURS
from daemon_process import DaemonProcess
from prometheus_server import INSTALLED, PrometheusServer, dashboard_expressions
from test_daemon import PART, folder, write_config  # noqa: F401 - folder is a fixture

from inspectd.capture.quality import Limits
from inspectd.capture.quality_file import QualityFile, Region, write_quality

IDENTITY = """
max(abs(
    sum by (camera, roi) (inspectd_verdicts_total)
  + sum by (camera, roi) (inspectd_frames_dropped_total)
  + sum by (camera, roi) (inspectd_frames_in_flight)
  - on (camera, roi) inspectd_verdicts_without_frame_total
  - on (camera) group_left () inspectd_frames_captured_total
))
"""

FREE_RUN = """
max_fps = 17  # in no step with the clip, whose kinds repeat every six frames: the empty ones are seen
[[cameras.rois]]
name = "flow"
box = [100, 60, 120, 120]
part = { enter_frames = 1, leave_frames = 1, max_s = 0.01 }  # a part at every change, and often a stuck one
[[cameras.rois]]
name = "flicker"
box = [100, 60, 120, 120]
part = { enter_frames = 1000, leave_frames = 1 }  # nothing stays long enough
"""
ANYTHING = Limits(level_min=0, level_max=1, dark_max=1, bright_max=1, contrast_min=0, sharpness_min=0)
EVERYTHING = """
[journal]
path = "prometheus.db"
[evidence]
dir = "prometheus-evidence"
format = "jpeg"
max_per_s = 2
[challenge]
pictures = [{ file = "golden.png", camera = "here", roi = "part", expect = "pass" }]
"""


@contextmanager
def triggers(endpoint, cameras, every_s=0.1):
    """Triggers for these cameras in turn, until the end of the block; nobody waits for the replies."""
    stop = threading.Event()

    def run():
        with zmq.Context() as context, context.socket(zmq.DEALER) as control:
            control.set(zmq.LINGER, 0)
            control.connect(endpoint)
            for camera in itertools.cycle(cameras):
                control.send(json.dumps({"op": "trigger", "camera": camera, "deadline_ms": 50}).encode())
                while control.poll(0):
                    control.recv()
                if stop.wait(every_s):
                    return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


@pytest.mark.skipif(not INSTALLED, reason="Debian's prometheus is not installed")
def test_every_expression_of_the_dashboard_returns_data_from_the_daemon(folder, tmp_path):  # noqa: F811
    """A camera with parts, one that is triggered and one that is away: no panel stays empty, and the books balance."""
    cv2.imwrite(str(folder / "golden.png"), np.full((120, 120, 3), COLOURS["good"][::-1], np.uint8))
    watched = Region(roi="part", box=PART["part"], frames=200, limits=ANYTHING)
    write_quality(folder / "told.quality.json", QualityFile(camera="told", regions=(watched,)))
    config = write_config(
        folder,
        "prometheus",
        [
            ("here", "file:clip.mp4?loop=1&realtime=1", FREE_RUN, PART),
            ("told", "file:clip.mp4?loop=1&realtime=1", 'trigger = "command"\nquality = "told.quality.json"', PART),
            ("gone", "rtsp://127.0.0.1:1/x", 'trigger = "command"', PART),
        ],
        EVERYTHING,
    )
    with DaemonProcess(config) as daemon:
        daemon.started()
        with (
            PrometheusServer(tmp_path, [daemon.url.removeprefix("http://")]) as prometheus,
            triggers(daemon.wait_for_log("started")["control"], ["told", "here", "gone"]),
        ):
            where = {expr: title for title, expr in dashboard_expressions()}
            missing = prometheus.wait_for_data(list(where), timeout_s=30)
            assert [where[expr] for expr in missing] == []
            assert [value for _, value in prometheus.query(IDENTITY)] == [0]
            assert prometheus.query('sum(inspectd_frames_dropped_total{reason="max_fps"})')[0][1] > 0
            assert prometheus.query('inspectd_camera_up{camera="gone"}')[0][1] == 0
            assert prometheus.query('inspectd_verdicts_without_frame_total{camera="gone"}')[0][1] > 0
            triggered = {labels["camera"] for labels, _ in prometheus.query("inspectd_triggers_pending")}
            assert triggered == {"told", "gone"}, "alerts and dashboard tell triggered cameras by this"
        assert daemon.stop() == 0
