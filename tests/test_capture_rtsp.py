"""RTSP cameras: a real server on loopback that streams, misbehaves, loses packets, freezes and dies."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import playing
import pytest
from media import access_units, luma, read_barcode, write_clip
from rtsp_server import RtspServer, free_port, missing

from inspectd.capture.file import FileSource
from inspectd.capture.rtsp import RtspSource
from inspectd.config import CameraConfig
from inspectd.errors import CaptureError, Stopped
from inspectd.frame import Frame

FPS = 60
CLIP = 60  # pictures, a key frame every 15
PASSWORD = "s3cret-p@ss"

NO_SERVER = missing()
needs_server = pytest.mark.skipif(NO_SERVER is not None, reason=str(NO_SERVER))


def camera(source: str, **settings) -> CameraConfig:
    return playing.camera(source, **({"connect_timeout_s": 10} | settings))


def watch(source: RtspSource, count: int) -> list[Frame]:
    source.open()
    try:
        frames = source.frames()
        return [next(frames) for _ in range(count)]
    finally:
        source.close()


def failure(source: RtspSource) -> CaptureError:
    """The error that ends a source that is opened and read to its end."""
    with pytest.raises(CaptureError) as caught:  # noqa: PT012 - wherever it fails
        source.open()
        deque(source.frames(), maxlen=0)
    source.close()
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    texture = np.random.default_rng(3).integers(40, 200, (480, 640, 3), dtype=np.uint8)

    def rich(index: int) -> np.ndarray:
        """Many RTP packets a picture, and visibly wrong when predicted from a wrong one."""
        return np.roll(texture, 5 * index, 1)

    def clip(name: str, **how) -> Path:
        return write_clip(folder / name, CLIP, fps=FPS, gop=15, **how)

    return {
        "h264": clip("h264.mp4"),
        "B-frames": clip("bframes.mp4", bframes=3),
        "hevc": clip("hevc.mp4", codec="libx265"),
        # RTP carries no Huffman tables (RFC 2435), so the usual ones.
        "mjpeg": clip("mjpeg.avi", codec="mjpeg", pix_fmt="yuvj420p", options={"huffman": "default"}),
        "h264 rich": clip("rich.mp4", size=(640, 480), picture=rich),
        "hevc rich": clip("rich_hevc.mp4", size=(640, 480), picture=rich, codec="libx265"),
    }


@pytest.fixture(scope="module")
def server(clips) -> Iterator[RtspServer]:
    with RtspServer(clips["h264"]) as running:
        yield running


# -- what is streamed is what comes out -----------------------------------------------------------------------


@needs_server
@pytest.mark.parametrize(
    ("name", "transport"), [("h264", "tcp"), ("h264", "udp"), ("B-frames", "tcp"), ("hevc", "tcp"), ("mjpeg", "udp")]
)
def test_every_frame_is_the_picture_that_its_pts_says(clips, name, transport):
    """None is lost, repeated or out of order from the first on, and the clip's seam leaves no trace."""
    with RtspServer(clips[name]) as running:
        frames = watch(RtspSource(camera(running.url, transport=transport)), CLIP + 10)
    assert [read_barcode(frame) for frame in frames] == [index % CLIP for index in range(len(frames))]
    assert not any(frame.corrupt for frame in frames)
    timed = [(index, frame.pts) for index, frame in enumerate(frames) if frame.pts is not None]
    assert len(timed) >= len(frames) - 1  # FFmpeg gives the very first picture no time
    for index, pts in timed:
        assert round((pts - timed[0][1]) * FPS) == index - timed[0][0]


@needs_server
def test_the_first_frame_comes_without_a_backlog(server):
    """Opening must not collect pictures that are then handed out late as if they were fresh."""
    frames = watch(RtspSource(camera(server.url)), 10)
    gaps = [later.arrival - earlier.arrival for earlier, later in pairwise(frames)]
    assert sum(gap > 0.5 / FPS for gap in gaps) >= 5, f"came in a burst: {gaps}"


@needs_server
def test_the_cameras_clock_is_used_once_a_sender_report_came(server):
    frames = watch(RtspSource(camera(server.url)), 40)
    clocks = [frame.clock for frame in frames]
    assert clocks == sorted(clocks), "arrival first, then rtcp for good"
    assert clocks[-1] == "rtcp"
    skew = time.time() - time.monotonic()
    for frame in frames:
        assert frame.captured_at == pytest.approx(frame.arrival + skew, abs=1)
    rtcp = [frame for frame in frames if frame.clock == "rtcp"]
    steps = np.diff([frame.captured_at for frame in rtcp])
    assert np.abs(steps - 1 / FPS).max() < 0.01, "capture times are the camera's, without the network's jitter"


@needs_server
def test_a_camera_clock_that_was_never_set_is_not_used(server, monkeypatch):
    source = RtspSource(camera(server.url))
    source.open()
    frames = source.frames()
    while (frame := next(frames)).clock != "rtcp":
        pass
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + 86_400)  # seen from us, the camera is a day behind
    frame = next(frames)
    assert frame.clock == "arrival"
    assert frame.captured_at == pytest.approx(true_time() + 86_400, abs=5)
    source.close()


