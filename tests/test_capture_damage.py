"""Damage: no frame that may be wrong is called whole, and none vanishes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from av.packet import Packet
from media import access_units, luma, write_clip

from inspectd.capture import pyav
from inspectd.capture.h264 import Continuity
from inspectd.capture.h264_syntax import Sps, parse_sps
from inspectd.capture.jpeg import is_whole
from inspectd.capture.pyav import MAX_BAD_PACKETS, PacketDecoder, Stamp
from inspectd.errors import CaptureError
from inspectd.frame import Frame


def decode(
    units: list[dict], codec: str, extradata: bytes | None = None, lost: Collection[int] = (), *, timed: bool = True
) -> list[Frame]:
    """Frames whose arrival is their time in the clip, also where they are not `timed`."""
    context = av.CodecContext.create(codec, "r")
    if extradata:
        context.extradata = extradata
    decoder = PacketDecoder(context, "test")
    frames = []
    for index, unit in enumerate(units):
        packet = Packet(unit["data"])
        packet.is_keyframe = unit["key"]
        if timed:
            packet.pts, packet.time_base = round(unit["pts"] * 90_000), Fraction(1, 90_000)
        pts = unit["pts"] if timed else None
        frames += decoder.decode(packet, Stamp(unit["pts"], 0.0, "arrival", pts, index in lost))
    return frames + decoder.flush()


def sparkling(width: int = 320, height: int = 240) -> Callable[[int], np.ndarray]:
    """Texture on the move, so that a picture predicted from the wrong one is visibly wrong."""
    texture = np.random.default_rng(1).integers(40, 200, (height, width, 3), dtype=np.uint8)
    return lambda index: np.roll(texture, 5 * index, axis=1)


STREAMS = {
    "plain": ("libx264", {}),
    "several references": ("libx264", {"preset": "medium", "x264-params": "keyint=12:scenecut=0:bframes=0:ref=4"}),
    "B-frames": ("libx264", {"x264-params": "keyint=12:scenecut=0:bframes=3:b-pyramid=normal:b-adapt=0"}),
    "open GOP": ("libx264", {"x264-params": "keyint=12:scenecut=0:bframes=3:open-gop=1:b-adapt=0"}),
    "gradual refresh": ("libx264", {"x264-params": "keyint=12:scenecut=0:bframes=0:intra-refresh=1"}),
    "interlaced": ("libx264", {"x264-params": "keyint=12:scenecut=0:bframes=0:tff=1"}),
    "four slices": ("libx264", {"x264-params": "keyint=12:scenecut=0:bframes=0:slices=4"}),
    "scaling lists": ("libx264", {"preset": "medium", "x264-params": "keyint=12:scenecut=0:bframes=0:cqm=jvt"}),
    "HEVC": ("libx265", {}),
}


@pytest.fixture(scope="module", params=list(STREAMS))
def stream(request, tmp_path_factory) -> tuple[str, list[dict], dict[float, np.ndarray]]:
    """Decoder, coded pictures, and each whole picture's luma by its time."""
    encoder, options = STREAMS[request.param]
    path = tmp_path_factory.mktemp("stream") / "clip.mp4"
    bframes = 3 if "bframes=3" in options.get("x264-params", "") else 0
    write_clip(path, 48, codec=encoder, options=options, gop=12, bframes=bframes, picture=sparkling())
    codec = "hevc" if encoder == "libx265" else "h264"
    units = access_units(path)
    whole = decode(units, codec)
    assert not any(frame.corrupt for frame in whole), "false alarm on a whole stream"
    assert len(whole) == len(units)
    assert [frame.pts for frame in whole] == sorted(unit["pts"] for unit in units)
    return codec, units, {frame.arrival: luma(frame).copy() for frame in whole}


def wrong_but_clean(frames: list[Frame], truth: dict[float, np.ndarray]) -> list[float]:
    whole = [frame for frame in frames if not frame.corrupt]
    return [frame.arrival for frame in whole if not np.array_equal(luma(frame), truth[frame.arrival])]


@pytest.mark.parametrize("lost", [{5}, {12}, {24}, {17, 18}, {30, 31, 32, 33, 34}])
def test_after_a_lost_picture_none_that_may_be_wrong_is_called_whole(stream, lost):
    """FFmpeg's H.264 decoder repeats an older picture in its place, and flags neither it nor what follows."""
    codec, units, truth = stream
    frames = decode([unit for index, unit in enumerate(units) if index not in lost], codec)
    assert wrong_but_clean(frames, truth) == []
    assert not all(frame.corrupt for frame in frames[-3:]) or max(lost) > 24, "it never recovers"


