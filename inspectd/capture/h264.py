"""Whether an H.264 stream is whole: what FFmpeg's decoder conceals without a word.

When a coded picture that others refer to never arrives (a camera's full buffer, a lost frame on the
network), FFmpeg repeats an older picture in its place and raises no flag: the following pictures look
good and are wrong until the next key frame. The stream itself tells: `frame_num` counts the reference
pictures (ITU-T H.264, 7.4.3), so a gap in it is a lost picture, and the same number again is one that came twice.
Only headers are read, about 50 µs a picture.

Data within a picture carry no checksum. What the syntax forbids is looked for (`is_whole`); bits that changed into
another valid picture are seen by nobody: that is the business of the network's and the disk's own checksums.
"""

from __future__ import annotations

import re
from contextlib import suppress

from inspectd.capture.h264_syntax import (
    IDR,
    PARTITION_A,
    PPS,
    SEI,
    SLICE,
    SPS,
    ParameterSets,
    Slice,
    avcc_parameter_sets,
    nal_units,
    recovery_frame_count,
)

_ZEROS, _NONZERO = bytes(3), re.compile(rb"[^\0]")


class Continuity:
    """Follows one stream's coded pictures in decoding order.

    `extradata` is the decoder configuration: avcC (length-prefixed NAL units, as in MP4) or Annex B.
    """

    def __init__(self, extradata: bytes | None = None) -> None:
        self._parameter_sets = ParameterSets()
        self._length_size = 0  # bytes of the length before each NAL unit; 0 means Annex B start codes
        self._previous: int | None = None  # frame_num of the last reference picture
        self._previous_field: int | None = None  # its parity, None when it was a whole frame
        self._recovers_at: int | None = None  # frame_num at which a gradual refresh is complete
        self._refreshing = 0  # pictures since it began
        if extradata and extradata[0] == 1 and len(extradata) > 6:
            self._length_size = (extradata[4] & 3) + 1
            with suppress(IndexError):
                for nal in avcc_parameter_sets(extradata):
                    self._parameter_sets.read(nal)
        elif extradata:
            for nal in nal_units(extradata, 0):
                self._parameter_sets.read(nal)

    def follow(self, unit: bytes) -> tuple[bool, int | None]:
        """The next coded picture: (lost, clean).

        `lost`: a picture that this one may refer to never came or came twice, or its own data are not whole.
        `clean`: this picture and all that follow in display order depend on no older ones than those so many
        places before it in decoding order (0 at a key frame, more at the end of a gradual refresh); None if that
        cannot be said. Of what is no H.264 at all nothing is said: the decoder has its own opinion about it.
        """
        damaged = not is_whole(unit, self._length_size)
        recovery: int | None = None
        slices: list[Slice] = []
        for nal in nal_units(unit, self._length_size):
            kind = nal[0] & 31
            try:
                if kind in (SPS, PPS):
                    damaged |= not self._parameter_sets.read(nal)
                elif kind == SEI and recovery is None:
                    recovery = recovery_frame_count(nal)
                elif kind in (SLICE, PARTITION_A, IDR):
                    slices.append(self._parameter_sets.read_slice(nal))
            except IndexError:  # cut off; a message may be, for all that depends on it
                damaged |= kind != SEI
        if not slices:
            return damaged, None
        if slices[0].sps is not None and slices[0].sps.frames_only:  # else it may be two fields
            damaged |= len(set(slices)) > 1
        lost, clean = self._follow_picture(slices[0], recovery)
        return lost or damaged, clean

    def _follow_picture(self, picture: Slice, recovery: int | None) -> tuple[bool, int | None]:
        if picture.idr:
            self._previous, self._previous_field, self._recovers_at = 0, None, None
            return False, 0
        frame_num = picture.frame_num
        if picture.sps is None or frame_num is None:
            return False, 0 if recovery == 0 else None
        modulo = 1 << picture.sps.frame_num_bits
        lost = self._is_out_of_order(frame_num, picture.field, modulo)
        if picture.reference:
            self._previous, self._previous_field = frame_num, picture.field
        elif lost:
            self._previous, self._previous_field = (frame_num - 1) % modulo, None
        self._refreshing += 1
        if recovery is not None:
            self._recovers_at, self._refreshing = (frame_num + recovery) % modulo, 0
        elif lost:
            self._recovers_at = None  # the refresh itself has a hole
        if self._recovers_at != frame_num:
            return lost, None
        self._recovers_at = None
        return False, self._refreshing

    def _is_out_of_order(self, frame_num: int, field: int | None, modulo: int) -> bool:
        """Whether no picture with this number may follow the last reference picture (7.4.3, frame_num).

        A stream may allow itself gaps, to be thinned on its way. From here such a gap looks like any other.
        """
        if self._previous is None:
            return False
        if frame_num == self._previous:  # only the other field of the same frame
            return field is None or self._previous_field is None or field == self._previous_field
        return frame_num != (self._previous + 1) % modulo


def is_whole(unit: bytes, length_size: int) -> bool:
    """Whether the NAL units fill a coded picture exactly, and none has bytes in it that 7.4.1 forbids.

    Three zero bytes never stand within a NAL unit, so blocks that a disk or a buffer has lost show.
    """
    if not length_size:
        return not _has_zeros_within(unit)
    at = 0
    while at + length_size <= len(unit):
        end = at + length_size + int.from_bytes(unit[at : at + length_size], "big")
        if _has_zeros_within(unit[at + length_size : end]):
            return False
        at = end
    return at == len(unit)


def _has_zeros_within(data: bytes) -> bool:
    """Whether three zeros or more are followed by anything but the end or a start code."""
    at = data.find(_ZEROS)
    while at >= 0:
        behind = _NONZERO.search(data, at)
        if behind is None:
            return False
        if data[behind.start()] != 1:
            return True
        at = data.find(_ZEROS, behind.start())
    return False
