"""Mutated RTP from a real server: the camera's frames or its error, nothing else, whatever comes over the wire."""

import json
from collections import Counter
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hostile.cage import caged
from hostile.clips import fates
from hostile.rtp import LOST, SERVERS, picture, truth, watch
from media import write_clip
from rtsp_server import RtspServer, missing

NO_SERVER = missing()
pytestmark = pytest.mark.skipif(NO_SERVER is not None, reason=str(NO_SERVER))

MAX_GROWN = 400 << 20
"""Resident memory that any number of mutated sessions may cost."""
SIZE = (320, 240)
CODECS = {"h264": {}, "hevc": {"codec": "libx265"}, "mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three servers play a clip each: rich pictures, so that each takes several packets."""
    folder = tmp_path_factory.mktemp("rtp")
    texture = np.random.default_rng(3).integers(40, 200, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    with ExitStack() as running:
        servers = {}
        for name, how in CODECS.items():
            clip = folder / f"{name}.{'avi' if name == 'mjpeg' else 'mp4'}"
            write_clip(clip, 40, size=SIZE, fps=60, gop=10, picture=lambda i: np.roll(texture, 5 * i, axis=1), **how)
            servers[name] = running.enter_context(RtspServer(clip)).port, str(clip)
        (folder / SERVERS).write_text(json.dumps(servers))
        yield folder


def survived(results):
    assert [result for result in results if result["end"] != "done"] == []
    assert max(result["grown"] for result in results) < MAX_GROWN
    assert [result for result in results if result["wrong"] and result["way"] in LOST] == []
    return results


@pytest.mark.parametrize("name", ["h264", "hevc"])  # a JPEG that lacks a packet never comes out of FFmpeg
def test_a_packet_lost_from_the_very_first_picture_is_noticed(folder, name):
    """It is lost while the session is opened, before anybody asks for a frame."""
    port, clip = json.loads((folder / SERVERS).read_text())[name]
    numbers = count()

    def meddle(packet, control):
        return (packet,) if control or next(numbers) != 6 else ()

    frames, end = watch(port, meddle, 20.0, most=15)
    assert (end, next(numbers) > 6) == (None, True)
    pictures = truth(name, Path(clip))
    wrong = [
        frame.pts
        for frame, fate in zip(frames, fates(frames), strict=True)
        if fate == "admitted" and picture(frame) not in pictures
    ]
    assert wrong == []
    assert fates(frames)[0] == "corrupt"


def test_mutated_packets_neither_crash_nor_hang_nor_fill_the_memory_nor_admit_what_nobody_took(folder):
    """In a child process with little memory and time. `make test-soak` takes more of them."""
    survived(caged("rtp", range(6), folder))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_thousand_mutated_sessions(folder, capsys):
    results = survived(caged("rtp", range(1000), folder))
    wrong = Counter(f"{result['stream']}: {result['way']}" for result in results if result["wrong"])
    assert sum(result["admitted"] for result in results) > 1000, "most of it is video all the same"
    with capsys.disabled():
        frames, admitted = (sum(result[what] for result in results) for what in ("frames", "admitted"))
        print(f"\n1000 sessions, {frames} frames, {admitted} admitted; wrong ones in: {dict(wrong)}")