# -- damage ----------------------------------------------------------------------------------------------------


@needs_server
@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("name", ["h264 rich", "hevc rich"])
def test_with_lost_packets_no_frame_that_is_called_whole_is_wrong(clips, name, transport):
    reference = FileSource(camera(f"file:{clips[name]}"))
    reference.open()
    truth = [luma(frame) for frame in islice(reference.frames(), CLIP)]
    reference.close()
    with RtspServer(clips[name], loss=0.003) as running:
        frames = watch(RtspSource(camera(running.url, transport=transport)), 2 * CLIP)
    whole = [frame for frame in frames if not frame.corrupt]
    assert len(whole) < len(frames), "the loss went unnoticed"
    assert whole, "it never recovers"
    for frame in whole:
        index = read_barcode(frame)
        assert index is not None
        assert np.array_equal(luma(frame), truth[index])


@needs_server
def test_joining_in_the_middle_of_a_group_of_pictures_starts_with_corrupt_frames(clips):
    with RtspServer(clips["h264"], shared=True) as running:
        first = RtspSource(camera(running.url))
        first.open()
        early = first.frames()
        while read_barcode(next(early)) != 3:
            pass
        frames = watch(RtspSource(camera(running.url)), 30)
        first.close()
    clean = next(index for index, frame in enumerate(frames) if not frame.corrupt)
    assert clean > 0
    assert read_barcode(frames[clean]) in (15, 30, 45, 0)  # a key frame
    assert not any(frame.corrupt for frame in frames[clean:])
    codes = [read_barcode(frame) for frame in frames[clean:]]
    assert codes == [(codes[0] + step) % CLIP for step in range(len(codes))]


@needs_server
def test_a_picture_that_the_camera_never_sent_makes_the_next_ones_corrupt(clips):
    units = access_units(clips["h264"])
    with RtspServer(clips["h264"], units=units[:5] + units[6:]) as running:
        frames = watch(RtspSource(camera(running.url)), 25)
    assert [frame.corrupt for frame in frames] == [False] * 5 + [True] * 9 + [False] * 11


# -- ends and refusals -------------------------------------------------------------------------------------------


@needs_server
@pytest.mark.parametrize(("how", "transport"), [("kill", "tcp"), ("kill", "udp"), ("stop", "tcp")])
def test_a_camera_that_goes_away_ends_the_stream_and_comes_back_at_the_same_place(clips, how, transport):
    with RtspServer(clips["h264"]) as running:
        source = RtspSource(camera(running.url, transport=transport))
        source.open()
        frames = source.frames()
        next(frames)
        getattr(running, how)()
        with pytest.raises(CaptureError) as caught:
            deque(frames, maxlen=0)
        source.close()
        assert caught.value.reason == "ended"
        assert failure(RtspSource(camera(running.url))).reason == "refused"
        running.start()
        assert read_barcode(watch(RtspSource(camera(running.url, transport=transport)), 1)[0]) == 0


@needs_server
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_frozen_camera_is_a_timeout_after_the_stall_limit(clips, transport):
    with RtspServer(clips["h264"]) as running:
        source = RtspSource(camera(running.url, transport=transport, stall_timeout_s=0.2))
        source.open()
        frames = source.frames()
        next(frames)
        running.freeze()
        with pytest.raises(CaptureError) as caught:
            deque(frames, maxlen=0)
        assert caught.value.reason == "timeout"
        source.close()  # must not wait for the frozen camera either


@needs_server
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_interrupt_ends_a_blocked_read_at_once(clips, transport):
    with RtspServer(clips["h264"]) as running:
        source = RtspSource(camera(running.url, transport=transport, stall_timeout_s=60))
        source.open()
        frames = source.frames()
        next(frames)
        running.freeze()
        threading.Timer(0.5, source.interrupt).start()
        began = time.monotonic()
        with pytest.raises(Stopped):
            deque(frames, maxlen=0)
        assert time.monotonic() - began < 30  # else 61 s
        source.close()


@needs_server
def test_interrupting_one_camera_leaves_another_on_the_same_server_alone(server):
    one, other = RtspSource(camera(server.url)), RtspSource(camera(server.url))
    one.open()
    other.open()
    frames = other.frames()
    next(frames)
    one.interrupt()
    with pytest.raises(Stopped):
        next(one.frames())
    assert len([next(frames) for _ in range(10)]) == 10
    one.close()
    other.close()


def test_interrupt_ends_an_open_that_waits_for_an_answer():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        source = RtspSource(camera(f"rtsp://127.0.0.1:{mute.getsockname()[1]}/x", connect_timeout_s=60))
        caught: list[BaseException] = []

        def run() -> None:
            try:
                source.open()
            except BaseException as err:
                caught.append(err)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        accepted, _ = mute.accept()
        accepted.recv(1)  # it has begun to talk
        source.interrupt()
        thread.join(30)
        assert [type(err) for err in caught] == [Stopped]
        accepted.close()
        source.close()