# FFmpeg's HEVC decoder does not notice; over RTP the lost packets tell.
@pytest.mark.parametrize("stream", [name for name in STREAMS if name != "HEVC"], indirect=True)
@pytest.mark.parametrize("index", [13, 14, 15, 16])
def test_a_truncated_picture_and_what_depends_on_it_are_corrupt_until_the_next_clean_point(stream, index):
    """Also those that are shown before it, though they were predicted from it: B-frames."""
    codec, units, truth = stream
    cut = [dict(unit) for unit in units]
    cut[index]["data"] = cut[index]["data"][: len(cut[index]["data"]) // 2]
    frames = decode(cut, codec)
    assert len(frames) == len(units), "a damaged picture vanished"
    assert wrong_but_clean(frames, truth) == []
    assert any(frame.corrupt for frame in frames)
    assert not frames[-1].corrupt


def test_a_loss_just_before_a_key_frame_spoils_the_key_frame_too(tmp_path):
    """The transport reports a hole with the packet before or within which it is."""
    units = access_units(write_clip(tmp_path / "clip.mp4", 36, gop=12))
    frames = decode(units, "h264", lost={11})
    assert [index for index, frame in enumerate(frames) if frame.corrupt] == list(range(11, 24))


@pytest.mark.parametrize("stream", ["open GOP"], indirect=True)
def test_a_recording_without_times_is_no_more_believed_than_one_with_times(stream):
    """Raw .h264: pictures that are shown before the key picture in front of them refer to what came before it."""
    codec, units, truth = stream
    assert not any(frame.corrupt for frame in decode(units, codec, timed=False)), "false alarm on a whole stream"
    for lost in range(5, 36):
        rest = [unit for index, unit in enumerate(units) if index != lost]
        frames = decode(rest, codec, timed=False)
        assert wrong_but_clean(frames, truth) == []
        assert [frame.corrupt for frame in frames] == [frame.corrupt for frame in decode(rest, codec)]


@pytest.mark.parametrize("noted", [32, 2])
def test_no_burst_of_losses_makes_an_earlier_one_forgotten(tmp_path, monkeypatch, noted):
    """What was predicted from the lost picture is shown six pictures later, and all of those were damaged as well."""
    monkeypatch.setattr(pyav, "_MAX_NOTED", noted)
    params = {"x264-params": "keyint=24:min-keyint=24:scenecut=0:bframes=5:b-pyramid=none:b-adapt=0"}
    clip = tmp_path / "clip.mp4"
    units = access_units(
        write_clip(clip, 72, size=(64, 64), options=params, gop=24, bframes=5, picture=sparkling(64, 64))
    )
    truth = {frame.arrival: luma(frame).copy() for frame in decode(units, "h264")}
    for first in (1, 7):
        rest = [unit for index, unit in enumerate(units) if index != first]
        frames = decode(rest, "h264", lost=range(first, first + 16))
        assert wrong_but_clean(frames, truth) == []
        assert not any(frame.corrupt for frame in frames[48:])


def bits_to_nal(header: int, bits: str) -> bytes:
    """A NAL unit of these bits, with stop bit and emulation prevention."""
    bits += "1" + "0" * (-(len(bits) + 1) % 8)
    payload = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    escaped = bytearray()
    for byte in payload:
        if byte <= 3 and escaped[-2:] == b"\0\0":
            escaped.append(3)
        escaped.append(byte)
    return bytes([header]) + bytes(escaped)


def ue(number: int) -> str:
    """The Exp-Golomb code of a number (ITU-T H.264, 9.1)."""
    return f"{number + 1:b}".rjust(2 * (number + 1).bit_length() - 1, "0")


def parameter_sets(number: int, frame_num_bits: int, *, gaps_allowed: bool = False) -> bytes:
    """An SPS and a PPS of that number, as Annex B."""
    sps = f"{66:08b}{0:08b}{30:08b}" + ue(number) + ue(frame_num_bits - 4) + ue(2) + ue(1)
    sps += f"{gaps_allowed:b}" + ue(3) + ue(3) + "1"
    return b"\0\0\1" + bits_to_nal(0x67, sps) + b"\0\0\1" + bits_to_nal(0x68, ue(number) + ue(number))


def slice_of(number: int, frame_num: str, header: int = 0x41) -> bytes:
    """The beginning of a reference picture that goes by the PPS of that number."""
    return b"\0\0\1" + bits_to_nal(header, ue(0) + ue(0) + ue(number) + frame_num + "0110")


@pytest.mark.parametrize("gaps_allowed", [False, True])
def test_a_gap_is_a_lost_picture_also_where_the_stream_allows_itself_gaps(gaps_allowed):
    """Whether it was thinned on purpose or has lost one: nobody can tell from here."""
    continuity = Continuity()
    continuity.follow(parameter_sets(0, 4, gaps_allowed=gaps_allowed) + slice_of(0, "0000", 0x65))
    told = [continuity.follow(slice_of(0, f"{number:04b}"))[0] for number in (1, 2, 4, 5)]
    assert told == [False, False, True, False]


def test_each_picture_is_read_by_the_parameter_sets_that_it_names():
    """A stream may have several, with numbers of other lengths; the last one seen is not that of all."""
    continuity = Continuity()
    continuity.follow(parameter_sets(0, 4) + parameter_sets(1, 8) + slice_of(0, "0000", 0x65))
    told = [continuity.follow(slice_of(0, f"{number:04b}"))[0] for number in (1, 2, 3, 5, 6)]
    assert told == [False, False, False, True, False]
    assert continuity.follow(slice_of(1, f"{0:08b}", 0x65)) == (False, 0)
    assert [continuity.follow(slice_of(1, f"{number:08b}"))[0] for number in (1, 2, 4)] == [False, False, True]


def test_a_parameter_set_that_cannot_be_read_changes_nothing_but_is_damage():
    continuity = Continuity()
    sets = parameter_sets(0, 4)
    continuity.follow(sets + slice_of(0, "0000", 0x65))
    assert continuity.follow(sets[:6] + slice_of(0, "0001")) == (True, None)
    assert [continuity.follow(slice_of(0, f"{number:04b}"))[0] for number in (2, 4)] == [False, True]


def test_h264_headers_are_read_through_emulation_prevention():
    large = "0" * 24 + "1" + "0" * 24  # an offset whose code has two zero bytes in it
    sps = f"{66:08b}{0:08b}{30:08b}" + "1" + "1" + "010" + "0" + large + "1" + "1" + "010" + "1" + "011" + "011" + "1"
    sps = bits_to_nal(0x67, sps)
    assert b"\0\0\3" in sps
    assert parse_sps(sps) == Sps(number=0, frame_num_bits=4, separate_colour_planes=False, frames_only=True)
    user_data, recovery_point = f"{5:08b}{4:08b}{0:032b}", f"{6:08b}{1:08b}11000100"
    sei = bits_to_nal(0x06, user_data + recovery_point)
    assert b"\0\0\3" in sei
    assert Continuity().follow(b"\0\0\1" + sei + b"\0\0\1\x41\x9a\x24") == (False, 0)


def test_h264_headers_that_are_cut_off_say_nothing(tmp_path):
    unit = access_units(write_clip(tmp_path / "clip.mp4", 1))[0]["data"]
    for length in range(len(unit) // 4):
        Continuity(unit[:length]).follow(unit[: length // 2])


def test_frames_before_the_first_key_frame_are_corrupt(tmp_path):
    """As after joining a stream in the middle, with the parameter sets known from the SDP."""
    clip = write_clip(tmp_path / "clip.mp4", 36, gop=12, picture=sparkling())
    units = access_units(clip)
    truth = {frame.arrival: luma(frame).copy() for frame in decode(units, "h264")}
    with av.open(str(clip)) as container:
        extradata = container.streams.video[0].codec_context.extradata
    parameter_sets = units[0]["data"][: units[0]["data"].index(b"\0\0\1\x65")]  # Annex B, up to the IDR slice
    assert extradata
    frames = decode(units[5:], "h264", parameter_sets)
    assert [frame.corrupt for frame in frames[:7]] == [True] * 7
    assert [frame.corrupt for frame in frames[7:]] == [False] * (len(frames) - 7)
    assert wrong_but_clean(frames, truth) == []


def test_what_cannot_be_decoded_still_counts_as_a_corrupt_frame(tmp_path):
    units = access_units(write_clip(tmp_path / "clip.mp4", 20, gop=10))
    units[4]["data"] = b"\0\0\0\1\x09\x10"  # no picture in it
    frames = decode(units, "h264")
    assert len(frames) == 20
    assert [index for index, frame in enumerate(frames) if frame.corrupt] == [4, 5, 6, 7, 8, 9]
    assert frames[4].planes[0].shape == (240, 320)


def test_too_many_bad_packets_in_a_row_are_no_video(tmp_path):
    units = access_units(write_clip(tmp_path / "clip.mp4", 10))
    nonsense = [dict(units[0], data=bytes(100), key=False)] * (MAX_BAD_PACKETS - 1)
    assert len(decode(units + nonsense + units, "h264")) == 20 + len(nonsense)
    with pytest.raises(CaptureError, match="could not be decoded") as caught:
        decode(units + nonsense + nonsense, "h264")
    assert caught.value.reason == "decode"


@pytest.mark.parametrize("cut", ["last byte", "half"])
def test_a_jpeg_that_is_cut_is_corrupt_and_the_next_is_not(tmp_path, cut):
    clip = write_clip(tmp_path / "clip.avi", 3, codec="mjpeg", pix_fmt="yuvj422p", picture=sparkling())
    units = access_units(clip)
    data = units[1]["data"]
    units[1]["data"] = data[:-1] if cut == "last byte" else data[: len(data) // 2]
    assert [frame.corrupt for frame in decode(units, "mjpeg")] == [False, True, False]


def jpeg_of(picture: np.ndarray, **how: int) -> bytes:
    flags = [part for name, value in how.items() for part in (getattr(cv2, f"IMWRITE_JPEG_{name}"), value)]
    return cv2.imencode(".jpg", picture, flags)[1].tobytes()


def damaged(data: bytes) -> bool:
    """Whether its frame is corrupt."""
    whole = {"pts": 0.0, "key": True, "data": jpeg_of(np.zeros((240, 320), np.uint8))}
    return decode([whole, {"pts": 1.0, "key": True, "data": data}], "mjpeg")[1].corrupt


@pytest.fixture(scope="module")
def texture() -> np.ndarray:
    return cv2.GaussianBlur(sparkling(324, 246)(0), (0, 0), 1)


@pytest.mark.parametrize("interval", [1, 3, 40])
def test_a_jpeg_without_some_restart_intervals_is_corrupt(texture, interval):
    """From one marker to another is missing, any number of them: FFmpeg shows what follows in another place."""
    data = jpeg_of(texture, RST_INTERVAL=interval)
    scan = data.rindex(b"\xff\xda")
    ends = [match.end() for match in re.finditer(rb"\xff[\xd0-\xd7]", data[scan:])]
    assert len(ends) == -(-21 * 16 // interval) - 1
    assert not damaged(data)
    for missing in range(1, min(len(ends), 18)):
        first, last = scan + ends[0], scan + ends[missing]
        assert damaged(data[:first] + data[last:]), missing


@pytest.mark.parametrize(
    "how",
    [
        {"RST_INTERVAL": 5, "PROGRESSIVE": 1},
        {"RST_INTERVAL": 1, "PROGRESSIVE": 1},
        {"RST_INTERVAL": 7, "SAMPLING_FACTOR": 0x111111},
        {"RST_INTERVAL": 7, "SAMPLING_FACTOR": 0x211111},
        {"RST_INTERVAL": 336},
        {"RST_INTERVAL": 65535},
    ],
)
def test_no_whole_jpeg_with_restart_markers_is_called_corrupt(texture, how):
    """Several scans begin to count anew each; rubbish of an older picture behind the end is none of it."""
    data = jpeg_of(texture, **how)
    assert not damaged(data)
    assert not damaged(data + b"\xff\xd3\xff\xd3\xff\xd9")
    gray = jpeg_of(texture[:, :, 0], **how)
    assert not damaged(gray)
    assert damaged(gray[:-2])


def test_a_jpeg_whose_headers_are_damaged_is_judged_without_an_error(texture):
    data = jpeg_of(texture, RST_INTERVAL=3)
    for at in range(2, data.rindex(b"\xff\xda") + 14):
        for value in (0x00, 0xFF):
            is_whole(data[:at] + bytes([value]) + data[at + 1 :])
            is_whole(data[:at] + data[-2:])
