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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

_SLICE, _PARTITION_A, _IDR, _SEI, _SPS = 1, 2, 5, 6, 7
_RECOVERY_POINT = 6  # SEI payload type, D.2.8
_ZEROS, _NONZERO = bytes(3), re.compile(rb"[^\0]")
_MOST_BYTES = 65_536  # of one NAL unit that are looked at
_HEADER_BYTES = 64  # enough for the fields that are read, of a slice or an SPS without scaling lists
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # 7.3.2.1.1


@dataclass(frozen=True, slots=True)
class Sps:
    """What is needed of a sequence parameter set (7.3.2.1.1)."""

    frame_num_bits: int
    gaps_allowed: bool
    separate_colour_planes: bool
    frames_only: bool  # no picture is a field


class _Slice(NamedTuple):
    """What the slices of one picture have in common (7.4.1.2.4); equal in all of them, but for those of two fields."""

    idr: bool
    reference: bool  # later pictures may refer to it
    frame_num: int | None  # None without an SPS
    field: int | None  # 0 top, 1 bottom, None in a frame


class Continuity:
    """Follows one stream's coded pictures in decoding order.

    `extradata` is the decoder configuration: avcC (length-prefixed NAL units, as in MP4) or Annex B.
    """

    def __init__(self, extradata: bytes | None = None) -> None:
        self._sps: Sps | None = None
        self._length_size = 0  # bytes of the length before each NAL unit; 0 means Annex B start codes
        self._previous: int | None = None  # frame_num of the last reference picture
        self._previous_field: int | None = None  # its parity, None when it was a whole frame
        self._recovers_at: int | None = None  # frame_num at which a gradual refresh is complete
        self._refreshing = 0  # pictures since it began
        if extradata and extradata[0] == 1 and len(extradata) > 6:
            self._length_size = (extradata[4] & 3) + 1
            for nal in _avcc_sps(extradata):
                self._read_sps(nal)
        elif extradata:
            for nal in _nal_units(extradata, 0):
                if nal[0] & 31 == _SPS:
                    self._read_sps(nal)

    def follow(self, unit: bytes) -> tuple[bool, int | None]:
        """The next coded picture: (lost, clean).

        `lost`: a picture that this one may refer to never came or came twice, or its own data are not whole.
        `clean`: this picture and all that follow in display order depend on no older ones than those so many
        places before it in decoding order (0 at a key frame, more at the end of a gradual refresh); None if that
        cannot be said. Of what is no H.264 at all nothing is said: the decoder has its own opinion about it.
        """
        damaged = not is_whole(unit, self._length_size)
        recovery: int | None = None
        slices: list[_Slice] = []
        for nal in _nal_units(unit, self._length_size):
            kind = nal[0] & 31
            try:
                if kind == _SPS:
                    damaged |= not self._read_sps(nal)
                elif kind == _SEI and recovery is None:
                    recovery = _recovery_frame_count(nal)
                elif kind in (_SLICE, _PARTITION_A, _IDR):
                    slices.append(_read_slice(nal, self._sps))
            except IndexError:  # cut off; a message may be, for all that depends on it
                damaged |= kind != _SEI
        if not slices:
            return damaged, None
        if self._sps is not None and self._sps.frames_only:  # else it may be two fields
            damaged |= len(set(slices)) > 1
        lost, clean = self._follow_picture(slices[0], recovery)
        return lost or damaged, clean

    def _follow_picture(self, picture: _Slice, recovery: int | None) -> tuple[bool, int | None]:
        if picture.idr:
            self._previous, self._previous_field, self._recovers_at = 0, None, None
            return False, 0
        frame_num = picture.frame_num
        if self._sps is None or frame_num is None:
            return False, 0 if recovery == 0 else None
        modulo = 1 << self._sps.frame_num_bits
        lost = self._is_out_of_order(frame_num, picture.field, modulo, self._sps.gaps_allowed)
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

    def _is_out_of_order(self, frame_num: int, field: int | None, modulo: int, gaps_allowed: bool) -> bool:
        """Whether no picture with this number may follow the last reference picture (7.4.3, frame_num)."""
        if self._previous is None:
            return False
        if frame_num == self._previous:  # only the other field of the same frame
            return field is None or self._previous_field is None or field == self._previous_field
        return not gaps_allowed and frame_num != (self._previous + 1) % modulo

    def _read_sps(self, nal: bytes) -> bool:
        try:
            self._sps = parse_sps(nal)
        except IndexError:
            self._sps = None  # no check is better than a wrong one
            return False
        return True


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


def _read_slice(nal: bytes, sps: Sps | None) -> _Slice:
    """Read the beginning of a slice header (7.3.3).

    Raises:
        IndexError: it is cut off.
    """
    idr, reference = nal[0] & 31 == _IDR, bool(nal[0] & 0x60)
    if sps is None:
        return _Slice(idr, reference, None, None)
    bits = _Bits(nal[1:_HEADER_BYTES])
    bits.ue()  # first_mb_in_slice
    bits.ue()  # slice_type
    bits.ue()  # pic_parameter_set_id
    if sps.separate_colour_planes:
        bits.u(2)
    frame_num = bits.u(sps.frame_num_bits)
    field = None if sps.frames_only or not bits.u(1) else bits.u(1)
    return _Slice(idr, reference, frame_num, field)


