"""Damaged H.264 through the daemon's own decoding: coded pictures as RTSP brings them, files as `file:` plays them.

What is asked of every case: no crash, no hang, no flood of memory, and no frame that the gate admits although its
picture is not one that the camera took.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.packet import Packet
from hostile.bytes_kit import HUGE, broken
from media import access_units, write_clip

from inspectd.capture.file import FileSource
from inspectd.capture.gate import Gate
from inspectd.capture.pyav import PacketDecoder, Stamp
from inspectd.config import CameraConfig
from inspectd.errors import CaptureError
from inspectd.frame import Frame

SIZE = (192, 128)
PICTURES, GOP = 36, 12
OPTIONS = {
    "cavlc": {},
    "cabac": {"preset": "medium", "x264-params": "keyint=12:scenecut=0:bframes=0:ref=4"},
    "b-frames": {"x264-params": "keyint=12:scenecut=0:bframes=3:b-pyramid=normal:b-adapt=0"},
    "slices": {"x264-params": "keyint=12:scenecut=0:bframes=0:slices=4"},
    "cabac-slices": {"preset": "medium", "x264-params": "keyint=12:scenecut=0:bframes=0:slices=4"},
    "refresh": {"x264-params": "keyint=12:scenecut=0:bframes=0:intra-refresh=1"},
}
CONTAINERS = ("mp4", "mkv", "ts", "h264")
SLICES, SPS, PPS = (1, 5), 7, 8

Key = tuple[Any, ...]  # a picture, byte for byte, and what its colours mean
Unit = list[bytes]  # the NAL units of one coded picture
Timed = tuple[float, Unit]  # with its presentation time


@dataclass
class Stream:
    name: str
    units: list[Timed]
    by_pts: dict[float | None, Key]
    all: dict[Key, np.ndarray]  # every true picture, with its luma


def prepare(folder: Path) -> Callable[[int], dict[str, Any]]:
    """What is in the folder already is used."""
    streams = [_stream(folder, name) for name in OPTIONS]
    return partial(run, streams, folder)


def run(streams: list[Stream], folder: Path, seed: int) -> dict[str, Any]:
    random_ = random.Random(f"clip {seed}")
    stream = streams[seed % len(streams)]
    if random_.random() < 0.5:
        way, units = mutate_units(stream.units, random_)
        where, frames, end = "packets", *decode(units)
        expected = [stream.by_pts.get(frame.pts) for frame in frames]
    else:
        container = random_.choice(CONTAINERS)
        data = (folder / f"{stream.name}.{container}").read_bytes()
        way, data = mutate_file(data, container, random_)
        where, frames, end = container, *play(folder / f"broken.{container}", data)
        expected = [key(frame) if key(frame) in stream.all else None for frame in frames]
    admitted = [fate == "admitted" for fate in fates(frames)]
    wrong = [index for index, frame in enumerate(frames) if admitted[index] and key(frame) != expected[index]]
    return {
        "stream": stream.name,
        "where": where,
        "way": way,
        "frames": len(frames),
        "admitted": sum(admitted),
        "wrong": wrong,
        "off": max((off(frames[index], stream) for index in wrong), default=0.0),
        "stopped": end,
    }


# -- what came out --------------------------------------------------------------------------------------


def key(frame: Frame) -> Key:
    planes = tuple(plane.tobytes() for plane in frame.planes)
    return frame.format, frame.width, frame.height, frame.matrix, frame.full_range, hash(planes)


def off(frame: Frame, stream: Stream) -> float:
    """The share of a frame's pixels that differ visibly (by more than 12 of 255) from the nearest true picture."""
    luma = frame.planes[0]
    truths = [truth for truth in stream.all.values() if truth.shape == luma.shape]
    return min((float((np.abs(truth - luma.astype(np.int16)) > 12).mean()) for truth in truths), default=1.0)


def fates(frames: list[Frame]) -> list[str]:
    gate = Gate(camera(Path("x")))
    return [gate.admit(frame, frame.arrival) for frame in frames]


def camera(path: Path) -> CameraConfig:
    return CameraConfig(name="cam", source=f"file:{path}", rois=[{"name": "part", "box": [0, 0, *SIZE]}])


# -- the two ways in ------------------------------------------------------------------------------------


def decode(
    units: list[Timed], codec: str = "h264", is_key: Callable[[Unit], bool] = lambda nals: False
) -> tuple[list[Frame], str | None]:
    """Coded pictures through the decoder; frames, and why it gave up, if it did. FFmpeg's parser says which are key."""
    decoder = PacketDecoder(av.CodecContext.create(codec, "r"), "hostile")
    frames: list[Frame] = []
    try:
        for pts, nals in units:
            packet = Packet(nals[0] if codec == "mjpeg" else annex_b(nals))
            packet.is_keyframe = is_key(nals)
            packet.pts, packet.time_base = round(pts * 90_000), Fraction(1, 90_000)
            frames += decoder.decode(packet, Stamp(0.0, 0.0, "arrival", pts))
        frames += decoder.flush()
    except CaptureError as err:
        return frames, one_line(err)
    return frames, None


