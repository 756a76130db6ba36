"""Damage: no frame that may be wrong is called whole, and none vanishes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from fractions import Fraction

import av
import numpy as np
import pytest
from av.packet import Packet
from media import access_units, luma, write_clip

from inspectd.capture.h264 import Continuity, Sps, parse_sps
from inspectd.capture.pyav import MAX_BAD_PACKETS, PacketDecoder, Stamp
from inspectd.errors import CaptureError
from inspectd.frame import Frame


def decode(units: list[dict], codec: str, extradata: bytes | None = None, lost: Collection[int] = ()) -> list[Frame]:
    context = av.CodecContext.create(codec, "r")
    if extradata:
        context.extradata = extradata
    decoder = PacketDecoder(context, "test")
    frames = []
    for index, unit in enumerate(units):
        packet = Packet(unit["data"])
        packet.is_keyframe = unit["key"]
        packet.pts, packet.time_base = round(unit["pts"] * 90_000), Fraction(1, 90_000)
        frames += decoder.decode(packet, Stamp(0.0, 0.0, "arrival", unit["pts"], index in lost))
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
def stream(request, tmp_path_factory) -> tuple[str, list[dict], dict[float | None, np.ndarray]]:
    """Decoder, coded pictures, and each whole picture's luma by its pts."""
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
    return codec, units, {frame.pts: luma(frame).copy() for frame in whole}


def wrong_but_clean(frames: list[Frame], truth: dict[float | None, np.ndarray]) -> list[float | None]:
    return [frame.pts for frame in frames if not frame.corrupt and not np.array_equal(luma(frame), truth[frame.pts])]


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


def test_h264_headers_are_read_through_emulation_prevention():
    large = "0" * 24 + "1" + "0" * 24  # an offset whose code has two zero bytes in it
    sps = f"{66:08b}{0:08b}{30:08b}" + "1" + "1" + "010" + "0" + large + "1" + "1" + "010" + "1" + "011" + "011" + "1"
    sps = bits_to_nal(0x67, sps)
    assert b"\0\0\3" in sps
    assert parse_sps(sps) == Sps(frame_num_bits=4, gaps_allowed=True, separate_colour_planes=False, frames_only=True)
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
    truth = {frame.pts: luma(frame).copy() for frame in decode(units, "h264")}
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