def parse_sps(nal: bytes) -> Sps:
    """Read a sequence parameter set NAL unit.

    Raises:
        IndexError: it is cut off, or says what none can.
    """
    bits = _Bits(nal[1:])
    profile = bits.u(8)
    bits.u(16)  # constraint flags, level_idc
    bits.ue()  # seq_parameter_set_id
    separate = False
    if profile in _HIGH_PROFILES:
        chroma_format = bits.ue()
        if chroma_format == 3:
            separate = bool(bits.u(1))
        bits.ue()  # bit_depth_luma_minus8
        bits.ue()  # bit_depth_chroma_minus8
        bits.u(1)  # qpprime_y_zero_transform_bypass_flag
        if bits.u(1):
            for index in range(8 if chroma_format != 3 else 12):
                if bits.u(1):
                    bits.skip_scaling_list(16 if index < 6 else 64)
    frame_num_bits = bits.ue() + 4
    if frame_num_bits > 16:
        raise IndexError("no numbers are so long")
    order_type = bits.ue()
    if order_type == 0:
        bits.ue()  # log2_max_pic_order_cnt_lsb_minus4
    elif order_type == 1:
        bits.u(1)  # delta_pic_order_always_zero_flag
        bits.se()  # offset_for_non_ref_pic
        bits.se()  # offset_for_top_to_bottom_field
        for _ in range(bits.ue()):
            bits.se()  # offset_for_ref_frame
    bits.ue()  # max_num_ref_frames
    gaps_allowed = bool(bits.u(1))
    bits.ue()  # pic_width_in_mbs_minus1
    bits.ue()  # pic_height_in_map_units_minus1
    return Sps(frame_num_bits, gaps_allowed, separate, frames_only=bool(bits.u(1)))


def _avcc_sps(extradata: bytes) -> Iterator[bytes]:
    at = 6
    for _ in range(extradata[5] & 31):
        size = int.from_bytes(extradata[at : at + 2], "big")
        if size:
            yield extradata[at + 2 : at + 2 + size]
        at += 2 + size


def _nal_units(unit: bytes, length_size: int) -> Iterator[bytes]:
    """The NAL units of a coded picture, of slices at least their headers."""
    if length_size:
        at = 0
        while at + length_size < len(unit):
            size = int.from_bytes(unit[at : at + length_size], "big")
            at += length_size
            if size:
                yield unit[at : at + min(size, _MOST_BYTES)]
            at += size
        return
    at = unit.find(b"\0\0\1")
    while at >= 0:
        start = at + 3
        at = unit.find(b"\0\0\1", start)
        end = at if at >= 0 else len(unit)
        if start < end:
            yield unit[start : min(end, start + _MOST_BYTES)]


def _recovery_frame_count(sei: bytes) -> int | None:
    """`recovery_frame_cnt` of the recovery point message in an SEI NAL unit, or None where there is none."""
    payload = sei[1:].replace(b"\0\0\3", b"\0\0")
    at = 0
    while at + 2 <= len(payload) and payload[at] != 0x80:
        kind = size = 0
        while payload[at] == 255:
            kind, at = kind + 255, at + 1
        kind, at = kind + payload[at], at + 1
        while payload[at] == 255:
            size, at = size + 255, at + 1
        size, at = size + payload[at], at + 1
        if kind == _RECOVERY_POINT:
            return _Bits(payload[at : at + size]).ue()
        at += size
    return None


class _Bits:
    """Reads fixed and Exp-Golomb codes (9.1) from a NAL unit's payload; IndexError at its end, or where no code is."""

    def __init__(self, payload: bytes) -> None:
        payload = payload.replace(b"\0\0\3", b"\0\0")  # emulation prevention, 7.4.1
        self._value = int.from_bytes(payload, "big")
        self._left = len(payload) * 8

    def u(self, bits: int) -> int:
        self._left -= bits
        if self._left < 0:
            raise IndexError("end of the NAL unit")
        return self._value >> self._left & ((1 << bits) - 1)

    def ue(self) -> int:
        zeros = 0
        while not self.u(1):
            zeros += 1
            if zeros > 32:
                raise IndexError("no code is so long")
        return (1 << zeros) - 1 + self.u(zeros)

    def se(self) -> int:
        code = self.ue()
        return (code + 1) // 2 if code & 1 else -(code // 2)

    def skip_scaling_list(self, size: int) -> None:
        """7.3.2.1.1.1: deltas until one makes the next scale zero."""
        last = next_scale = 8
        for _ in range(size):
            if next_scale:
                next_scale = (last + self.se()) % 256
            last = next_scale or last
