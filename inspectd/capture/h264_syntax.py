"""The few fields of H.264's headers that tell whether a stream is whole (ITU-T H.264, 7.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

SLICE, PARTITION_A, IDR, SEI, SPS, PPS = 1, 2, 5, 6, 7, 8  # NAL unit types, table 7-1
_RECOVERY_POINT = 6  # SEI payload type, D.2.8
_MOST_BYTES = 65_536  # of one NAL unit that are looked at
_HEADER_BYTES = 64  # enough for the fields that are read of a slice or a picture parameter set
_MOST_SPS, _MOST_PPS = 32, 256
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # 7.3.2.1.1


@dataclass(frozen=True, slots=True)
class Sps:
    """What is needed of a sequence parameter set (7.3.2.1.1)."""

    number: int  # seq_parameter_set_id
    frame_num_bits: int
    separate_colour_planes: bool
    frames_only: bool  # no picture is a field


class Slice(NamedTuple):
    """What the slices of one picture have in common (7.4.1.2.4); equal in all of them, but for those of two fields."""

    idr: bool
    reference: bool  # later pictures may refer to it
    sps: Sps | None  # None where it, or what names it, was not seen
    frame_num: int | None  # None without an SPS
    field: int | None  # 0 top, 1 bottom, None in a frame


class ParameterSets:
    """The parameter sets of one stream: slices name a picture parameter set, and that a sequence parameter set."""

    def __init__(self) -> None:
        self._sequence: dict[int, Sps] = {}
        self._picture: dict[int, int] = {}  # which of those it names

    def read(self, nal: bytes) -> bool:
        """Take over an SPS or PPS NAL unit, leave any other; False where it cannot be read: what was known holds."""
        try:
            if nal[0] & 31 == SPS:
                sps = parse_sps(nal)
                self._sequence[sps.number] = sps
            elif nal[0] & 31 == PPS:
                number, sequence_number = _parse_pps(nal)
                self._picture[number] = sequence_number
        except IndexError:
            return False
        return True

    def read_slice(self, nal: bytes) -> Slice:
        """Read the beginning of a slice header (7.3.3).

        Raises:
            IndexError: it is cut off.
        """
        idr, reference = nal[0] & 31 == IDR, bool(nal[0] & 0x60)
        bits = _Bits(nal[1:_HEADER_BYTES])
        bits.ue()  # first_mb_in_slice
        bits.ue()  # slice_type
        sps = self._sequence.get(self._picture.get(bits.ue(), -1))
        if sps is None:
            return Slice(idr, reference, None, None, None)
        if sps.separate_colour_planes:
            bits.u(2)
        frame_num = bits.u(sps.frame_num_bits)
        field = None if sps.frames_only or not bits.u(1) else bits.u(1)
        return Slice(idr, reference, sps, frame_num, field)


def parse_sps(nal: bytes) -> Sps:
    """Read a sequence parameter set NAL unit.

    Raises:
        IndexError: it is cut off, or says what none can.
    """
    bits = _Bits(nal[1:])
    profile = bits.u(8)
    bits.u(16)  # constraint flags, level_idc
    number = bits.ue()
    if number >= _MOST_SPS:
        raise IndexError("no number is so high")
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
    bits.u(1)  # gaps_in_frame_num_value_allowed_flag
    bits.ue()  # pic_width_in_mbs_minus1
    bits.ue()  # pic_height_in_map_units_minus1
    return Sps(number, frame_num_bits, separate, frames_only=bool(bits.u(1)))


def _parse_pps(nal: bytes) -> tuple[int, int]:
    """Number of a picture parameter set, and of the sequence parameter set that it names (7.3.2.2)."""
    bits = _Bits(nal[1:_HEADER_BYTES])
    number = bits.ue()
    if number >= _MOST_PPS:
        raise IndexError("no number is so high")
    return number, bits.ue()


def avcc_parameter_sets(extradata: bytes) -> Iterator[bytes]:
    """The SPS and PPS NAL units of an avcC (ISO/IEC 14496-15, 5.3.3.1).

    Raises:
        IndexError: it is cut off.
    """
    at = 5
    for kind in (SPS, PPS):
        count = extradata[at] & 31 if kind == SPS else extradata[at]
        at += 1
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            if size:
                yield extradata[at + 2 : at + 2 + size]
            at += 2 + size


def nal_units(unit: bytes, length_size: int) -> Iterator[bytes]:
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


def recovery_frame_count(sei: bytes) -> int | None:
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