def play(path: Path, data: bytes) -> tuple[list[Frame], str | None]:
    """A file's frames, as far as they go, and why they end, unless it was played to its end."""
    path.write_bytes(data)
    source = FileSource(camera(path))
    frames: list[Frame] = []
    try:
        source.open()
        for frame in source.frames():
            frame.planes = tuple(plane.copy() for plane in frame.planes)
            frame.owner = None
            frames.append(frame)
            if len(frames) > 20 * PICTURES:
                raise AssertionError("a short clip without end")
    except CaptureError as err:
        return frames, None if err.reason == "finished" else one_line(err)
    finally:
        source.close()
    raise AssertionError("a source never just ends")


def one_line(err: Exception) -> str:
    assert "\n" not in str(err), "more than one line"
    return str(err)


def annex_b(nals: Unit) -> bytes:
    return b"".join(b"\0\0\0\1" + nal for nal in nals)


def resized(sps: bytes, macroblocks: int) -> bytes:
    """A baseline SPS (without cropping) of another size in both directions, and with the most reference pictures."""
    bits = "".join(f"{byte:08b}" for byte in sps[1:].replace(b"\0\0\3", b"\0\0"))
    at = 24

    def code() -> None:
        nonlocal at
        at = bits.index("1", at) * 2 - at + 1

    code()  # seq_parameter_set_id
    code()  # log2_max_frame_num_minus4
    assert bits[at : at + 3] == "011", "pic_order_cnt_type 2"
    code()
    references = at
    code()
    at += 1  # gaps_in_frame_num_value_allowed_flag
    code()  # width
    code()  # height
    new = bits[:references] + _code(16) + "0" + 2 * _code(macroblocks - 1) + bits[at:]
    new += "0" * (-len(new) % 8)
    raw = bytes(int(new[start : start + 8], 2) for start in range(0, len(new), 8)).rstrip(b"\0")
    return sps[:1] + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", raw)


def _code(number: int) -> str:
    """Exp-Golomb."""
    bits = f"{number + 1:b}"
    return "0" * (len(bits) - 1) + bits


def split(unit: bytes) -> Unit:
    return [nal.rstrip(b"\0") if (nal[0] & 31) not in SLICES else nal for nal in _starts(unit)]


def _starts(unit: bytes) -> list[bytes]:
    return [nal for nal in unit.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if nal]


