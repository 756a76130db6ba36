"""Planes, colours and recordings: real clips through the real decoder."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import structlog
from media import read_barcode, write_clip
from playing import camera, play_file

from inspectd.capture.file import FileSource
from inspectd.capture.picture import PictureReader
from inspectd.errors import CaptureError, Stopped
from inspectd.frame import Frame

COUNT = 24


# -- planes and colours -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt", "expected"),
    [
        (".mp4", "libx264", "yuv420p", "yuv420p"),
        (".mp4", "libx265", "yuv420p", "yuv420p"),
        (".avi", "mjpeg", "yuvj420p", "yuv420p"),
        (".avi", "mjpeg", "yuvj422p", "yuv422p"),
        (".mkv", "rawvideo", "nv12", "nv12"),
        (".avi", "rawvideo", "yuyv422", "yuyv422"),
        (".mkv", "ffv1", "gray", "gray"),
        (".avi", "rawvideo", "bgr24", "bgr24"),
        (".nut", "rawvideo", "rgb24", "rgb24"),
    ],
)
def test_planes_are_views_of_the_decoders_memory_and_show_every_picture_in_order(
    tmp_path, suffix, codec, pix_fmt, expected
):
    clip = write_clip(tmp_path / f"clip{suffix}", COUNT, codec=codec, pix_fmt=pix_fmt, size=(336, 240))
    frames, end = play_file(clip)
    assert end is not None
    assert end.reason == "finished"
    assert [read_barcode(frame) for frame in frames] == list(range(COUNT))
    for frame in frames:
        assert (frame.format, frame.width, frame.height, frame.corrupt) == (expected, 336, 240, False)
        for plane, memory in zip(frame.planes, frame.owner.planes, strict=True):
            assert np.shares_memory(plane, np.frombuffer(memory, np.uint8))


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p"])
def test_an_odd_size_rounds_the_chroma_planes_up(tmp_path, pix_fmt):
    frames, _ = play_file(write_clip(tmp_path / "odd.mkv", 2, codec="ffv1", pix_fmt=pix_fmt, size=(321, 241)))
    chroma = (121, 161) if pix_fmt == "yuv420p" else (241, 161)
    assert [plane.shape for plane in frames[0].planes] == [(241, 321), chroma, chroma]


def to_rgb(frame: Frame) -> np.ndarray:
    """Float RGB [H, W, 3] by the textbook, from what the frame says about itself (4:2:0, chroma repeated)."""
    y, u, v = (plane.astype(float) for plane in frame.planes)
    u, v = (plane.repeat(2, 0).repeat(2, 1)[: frame.height, : frame.width] - 128 for plane in (u, v))
    y, chroma = (y, 1.0) if frame.full_range else ((y - 16) * 255 / 219, 255 / 224)
    red, blue = (0.299, 0.114) if frame.matrix == "bt601" else (0.2126, 0.0722)
    r, b = y + 2 * (1 - red) * v * chroma, y + 2 * (1 - blue) * u * chroma
    g = (y - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.stack([r, g, b], -1), 0, 255)


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("full_range", [False, True])
def test_colour_tags_of_the_stream_reach_the_frame(tmp_path, matrix, full_range):
    """Converted by them, the planes agree with libswscale's own conversion, and with the wrong ones they do not."""
    clip = write_clip(tmp_path / "clip.mp4", 2, matrix=matrix, full_range=full_range, barcode=False)
    frame = play_file(clip)[0][0]
    assert (frame.matrix, frame.full_range) == (matrix, full_range)
    theirs = frame.owner.to_ndarray(format="rgb24").astype(float)
    assert np.abs(to_rgb(frame) - theirs).mean() <= 2
    frame.full_range = not full_range
    assert np.abs(to_rgb(frame) - theirs).mean() > 2


@pytest.mark.parametrize(("height", "matrix"), [(480, "bt601"), (720, "bt709")])
def test_an_untagged_stream_is_taken_by_its_height_in_limited_range(tmp_path, height, matrix):
    frame = play_file(write_clip(tmp_path / "clip.mp4", 1, size=(640, height)))[0][0]
    assert (frame.matrix, frame.full_range) == (matrix, False)


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt", "converted"),
    [
        ("libx264", ".mp4", "yuv444p", "yuv420p"),
        ("libx264", ".mp4", "yuv420p10le", "yuv420p"),
        ("ffv1", ".mkv", "bgr0", "rgb24"),
    ],
)
def test_another_pixel_format_is_converted_and_logged_once(tmp_path, codec, suffix, pix_fmt, converted):
    clip = write_clip(tmp_path / f"clip{suffix}", 4, codec=codec, pix_fmt=pix_fmt, size=(336, 240))
    with structlog.testing.capture_logs() as logs:
        frames, _ = play_file(clip)
    assert [read_barcode(frame) for frame in frames] == list(range(4))
    assert {frame.format for frame in frames} == {converted}
    assert [entry["format"] for entry in logs if entry["event"] == "pixel_format_converted"] == [pix_fmt]


