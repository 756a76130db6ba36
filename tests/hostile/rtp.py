"""Mutated RTP, on its way from a real RTSP server to `RtspSource`: packets cut, flipped, doubled, held up and made up.

What is asked of every case: frames, or an error of the camera's; no crash, no hang, no flood of memory, and where whole
packets are lost or out of order no picture is admitted that the camera did not take.

The servers belong to the test, which writes what it plays and where into `servers.json`; the child of `cage` connects.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hostile.clips import Unit, _starts, decode, fates, key, one_line
from hostile.more_clips import IS_KEY
from media import access_units
from rtsp_proxy import Meddle, RtspProxy

from inspectd.capture.rtsp import RtspSource
from inspectd.config import CameraConfig
from inspectd.errors import CaptureError, Stopped
from inspectd.frame import Frame

SERVERS = "servers.json"
WATCHED_S = 0.8
"""How long a case is looked at; a session is set up in a tenth of it."""
SHARE = 0.05

LOST = ("lose", "delay", "swap")
"""Whole packets are missing or elsewhere: their numbers tell."""
CHANGED = (
    "flip",
    "header",
    "cut",
    "lengthen",
    "noise",
    "type",
    "number",
    "time",
    "fragment",
    "report",
    "empty",
    "huge",
)


Picture = tuple[str, int, int, int]  # format, width, height, hash of the planes


def prepare(folder: Path) -> Callable[[int], dict[str, Any]]:
    servers = json.loads((folder / SERVERS).read_text())
    return partial(run, [(name, port, truth(name, Path(clip))) for name, (port, clip) in servers.items()])


def truth(codec: str, clip: Path) -> set[Picture]:
    """Every picture of the clip, as the decoder makes it of what the server was given."""
    units = [(unit["pts"], split(codec, unit["data"])) for unit in access_units(clip)]
    frames, end = decode(units, codec, IS_KEY.get(codec, lambda nals: False))
    assert end is None
    return {picture(frame) for frame in frames}


def split(codec: str, unit: bytes) -> Unit:
    return [unit] if codec == "mjpeg" else _starts(unit)


def picture(frame: Frame) -> Picture:
    return frame.format, frame.width, frame.height, key(frame)[-1]


def run(servers: list[tuple[str, int, set[Picture]]], seed: int) -> dict[str, Any]:
    random_ = random.Random(f"rtp {seed}")
    name, port, pictures = servers[seed % len(servers)]
    way = random_.choice(LOST + CHANGED)
    frames, end = watch(port, meddler(way, random_), WATCHED_S)
    admitted = [frame for frame, fate in zip(frames, fates(frames), strict=True) if fate == "admitted"]
    wrong = sum(picture(frame) not in pictures for frame in admitted)
    return {
        "stream": name,
        "way": way,
        "frames": len(frames),
        "admitted": len(admitted),
        "wrong": wrong,
        "stopped": end,
    }


def watch(port: int, meddle: Meddle, seconds: float, most: int = 10_000) -> tuple[list[Frame], str | None]:
    """The frames of one connection through the proxy, and why it ended, unless its time is over or `most` are there."""
    frames: list[Frame] = []
    with RtspProxy(port) as proxy:
        proxy.meddle = meddle
        source = RtspSource(camera(proxy.url))
        over = threading.Timer(seconds, source.interrupt)
        over.start()
        try:
            source.open()
            for frame in source.frames():
                frame.planes = tuple(plane.copy() for plane in frame.planes)
                frame.owner = None
                frames.append(frame)
                if len(frames) == most:
                    return frames, None
        except Stopped:
            return frames, None
        except CaptureError as err:
            return frames, one_line(err)
        finally:
            over.cancel()
            source.close()
    raise AssertionError("a source never just ends")


def camera(url: str) -> CameraConfig:
    rois = [{"name": "part", "box": [0, 0, 64, 64]}]
    return CameraConfig(name="cam", source=url, connect_timeout_s=4, stall_timeout_s=1, frozen_after_s=0, rois=rois)


# -- what happens to packets (RFC 3550; RFC 6184 and 7798 for fragments) ------------------------------------


def meddler(way: str, random_: random.Random) -> Meddle:
    """Does that to one packet in twenty, from the first second on."""
    held: list[bytes] = []

    def meddle(packet: bytes, control: bool) -> Iterator[bytes]:
        if control is not (way == "report") or random_.random() > (1 if control else SHARE):
            yield packet
            if len(held) > random_.randint(0, 3):
                yield held.pop(0)
        elif way in ("delay", "swap"):
            held.append(packet)
        elif way == "repeat":
            yield from (packet, packet)
        elif way != "lose":
            yield changed(packet, way, random_)

    return meddle


def changed(packet: bytes, way: str, random_: random.Random) -> bytes:
    data = bytearray(packet)
    match way:
        case "flip":
            data[random_.randrange(12, len(data))] ^= 1 << random_.randrange(8)
        case "header":  # version, padding, extension, number of sources
            data[0] ^= 1 << random_.randrange(8)
        case "cut":
            del data[random_.randrange(len(data)) :]
        case "lengthen":
            data += random_.randbytes(random_.choice((1, 100, 20_000)))
        case "noise":
            data[random_.choice((0, 12)) :] = random_.randbytes(random_.randint(1, 1500))
        case "type":
            data[1] = random_.randrange(256)
        case "number":
            data[2:4] = random_.randbytes(2)
        case "time":
            data[4:8] = random_.randbytes(4)
        case "fragment":  # the payload's own headers: aggregation, fragments without their beginning, JPEG's offsets
            data[12 : 12 + random_.randint(1, 8)] = random_.randbytes(8)
        case "report":
            data[random_.randrange(len(data)) :] = random_.randbytes(random_.randint(0, 60))
        case "empty":
            del data[12:]
        case "huge":
            data[12:] = random_.randbytes(65_000)
    return bytes(data[:65_535])