def test_a_server_that_accepts_and_never_answers_is_a_timeout_within_the_connect_limit():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        error = failure(RtspSource(camera(f"rtsp://127.0.0.1:{mute.getsockname()[1]}/x", connect_timeout_s=1)))
        assert error.reason == "timeout"
        assert 0.9 < time.monotonic() - began < 10


def test_nobody_listening_is_refused_and_the_password_stays_secret():
    error = failure(RtspSource(camera(f"rtsp://admin:{PASSWORD}@127.0.0.1:{free_port()}/x")))
    assert error.reason == "refused"
    assert_secret(error)


def test_a_server_that_speaks_http_is_no_camera():
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        assert failure(RtspSource(camera(f"rtsp://127.0.0.1:{listener.getsockname()[1]}/x"))).reason == "decode"


def bare_camera(listener: socket.socket, coding: str, data: bytes) -> None:
    """Answer one client's RTSP over TCP with video of that coding, the same RTP payload again and again."""
    connection, _ = listener.accept()
    sdp = f"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 {coding}/90000\r\n"
    described = f"Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n\r\n{sdp}"
    told = {"SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n", "DESCRIBE": described}
    with connection, connection.makefile("rb") as lines, contextlib.suppress(ConnectionError):
        for line in lines:
            method, *_ = line.decode().split()
            while not (line := next(lines).decode()).startswith("CSeq"):
                pass
            rest = told.get(method, "\r\n")
            connection.sendall(f"RTSP/1.0 200 OK\r\n{line.strip()}\r\nSession: 1\r\n{rest}".encode())
            while next(lines).strip():
                pass
            for number in range(10 if method == "PLAY" else 0):
                packet = struct.pack(">BBHII", 0x80, 0x80 | 96, number, number * 3000, 7) + data
                connection.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)


@pytest.mark.parametrize(
    ("coding", "codec", "data"),
    [
        ("MP4V-ES", "mpeg4", b"\0\0\1\xb6" + bytes(60)),
        ("VP8", "vp8", b"\x10\x50\1\0\x9d\1\x2a\x40\1\xf0\0" + bytes(60)),
    ],
    ids=["mpeg4", "vp8"],
)
def test_a_codec_in_which_a_lost_picture_goes_unnoticed_is_refused(coding, codec, data):
    """Of MPEG-4 and VP8 pictures that were predicted from a missing one would be called whole, and judged."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=bare_camera, args=(listener, coding, data), daemon=True).start()
        source = RtspSource(camera(f"rtsp://127.0.0.1:{listener.getsockname()[1]}/x"))
        with pytest.raises(CaptureError, match=f"sends {codec}, in which a lost picture") as caught:
            source.open()
        assert caught.value.reason == "decode"
        source.close()


@needs_server
def test_a_path_that_the_camera_does_not_have_is_refused(server):
    assert failure(RtspSource(camera(server.url + "-not"))).reason == "refused"


# -- credentials --------------------------------------------------------------------------------------------------


def assert_secret(error: BaseException) -> None:
    """Neither the message nor anything that a traceback would print holds the password, in either spelling."""
    text = "".join(traceback.format_exception(error)) + repr(error.__dict__)
    assert PASSWORD not in text
    assert "s3cret" not in text


@needs_server
@pytest.mark.parametrize("digest", [True, False], ids=["digest", "basic"])
def test_credentials_come_from_their_file_and_wrong_ones_are_an_auth_error(clips, tmp_path, digest):
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(f"admin:{PASSWORD}\n")
    wrong.write_text(f"admin:{PASSWORD}-not\n")
    with RtspServer(clips["h264"], auth=("admin", PASSWORD), digest=digest) as running:
        assert read_barcode(watch(RtspSource(camera(running.url, credentials_file=right)), 1)[0]) == 0
        error = failure(RtspSource(camera(running.url, credentials_file=wrong)))
        assert error.reason == "auth"
        assert "credentials_file" in str(error)
        assert_secret(error)
        assert failure(RtspSource(camera(running.url))).reason == "auth"


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl for a certificate")
def test_rtsps_speaks_rtsp_inside_tls(tmp_path):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=camera", "-out"]
    subprocess.run([*make, certificate, "-keyout", key], check=True, capture_output=True, timeout=60)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    heard: list[bytes] = []

    def answer(listener: socket.socket) -> None:
        with tls.wrap_socket(listener.accept()[0], server_side=True) as connection:
            heard.append(connection.recv(1000))
            connection.sendall(b"RTSP/1.0 401 Unauthorized\r\nCSeq: 1\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        error = failure(RtspSource(camera(f"rtsps://admin:{PASSWORD}@127.0.0.1:{listener.getsockname()[1]}/x")))
    assert heard[0].startswith(b"OPTIONS rtsps://")
    assert error.reason == "auth"
    assert_secret(error)


def test_close_may_come_twice_and_without_open():
    source = RtspSource(camera("rtsp://127.0.0.1:9/x"))
    source.close()
    source.interrupt()
    source.close()
