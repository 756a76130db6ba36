"""Whether an H.264 stream is whole: what FFmpeg's decoder conceals without a word.

When a coded picture that others refer to never arrives (a camera's full buffer, a lost frame on the
network), FFmpeg repeats an older picture in its place and raises no flag: the following pictures look
good and are wrong until the next key frame. The stream itself tells: `frame_num` counts the reference
pictures (ITU-T H.264, 7.4.3), so a gap in it is a lost picture. Only headers are read, about 20 µs a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_SLICE, _PARTITION_A, _IDR, _SEI, _SPS = 1, 2, 5, 6, 7
_RECOVERY_POINT = 6  # SEI payload type, D.2.8
_HEADER_BYTES = 64  # enough for the fields that are read, of a slice or an SPS without scaling lists
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # 7.3.2.1.1


@dataclass(frozen=True, slots=True)
class Sps:
    """What is needed of a sequence parameter set (7.3.2.1.1)."""

    frame_num_bits: int
    gaps_allowed: bool
    separate_colour_planes: bool


class Continuity:
    """Follows one stream's coded pictures in decoding order.

    `extradata` is the decoder configuration: avcC (length-prefixed NAL units, as in MP4) or Annex B.
    """

    def __init__(self, extradata: bytes | None = None) -> None:
        self._sps: Sps | None = None
        self._length_size = 0  # bytes of the length before each NAL unit; 0 means Annex B start codes
        self._previous: int | None = None  # frame_num of the last reference picture
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

        `lost`: a picture that this one may refer to never came. `clean`: this picture and all that follow
        in display order depend on no older ones than those so many places before it in decoding order (0 at
        a key frame, more at the end of a gradual refresh); None if that cannot be said. Data that cannot be
        read says (False, None): the decoder has its own opinion about it.
        """
        recovery: int | None = None
        try:
            for nal in _nal_units(unit, self._length_size):
                kind = nal[0] & 31
                if kind == _SPS:
                    self._read_sps(nal)
                elif kind == _SEI:
                    recovery = _recovery_frame_count(nal) if recovery is None else recovery
                elif kind in (_SLICE, _PARTITION_A, _IDR):
                    return self._follow_slice(nal, recovery)
        except IndexError:  # cut off in a header
            pass
        return False, None

    def _follow_slice(self, nal: bytes, recovery: int | None) -> tuple[bool, int | None]:
        if nal[0] & 31 == _IDR:
            self._previous, self._recovers_at = 0, None
            return False, 0
        if self._sps is None:
            return False, 0 if recovery == 0 else None
        bits = _Bits(nal[1:_HEADER_BYTES])
        bits.ue()  # first_mb_in_slice
        bits.ue()  # slice_type
        bits.ue()  # pic_parameter_set_id
        if self._sps.separate_colour_planes:
            bits.u(2)
        frame_num = bits.u(self._sps.frame_num_bits)
        modulo = 1 << self._sps.frame_num_bits
        previous = self._previous
        lost = (
            previous is not None
            and not self._sps.gaps_allowed
            and frame_num != previous
            and frame_num != (previous + 1) % modulo
        )
        if nal[0] & 0x60 or lost:
            self._previous = frame_num
        self._refreshing += 1
        if recovery is not None:
            self._recovers_at, self._refreshing = (frame_num + recovery) % modulo, 0
        elif lost:
            self._recovers_at = None  # the refresh itself has a hole
        if self._recovers_at != frame_num:
            return lost, None
        self._recovers_at = None
        return False, self._refreshing

    def _read_sps(self, nal: bytes) -> None:
        try:
            self._sps = parse_sps(nal)
        except IndexError:
            self._sps = None  # no check is better than a wrong one


def parse_sps(nal: bytes) -> Sps:
    """Read a sequence parameter set NAL unit.

    Raises:
        IndexError: it is cut off.
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
    return Sps(frame_num_bits, bool(bits.u(1)), separate)


def _avcc_sps(extradata: bytes) -> Iterator[bytes]:
    at = 6
    for _ in range(extradata[5] & 31):
        size = int.from_bytes(extradata[at : at + 2], "big")
        if size:
            yield extradata[at + 2 : at + 2 + size]
        at += 2 + size


def _nal_units(unit: bytes, length_size: int) -> Iterator[bytes]:
    """The NAL units of a coded picture; whoever has found the first slice stops reading."""
    if length_size:
        at = 0
        while at + length_size < len(unit):
            size = int.from_bytes(unit[at : at + length_size], "big")
            at += length_size
            if size:
                yield unit[at : at + min(size, 4096)]
            at += size
        return
    at = unit.find(b"\0\0\1")
    while at >= 0:
        start = at + 3
        # Search the next start code only when the caller wants more than this unit's header.
        if start < len(unit):
            kind = unit[start] & 31
            if kind in (_SLICE, _PARTITION_A, _IDR):
                yield unit[start : start + _HEADER_BYTES]
                at = unit.find(b"\0\0\1", start)
            else:
                at = unit.find(b"\0\0\1", start)
                yield unit[start : at if at >= 0 else len(unit)]
        else:
            return


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
    """Reads fixed and Exp-Golomb codes (9.1) from a NAL unit's payload; IndexError at its end."""

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
