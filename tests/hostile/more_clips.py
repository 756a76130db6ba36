"""Damaged HEVC and Motion JPEG, through the same two ways in as H.264 (see `clips`).

What is asked of every case: no crash, no hang, no flood of memory. A picture that the camera did not take is admitted
only where its bits were changed or a slice of it is missing, and the stream stays valid.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from hostile import clips
from hostile.bytes_kit import broken
from hostile.clips import GOP, PICTURES, SIZE, Stream, Timed, Unit, decode, fates, flipped, key, off, play
from media import access_units, write_clip

X265 = "keyint=12:min-keyint=12:scenecut=0:log-level=none:pools=none:frame-threads=1"
HOW: dict[str, dict[str, Any]] = {
    "hevc": {"codec": "libx265", "options": {"x265-params": f"{X265}:bframes=0"}},
    "hevc-open": {"codec": "libx265", "bframes": 2, "options": {"x265-params": f"{X265}:bframes=2:open-gop=1"}},
    "hevc-b-frames": {"codec": "libx265", "bframes": 3, "options": {"x265-params": f"{X265}:bframes=3:open-gop=0"}},
    "mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
}
CONTAINERS = {"hevc": ("mp4", "mkv", "ts", "hevc"), "mjpeg": ("avi", "mkv", "mjpeg")}
PICTURE, KEY, PARAMETERS = range(32), range(16, 24), (32, 33, 34)  # HEVC's NAL unit types (ITU-T H.265, table 7-1)


def codec_of(name: str) -> str:
    return name.split("-", maxsplit=1)[0]


def prepare(folder: Path) -> Callable[[int], dict[str, Any]]:
    """What is in the folder already is used."""
    return partial(run, [stream(folder, name) for name in HOW], folder)


def run(streams: list[Stream], folder: Path, seed: int) -> dict[str, Any]:
    random_ = random.Random(f"more clips {seed}")
    whole = streams[seed % len(streams)]
    codec = codec_of(whole.name)
    if random_.random() < 0.5:
        way, units = MUTATE[codec](whole.units, random_)
        where, frames, end = "packets", *decode(units, codec, IS_KEY[codec])
    else:
        container = random_.choice(CONTAINERS[codec])
        way, data = broken((folder / f"{whole.name}.{container}").read_bytes(), random_)
        where, frames, end = container, *play(folder / f"broken.{container}", data)
    admitted = [frame for frame, fate in zip(frames, fates(frames), strict=True) if fate == "admitted"]
    never_taken = [frame for frame in admitted if key(frame) not in whole.all]
    return {
        "stream": whole.name,
        "where": where,
        "way": way,
        "frames": len(frames),
        "admitted": len(admitted),
        "wrong": len(never_taken),
        "off": max((off(frame, whole) for frame in never_taken), default=0.0),
        "stopped": end,
    }


def stream(folder: Path, name: str) -> Stream:
    """The whole clip: its units, and every true picture."""
    codec = codec_of(name)
    made = folder / f"{name}.{CONTAINERS[codec][0]}"
    if not made.exists():
        texture = np.random.default_rng(1).integers(40, 200, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        write_clip(made, PICTURES, size=SIZE, gop=GOP, picture=lambda i: np.roll(texture, 5 * i, axis=1), **HOW[name])
        for other in CONTAINERS[codec][1:]:
            copy(made, made.with_suffix(f".{other}"))
    split = clips._starts if codec == "hevc" else lambda jpeg: [jpeg]
    units = [(unit["pts"], split(unit["data"])) for unit in access_units(made)]
    frames, end = decode(units, codec, IS_KEY[codec])
    assert (len(frames), end) == (PICTURES, None)
    assert fates(frames) == ["admitted"] * PICTURES, "a false alarm on a whole stream"
    keys = [key(frame) for frame in frames]
    truth = {key_: frame.planes[0].astype(np.int16) for key_, frame in zip(keys, frames, strict=True)}
    return Stream(name, units, {frame.pts: key_ for frame, key_ in zip(frames, keys, strict=True)}, truth)


def copy(clip: Path, to: Path) -> None:
    """The same coded pictures in another container."""
    with av.open(str(clip)) as source, av.open(str(to), "w") as out:
        video = source.streams.video[0]
        track = out.add_stream_from_template(video)
        for packet in source.demux(video):
            if packet.size:
                packet.stream = track
                out.mux(packet)


# -- damage ---------------------------------------------------------------------------------------------

LOST = ("lose a picture", "lose pictures", "repeat a picture", "exchange pictures", "begin late", "lose parameters")
CUT = ("lose a slice", "cut a slice", "cut the last bytes", "garbage between")
CHANGED = ("flip", "flips", "noise", "flip in a header", "flip in parameters", "another picture's slice")


def mutate_hevc(units: list[Timed], random_: random.Random, way: str | None = None) -> tuple[str, list[Timed]]:
    way = way or random_.choice(LOST + CUT + CHANGED)
    changed = [(pts, list(nals)) for pts, nals in units]
    at = random_.randrange(1, len(changed) - 1)
    nals = changed[at][1]
    which = random_.choice(_of(nals, PICTURE))
    nal = nals[which]
    parameters = random_.choice([nals for _, nals in changed if _of(nals, PARAMETERS)])
    match way:
        case "lose a picture":
            del changed[at]
        case "lose pictures":
            del changed[at : at + random_.randint(2, GOP - 1)]
        case "repeat a picture":
            changed.insert(at, changed[at])
        case "exchange pictures":
            changed[at], changed[at - 1] = changed[at - 1], changed[at]
        case "begin late":
            sets = [changed[0][1][index] for index in _of(changed[0][1], PARAMETERS)]
            del changed[:at]
            changed[0] = (changed[0][0], sets + changed[0][1])
        case "lose parameters":
            del parameters[random_.choice(_of(parameters, PARAMETERS))]
        case "lose a slice":
            del nals[which]
        case "cut a slice":
            nals[which] = nal[: random_.randint(3, len(nal) - 1)]
        case "cut the last bytes":
            nals[which] = nal[: max(3, len(nal) - random_.randint(1, 8))]
        case "garbage between":
            nals.insert(random_.randint(0, len(nals)), bytes([random_.randrange(128), 1]) + random_.randbytes(40))
        case "another picture's slice":
            others = [unit[index] for _, unit in units for index in _of(unit, PICTURE)]
            nals[which] = random_.choice(others)
        case "flip in a header":
            nals[which] = flipped(nal, 0, min(12, len(nal)), 1, random_)
        case "flip in parameters":
            index = random_.choice(_of(parameters, PARAMETERS))
            parameters[index] = flipped(parameters[index], 0, len(parameters[index]), 1, random_)
        case _:
            start = min(12, len(nal) - 1)
            nals[which] = nal[:start] + broken(nal[start:], random_, way)[1]
    return f"{way}, picture {at}", [(pts, nals) for pts, nals in changed if nals]


def mutate_mjpeg(units: list[Timed], random_: random.Random, way: str | None = None) -> tuple[str, list[Timed]]:
    at = random_.randrange(len(units))
    pts, (jpeg,) = units[at]
    way, jpeg = broken(jpeg, random_, way)
    return f"{way}, picture {at}", [*units[:at], (pts, [jpeg]), *units[at + 1 :]]


IS_KEY = {"hevc": lambda nals: bool(_of(nals, KEY)), "mjpeg": lambda nals: True}
MUTATE = {"hevc": mutate_hevc, "mjpeg": mutate_mjpeg}


def _of(nals: Unit, kinds: range | tuple[int, ...]) -> list[int]:
    return [index for index, nal in enumerate(nals) if (nal[0] >> 1 & 63) in kinds]
