"""A real Prometheus on the real daemon: the dashboard has data and the books balance in its history."""

import pytest
from daemon_process import DaemonProcess
from prometheus_server import INSTALLED, PrometheusServer, dashboard_expressions
from test_daemon import PART, folder, write_config  # noqa: F401 - folder is a fixture

IDENTITY = """
max(abs(
    sum by (camera, roi) (inspectd_verdicts_total)
  + sum by (camera, roi) (inspectd_frames_dropped_total)
  + sum by (camera, roi) (inspectd_frames_in_flight)
  - on (camera) group_left () inspectd_frames_captured_total
))
"""


@pytest.mark.skipif(not INSTALLED, reason="Debian's prometheus is not installed")
def test_every_expression_of_the_dashboard_returns_data_from_the_daemon(folder, tmp_path):  # noqa: F811
    """Two cameras, one of them away: no panel stays empty, and captured == verdicts + dropped + in flight."""
    config = write_config(
        folder,
        "prometheus",
        [
            ("here", "file:clip.mp4?loop=1&realtime=1", "max_fps = 20", PART),
            ("gone", "rtsp://127.0.0.1:1/x", "", PART),
        ],
    )
    with DaemonProcess(config) as daemon:
        daemon.started()
        with PrometheusServer(tmp_path, [daemon.url.removeprefix("http://")]) as prometheus:
            where = {expr: title for title, expr in dashboard_expressions()}
            missing = prometheus.wait_for_data(list(where), timeout_s=30)
            assert [where[expr] for expr in missing] == []
            assert [value for _, value in prometheus.query(IDENTITY)] == [0]
            assert prometheus.query('sum(inspectd_frames_dropped_total{reason="max_fps"})')[0][1] > 0
            assert prometheus.query('inspectd_camera_up{camera="gone"}')[0][1] == 0
        assert daemon.stop() == 0
