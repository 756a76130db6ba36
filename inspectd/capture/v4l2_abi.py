"""The kernel's V4L2 interface as far as it is used: structures and request numbers of `linux/videodev2.h`.

ctypes lays them out as the C compiler does; a test compiles the header and compares sizes, offsets and numbers.
"""

from __future__ import annotations

import ctypes
from typing import Final

u8, u16, u32, s32 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_int32

BUF_TYPE_VIDEO_CAPTURE: Final = 1
MEMORY_MMAP: Final = 1
FIELD_ANY: Final = 0

CAP_VIDEO_CAPTURE: Final = 0x00000001
CAP_STREAMING: Final = 0x04000000
CAP_DEVICE_CAPS: Final = 0x80000000

BUF_FLAG_ERROR: Final = 0x0040
BUF_FLAG_TIMESTAMP_MASK: Final = 0xE000
BUF_FLAG_TIMESTAMP_MONOTONIC: Final = 0x2000

CTRL_FLAG_DISABLED: Final = 0x0001
CTRL_FLAG_READ_ONLY: Final = 0x0004
CTRL_FLAG_NEXT_CTRL: Final = 0x80000000
CTRL_SETTABLE: Final = (1, 2, 3, 8, 9)  # integer, boolean, menu, bitmask, integer menu: one 32-bit value

FRMSIZE_TYPE_DISCRETE: Final = 1

COLORSPACE_REC709: Final = 3
COLORSPACE_JPEG: Final = 7
COLORSPACE_DCI_P3: Final = 12
YCBCR_ENC_DEFAULT: Final = 0
YCBCR_ENC_709: Final = 2
YCBCR_ENC_XV709: Final = 4
QUANTIZATION_DEFAULT: Final = 0
QUANTIZATION_FULL_RANGE: Final = 1


class Capability(ctypes.Structure):
    _fields_ = (
        ("driver", u8 * 16),
        ("card", u8 * 32),
        ("bus_info", u8 * 32),
        ("version", u32),
        ("capabilities", u32),
        ("device_caps", u32),
        ("reserved", u32 * 3),
    )


class FmtDesc(ctypes.Structure):
    _fields_ = (
        ("index", u32),
        ("type", u32),
        ("flags", u32),
        ("description", u8 * 32),
        ("pixelformat", u32),
        ("mbus_code", u32),
        ("reserved", u32 * 3),
    )


class _FrmSizeStepwise(ctypes.Structure):
    _fields_ = (
        ("min_width", u32),
        ("max_width", u32),
        ("step_width", u32),
        ("min_height", u32),
        ("max_height", u32),
        ("step_height", u32),
    )


class FrmSizeEnum(ctypes.Structure):
    _fields_ = (
        ("index", u32),
        ("pixel_format", u32),
        ("type", u32),
        ("stepwise", _FrmSizeStepwise),  # a union: `discrete` is its first two members, width and height
        ("reserved", u32 * 2),
    )


class PixFormat(ctypes.Structure):
    _fields_ = (
        ("width", u32),
        ("height", u32),
        ("pixelformat", u32),
        ("field", u32),
        ("bytesperline", u32),
        ("sizeimage", u32),
        ("colorspace", u32),
        ("priv", u32),
        ("flags", u32),
        ("ycbcr_enc", u32),
        ("quantization", u32),
        ("xfer_func", u32),
    )


class _FormatUnion(ctypes.Union):
    _fields_ = (("pix", PixFormat), ("raw_data", u8 * 200), ("_window_pointer", ctypes.c_void_p))


class Format(ctypes.Structure):
    _fields_ = (("type", u32), ("fmt", _FormatUnion))


class Fract(ctypes.Structure):
    _fields_ = (("numerator", u32), ("denominator", u32))


class CaptureParm(ctypes.Structure):
    _fields_ = (
        ("capability", u32),
        ("capturemode", u32),
        ("timeperframe", Fract),
        ("extendedmode", u32),
        ("readbuffers", u32),
        ("reserved", u32 * 4),
    )


class _ParmUnion(ctypes.Union):
    _fields_ = (("capture", CaptureParm), ("raw_data", u8 * 200))


class StreamParm(ctypes.Structure):
    _fields_ = (("type", u32), ("parm", _ParmUnion))


class RequestBuffers(ctypes.Structure):
    _fields_ = (
        ("count", u32),
        ("type", u32),
        ("memory", u32),
        ("capabilities", u32),
        ("flags", u8),
        ("reserved", u8 * 3),
    )


class TimeVal(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_usec", ctypes.c_long))


class TimeCode(ctypes.Structure):
    _fields_ = (("type", u32), ("flags", u32), ("time", u8 * 4), ("userbits", u8 * 4))


class _BufferUnion(ctypes.Union):
    _fields_ = (("offset", u32), ("userptr", ctypes.c_ulong), ("planes", ctypes.c_void_p), ("fd", s32))


class Buffer(ctypes.Structure):
    _fields_ = (
        ("index", u32),
        ("type", u32),
        ("bytesused", u32),
        ("flags", u32),
        ("field", u32),
        ("timestamp", TimeVal),
        ("timecode", TimeCode),
        ("sequence", u32),
        ("memory", u32),
        ("m", _BufferUnion),
        ("length", u32),
        ("reserved2", u32),
        ("request_fd", s32),
    )


class QueryCtrl(ctypes.Structure):
    _fields_ = (
        ("id", u32),
        ("type", u32),
        ("name", u8 * 32),
        ("minimum", s32),
        ("maximum", s32),
        ("step", s32),
        ("default_value", s32),
        ("flags", u32),
        ("reserved", u32 * 2),
    )


class Control(ctypes.Structure):
    _fields_ = (("id", u32), ("value", s32))


def fourcc(code: str) -> int:
    """`MJPG` -> the number that the kernel knows it by."""
    return int.from_bytes(code.encode("ascii"), "little")


def fourcc_name(number: int) -> str:
    return number.to_bytes(4, "little").decode("ascii", "replace").strip()


def _request(direction: int, number: int, kind: type[ctypes.Structure | ctypes.c_int]) -> int:
    """`_IOC` of asm-generic/ioctl.h, type 'V'; direction 1 writes to the kernel, 2 reads, 3 both."""
    return direction << 30 | ctypes.sizeof(kind) << 16 | ord("V") << 8 | number


QUERYCAP: Final = _request(2, 0, Capability)
ENUM_FMT: Final = _request(3, 2, FmtDesc)
G_FMT: Final = _request(3, 4, Format)
S_FMT: Final = _request(3, 5, Format)
REQBUFS: Final = _request(3, 8, RequestBuffers)
QUERYBUF: Final = _request(3, 9, Buffer)
QBUF: Final = _request(3, 15, Buffer)
DQBUF: Final = _request(3, 17, Buffer)
STREAMON: Final = _request(1, 18, ctypes.c_int)
STREAMOFF: Final = _request(1, 19, ctypes.c_int)
S_PARM: Final = _request(3, 22, StreamParm)
G_CTRL: Final = _request(3, 27, Control)
S_CTRL: Final = _request(3, 28, Control)
QUERYCTRL: Final = _request(3, 36, QueryCtrl)
ENUM_FRAMESIZES: Final = _request(3, 74, FrmSizeEnum)
