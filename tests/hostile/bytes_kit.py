"""Breaking bytes, as a disk, a network and a stranger spoil a file. Seeded, so that a case can be repeated."""

from __future__ import annotations

import random

HUGE = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0", b"\0\0\0\1", b"\x3f\xff\xff\xff")
WAYS = ("flip", "flips", "zeros", "noise", "cut", "remove", "repeat", "splice", "length")


def broken(data: bytes, random_: random.Random, way: str | None = None) -> tuple[str, bytes]:
    """The data with one thing done to it, and what that was."""
    way = way or random_.choice(WAYS)
    at = random_.randrange(max(1, len(data)))
    length = min(random_.choice((1, 4, 16, 100, 1000, 5000)), len(data) - at)
    changed = bytearray(data)
    match way:
        case "flip":
            changed[at] ^= 1 << random_.randrange(8)
        case "flips":
            for _ in range(random_.randint(2, 12)):
                changed[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
        case "zeros":
            changed[at : at + length] = bytes(length)
        case "noise":
            changed[at : at + length] = random_.randbytes(length)
        case "cut":
            del changed[at:]
        case "remove":
            del changed[at : at + length]
        case "repeat":
            changed[at:at] = data[at : at + length]
        case "splice":
            source = random_.randrange(len(data))
            changed[at : at + length] = data[source : source + length]
        case "length":
            changed[at : at + 4] = random_.choice(HUGE)
    return f"{way} at {at} of {len(data)}", bytes(changed)
