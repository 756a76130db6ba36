"""The daemon on a real RTSP camera: right by pts, and through freezes, kills and restarts."""

import time

import pytest
from colour_bundle import VERDICTS, colour_bundle
from daemon_process import DaemonProcess, Subscriber
from media import write_clip
from rtsp_server import RtspServer, missing
from test_daemon import PART, colour_picture, counters, kind_of, unbalanced, write_config

FPS = 25
COUNT = 200

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rtsp")
    colour_bundle(folder / "bundle")
    write_clip(
        folder / "clip.mp4",
        COUNT,
        size=(320, 240),
        fps=FPS,
        gop=10,
        picture=colour_picture((320, 240), [0], [PART["part"]]),
        barcode=False,
    )
    return folder


@pytest.fixture
def camera(folder):
    with RtspServer(folder / "clip.mp4") as server:
        yield server


def judged(messages):
    """Fresh verdicts that say something about the part."""
    verdicts = [m for m in messages if m["topic"].startswith("verdict/") and not m["replayed"]]
    return [m for m in verdicts if m["reason"] is None]


def check_truth(messages):
    """Each verdict is that of the picture which the stream shows at its pts."""
    for message in judged(messages):
        position = message["frame"]["pts"] * FPS
        assert position == pytest.approx(round(position), abs=0.05)
        truth = kind_of(round(position) % COUNT)
        assert (message["verdict"], message["label"]) == (VERDICTS[truth], truth), message


def test_verdicts_match_the_stream_frame_for_frame(folder, camera):
    """Every picture of the stream, found by its pts, has the verdict that it deserves; none is missing."""
    config = write_config(folder, "truth", [("line", camera.url, "", PART)])
    with DaemonProcess(config) as daemon:
        daemon.started()
        with Subscriber(daemon.endpoint, ["verdict/"]) as subscriber:
            subscriber.until(lambda m: m["verdict"] == "pass")
            subscriber.for_seconds(5)
            # The sender report has come by now; the frame says by which clock it was stamped.
            assert subscriber.messages[-1]["frame"]["clock"] == "rtcp"
            assert unbalanced(daemon.scrape()) == []
        assert daemon.stop() == 0
    check_truth(subscriber.verdicts)
    indices = [m["frame"]["index"] for m in judged(subscriber.verdicts)]
    assert len(indices) > 100
    assert indices == list(range(indices[0], indices[-1] + 1))
    positions = [round(m["frame"]["pts"] * FPS) for m in judged(subscriber.verdicts)]
    assert positions == list(range(positions[0], positions[-1] + 1))


@pytest.mark.parametrize("torment", ["freeze", "kill"])
def test_a_lost_camera_is_a_fault_in_time_and_comes_back(folder, camera, torment):
    """SIGSTOP or SIGKILL of the camera: fault within stall_timeout_s + 1 s; verdicts within 5 s of its return."""
    stall_timeout_s = 1.5
    keys = f"stall_timeout_s = {stall_timeout_s}\nconnect_timeout_s = 2"
    config = write_config(folder, torment, [("line", camera.url, keys, PART)])
    with DaemonProcess(config) as daemon:
        daemon.started()
        with Subscriber(daemon.endpoint) as subscriber:
            subscriber.until(lambda m: m.get("verdict") == "pass" and not m["replayed"])
            getattr(camera, torment)()
            tormented = time.monotonic()
            fault = subscriber.until(lambda m: m["topic"] == "status/line/" and m["state"] == "fault")
            assert time.monotonic() - tormented < stall_timeout_s + 1
            assert fault["reason"] in ("stall", "ended", "timeout", "refused")
            assert daemon.status_code("/readyz") == 503
            # Away for a while, so that retries fail meanwhile.
            subscriber.for_seconds(4)
            lost = len(subscriber.messages)
            if torment == "freeze":
                camera.thaw()
            else:
                camera.start()
            returned = time.monotonic()
            subscriber.until(lambda m: m.get("verdict") in ("pass", "fail") and not m["replayed"])
            assert time.monotonic() - returned < 5
            subscriber.for_seconds(1.5)
            text = daemon.scrape()
            assert unbalanced(text) == []
            assert sum(counters(text, "inspectd_camera_reconnects_total").values()) >= 1
        assert daemon.stop() == 0
    check_truth(subscriber.verdicts)
    # Between the fault and the return nothing was judged: what had queued up meanwhile is not fresh.
    ready_again = next(
        number
        for number, message in enumerate(subscriber.messages[lost:], lost)
        if message["topic"] == "status/line/" and message["state"] == "ready"
    )
    between = subscriber.messages[subscriber.messages.index(fault) : ready_again]
    assert judged(between) == []
    indices = [m["frame"]["index"] for m in subscriber.verdicts if not m["replayed"]]
    assert indices == list(range(indices[0], indices[-1] + 1))
