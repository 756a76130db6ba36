"""The daemon on a real RTSP camera: right by pts, frame for frame. What may happen to the camera: see faults/."""

import pytest
from colour_bundle import VERDICTS, colour_bundle
from daemon_process import DaemonProcess, Subscriber
from media import write_clip
from rtsp_server import RtspServer, missing
from test_daemon import PART, colour_picture, kind_of, unbalanced, write_config

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
