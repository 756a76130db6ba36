"""Whether a JPEG is whole, told from its markers alone (ITU-T T.81, annex B).

FFmpeg goes over data that is missing between two restart markers without a word: it is in step again with the next
marker, and all that follows is shown in another place.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from inspectd.frame import U8

_SOS, _DRI, _EOI = b"\xff\xda", b"\xff\xdd", b"\xff\xd9"
_SEQUENTIAL: Final = (0xC0, 0xC1)  # start of frame: baseline, extended


def is_whole(jpeg: bytes) -> bool:
    """Whether an end marker is behind the last scan (thumbnails in headers come before), and no restart marker missing.

    Of a picture with several scans only the last one's are looked at. Measured: 0.15 ms for 340 kB without restart
    markers, 0.3 ms with.
    """
    scan = jpeg.rfind(_SOS)
    if scan < 0 or jpeg.rfind(_EOI) <= scan:
        return False
    if jpeg.find(_DRI, 0, scan) < 0:
        return True
    markers = _restarts(jpeg, scan)
    in_turn = bool(((markers & 7) == np.arange(markers.size) % 8).all())
    return in_turn and markers.size >= _restarts_due(jpeg, scan)


def _restarts(jpeg: bytes, scan: int) -> U8:
    """The restart markers from there to the next end marker, uint8 [n], of 0xD0 to 0xD7."""
    data = np.frombuffer(jpeg, np.uint8, offset=scan)
    markers: U8 = data[np.flatnonzero(data[:-1] == 0xFF) + 1]
    before: U8 = markers[: int(np.argmax(markers == _EOI[1]))]
    restarts: U8 = before[(before & 0xF8) == 0xD0]
    return restarts


def _restarts_due(jpeg: bytes, scan: int) -> int:
    """How many restart markers the headers promise; 0 where the picture has several scans, or they cannot be read."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(jpeg[at : at + size], "big")

    at, interval, units, components = 2, 0, 0, 0
    while at < scan and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker == 0xFF:  # may fill up before a marker
            at += 1
            continue
        if marker == _DRI[1]:
            interval = number(at + 4, 2)
        elif marker in _SEQUENTIAL:
            height, width, components = number(at + 5, 2), number(at + 7, 2), number(at + 9, 1)
            sampling = jpeg[at + 11 : at + 10 + 3 * components : 3]
            single = components == 1  # whose sampling means nothing
            across = 8 if single else 8 * max((each >> 4 for each in sampling), default=1)
            down = 8 if single else 8 * max((each & 15 for each in sampling), default=1)
            units = -(-width // max(across, 8)) * -(-height // max(down, 8))
        at += 2 + number(at + 2, 2)
    if at != scan or not interval or number(scan + 4, 1) != components:
        return 0
    return -(-units // interval) - 1