def _stream(folder: Path, name: str) -> Stream:
    bframes = 3 if name == "b-frames" else 0
    make = partial(write_clip, count=PICTURES, size=SIZE, gop=GOP, bframes=bframes, options=OPTIONS[name])
    texture = np.random.default_rng(1).integers(40, 200, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    made = [container for container in CONTAINERS if not (folder / f"{name}.{container}").exists()]
    for container in made:
        make(path=folder / f"{name}.{container}", picture=lambda index: np.roll(texture, 5 * index, axis=1))
    units = [(unit["pts"], split(unit["data"])) for unit in access_units(folder / f"{name}.mp4")]
    frames, end = decode(units)
    assert end is None
    assert len(frames) == PICTURES
    assert fates(frames) == ["admitted"] * PICTURES, "a false alarm on a whole stream"
    keys = [key(frame) for frame in frames]
    truth = {key: frame.planes[0].astype(np.int16) for key, frame in zip(keys, frames, strict=True)}
    for container in made:
        played, end = play(folder / "whole.tmp", (folder / f"{name}.{container}").read_bytes())
        assert (len(played), end) == (PICTURES, None), container
        assert {key(frame) for frame in played} == set(truth), container
        assert fates(played) == ["admitted"] * PICTURES, container
    return Stream(name, units, {frame.pts: key_ for frame, key_ in zip(frames, keys, strict=True)}, truth)


# -- damage ---------------------------------------------------------------------------------------------

STRUCTURAL = (
    "lose a picture", "lose pictures", "repeat a picture", "exchange pictures", "begin late", "lose a slice",
    "repeat a slice", "exchange slices", "cut a slice", "cut the last bytes",
    "garbage between", "lose parameters",
)  # fmt: skip
"""Something whole is missing, twice or elsewhere: the stream itself tells."""
WITHIN = (
    "flip in a slice", "flips in a slice", "noise in a slice", "flip in a slice header", "flip in parameters",
    "another picture's slice",
)  # fmt: skip
"""Bits are others than were sent. H.264 has no checksum: what is still a valid stream shows another picture."""


def mutate_units(units: list[Timed], random_: random.Random, way: str | None = None) -> tuple[str, list[Timed]]:
    way = way or random_.choice(STRUCTURAL + WITHIN)
    changed = [(pts, list(nals)) for pts, nals in units]
    at = random_.randrange(1, len(changed) - 1)
    nals = changed[at][1]
    slices = [index for index, nal in enumerate(nals) if (nal[0] & 31) in SLICES]
    which = random_.choice(slices)
    nal = nals[which]
    match way:
        case "lose a picture":
            del changed[at]
        case "lose pictures":
            # Not as many as from one key frame to the next: then the numbers go on as if nothing had been.
            del changed[at : at + random_.randint(2, GOP - 1)]
        case "repeat a picture":
            changed.insert(at, changed[at])
        case "exchange pictures":
            changed[at], changed[at - 1] = changed[at - 1], changed[at]
        case "begin late":
            parameters = [nal for nal in changed[0][1] if (nal[0] & 31) in (SPS, PPS)]
            del changed[:at]
            changed[0] = (changed[0][0], parameters + changed[0][1])
        case "lose a slice":
            del nals[which]
        case "repeat a slice":
            nals.insert(which, nal)
        case "exchange slices":
            other = random_.choice(slices)
            nals[which], nals[other] = nals[other], nals[which]
        case "another picture's slice":
            other = random_.choice([nal for _, unit in units for nal in unit if (nal[0] & 31) in SLICES])
            nals[which] = other
        case "cut a slice":
            nals[which] = nal[: random_.randint(2, len(nal) - 1)]
        case "cut the last bytes":
            nals[which] = nal[: max(2, len(nal) - random_.randint(1, 8))]
        case "garbage between":
            nals.insert(random_.randint(0, len(nals)), bytes([random_.randrange(128)]) + random_.randbytes(40))
        case "lose parameters":
            key_unit = random_.choice([nals for _, nals in changed if any((nal[0] & 31) == SPS for nal in nals)])
            del key_unit[random_.choice([i for i, nal in enumerate(key_unit) if (nal[0] & 31) in (SPS, PPS)])]
        case "flip in a slice" | "flips in a slice":
            count = 1 if way == "flip in a slice" else random_.randint(2, 12)
            nals[which] = flipped(nal, min(12, len(nal) - 1), len(nal), count, random_)
        case "noise in a slice":
            start = random_.randrange(min(12, len(nal) - 1), len(nal))
            noise = random_.randbytes(random_.randint(2, 200))
            nals[which] = (nal[:start] + noise + nal[start + len(noise) :])[: max(len(nal), start + len(noise))]
        case "flip in a slice header":
            nals[which] = flipped(nal, 0, min(12, len(nal)), 1, random_)
        case "flip in parameters":
            unit = random_.choice([nals for _, nals in changed if any((nal[0] & 31) == SPS for nal in nals)])
            index = random_.choice([i for i, nal in enumerate(unit) if (nal[0] & 31) in (SPS, PPS)])
            unit[index] = flipped(unit[index], 0, len(unit[index]), 1, random_)
    return f"{way}, picture {at}", [(pts, nals) for pts, nals in changed if nals]


def flipped(nal: bytes, first: int, end: int, count: int, random_: random.Random) -> bytes:
    changed = bytearray(nal)
    for _ in range(count):
        changed[random_.randrange(first, end)] ^= 1 << random_.randrange(8)
    return bytes(changed)


def mutate_file(data: bytes, container: str, random_: random.Random) -> tuple[str, bytes]:
    if container == "mp4" and random_.random() < 0.5:
        return mutate_box(data, random_)
    return broken(data, random_)


def mutate_box(data: bytes, random_: random.Random) -> tuple[str, bytes]:
    """One box of an MP4 file lost, doubled, or with another length."""
    at, size = random_.choice(_boxes(data, 0, len(data)))
    name = data[at + 4 : at + 8].decode("latin-1")
    way = random_.choice(("lose", "repeat", "length", "flip"))
    if way == "lose":
        return f"lose box {name}", data[:at] + data[at + size :]
    if way == "repeat":
        return f"repeat box {name}", data[: at + size] + data[at : at + size] + data[at + size :]
    if way == "length":
        return f"length of box {name}", data[:at] + random_.choice(HUGE) + data[at + 4 :]
    box = flipped(data[at : at + size], min(8, size - 1), size, 1, random_)
    return f"flip in box {name}", data[:at] + box + data[at + size :]


_NESTED = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"dinf", b"edts", b"udta")


def _boxes(data: bytes, start: int, end: int) -> list[tuple[int, int]]:
    found = []
    while start + 8 <= end:
        size = int.from_bytes(data[start : start + 4], "big")
        if size < 8:
            break
        found.append((start, size))
        if data[start + 4 : start + 8] in _NESTED:
            found += _boxes(data, start + 8, start + size)
        start += size
    return found