def test_a_matrix_that_frames_do_not_know_goes_through_libswscale_to_rgb():
    picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), (200, 60, 30), np.uint8), format="rgb24")
    picture = picture.reformat(format="yuv420p", dst_colorspace=9)  # BT.2020
    picture.colorspace = 9
    reader = PictureReader("test")
    frame = reader.read(picture)
    assert (frame.format, reader.converted) == ("rgb24", 1)
    assert np.abs(frame.planes[0].astype(int) - (200, 60, 30)).max() <= 4


def test_a_frame_outlives_its_source(tmp_path):
    frames, _ = play_file(write_clip(tmp_path / "clip.mp4", COUNT))
    assert [read_barcode(frame) for frame in frames] == list(range(COUNT))  # the source is closed by now


# -- recordings -------------------------------------------------------------------------------------------


def test_a_recording_ends_with_finished_and_keeps_its_times(tmp_path):
    frames, end = play_file(write_clip(tmp_path / "clip.mp4", COUNT, fps=25, bframes=2))
    assert end is not None
    assert end.reason == "finished"
    assert [frame.pts for frame in frames] == pytest.approx([index / 25 for index in range(COUNT)])
    assert {frame.clock for frame in frames} == {"arrival"}
    assert all(frame.decode_s > 0 for frame in frames)


@pytest.mark.parametrize("bframes", [0, 2])
def test_a_loop_goes_on_with_pts_across_the_seam(tmp_path, bframes):
    clip = write_clip(tmp_path / "clip.mp4", 10, fps=25, bframes=bframes)
    frames, end = play_file(clip, "?loop=1", limit=35)
    assert end is None
    assert [read_barcode(frame) for frame in frames] == [index % 10 for index in range(35)]
    assert [frame.pts for frame in frames] == pytest.approx([index / 25 for index in range(35)])
    assert not any(frame.corrupt for frame in frames)


def test_a_stream_without_times_has_no_pts(tmp_path):
    frames, _ = play_file(write_clip(tmp_path / "clip.h264", 5))
    assert [frame.pts for frame in frames] == [None] * 5


@pytest.mark.parametrize("suffix", [".mp4", ".h264"])
def test_real_time_never_runs_ahead_of_the_clock(tmp_path, suffix):
    clip = write_clip(tmp_path / f"clip{suffix}", 6, fps=25)
    frames, _ = play_file(clip, "?realtime=1&loop=1", limit=9)
    arrivals = [frame.arrival - frames[0].arrival for frame in frames]
    assert all(arrival >= index / 25 - 0.01 for index, arrival in enumerate(arrivals))


def test_interrupt_ends_the_wait_for_the_next_frame(tmp_path):
    source = FileSource(camera(f"file:{write_clip(tmp_path / 'slow.mp4', 3, fps=0.02)}?realtime=1"))
    source.open()
    frames = source.frames()
    next(frames)
    threading.Timer(0.05, source.interrupt).start()
    with pytest.raises(Stopped):
        next(frames)  # else 50 s away
    source.close()


def no_frames(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p"))[:0])
        container.start_encoding()


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.mp4": (lambda path: None, "refused"),
    "folder.mp4": (lambda path: path.mkdir(), "refused"),
    "text.mp4": (lambda path: path.write_text("This is a letter.\n" * 100), "decode"),
    "text.txt": (lambda path: path.write_text("\x1b[31mThis is a letter.\n" * 100), "decode"),
    "empty.mp4": (lambda path: path.touch(), "decode"),
    "playlist.m3u8": (lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n"), "decode"),
    "noise.h264": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(50_000)), "decode"),
    "frameless.mp4": (no_frames, "decode"),
}


@pytest.mark.parametrize("name", list(BAD_FILES))
@pytest.mark.parametrize("query", ["", "?loop=1"])
def test_a_file_that_is_no_video_is_one_clear_line(tmp_path, name, query):
    make, reason = BAD_FILES[name]
    make(tmp_path / name)
    frames, error = play_file(tmp_path / name, query)
    assert frames == []
    assert error is not None
    assert error.reason == reason
    assert str(tmp_path / name) in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(("suffix", "codec", "pix_fmt"), [(".png", "png", "rgb24"), (".jpg", "mjpeg", "yuvj420p")])
def test_a_picture_is_a_recording_of_one_frame(tmp_path, suffix, codec, pix_fmt):
    frames, end = play_file(write_clip(tmp_path / f"one{suffix}", 1, codec=codec, pix_fmt=pix_fmt))
    assert [read_barcode(frame) for frame in frames] == [0]
    assert end is not None
    assert end.reason == "finished"


def test_close_may_come_twice_and_after_a_failed_open(tmp_path):
    source = FileSource(camera(f"file:{tmp_path / 'missing.mp4'}"))
    with pytest.raises(CaptureError):
        source.open()
    source.close()
    source.close()
