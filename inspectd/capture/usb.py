"""A USB camera: `usb:0` or `usb:/dev/v4l/by-id/…`, MJPEG or YUYV, through V4L2."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from typing import Final, cast

import av
import numpy as np
from av.packet import Packet

from inspectd.capture import v4l2_abi as abi
from inspectd.capture.pyav import PacketDecoder, Stamp, VideoPacket, undecoded
from inspectd.capture.source import Source
from inspectd.capture.v4l2 import Captured, Ioctl, V4l2Device
from inspectd.config import CameraConfig
from inspectd.errors import CaptureError
from inspectd.frame import ColorMatrix, Frame
from inspectd.source_spec import parse_source

READ_GRACE_S: Final = 1.0
"""On top of `stall_timeout_s`, so that the camera's own watchdog comes first."""
MAX_DRIVER_AGE_S: Final = 10.0
"""A driver's timestamp older than that is none. No picture's age goes by it."""
_WANTED: Final = {"auto": ("MJPG", "YUYV"), "mjpeg": ("MJPG",), "yuyv": ("YUYV",)}


class UsbSource(Source):
    """One V4L2 capture session. `pixel_format = "auto"` takes MJPEG where there is one: the bus is slow.

    The device is looked up at each `open`, so that a by-id path finds the camera again under whatever
    number it comes back. `pts` is the driver's monotonic time, `captured_at` the same as wall time. How long a picture
    has waited is told without them: not every driver has a clock, and not every clock is right.
    """

    def __init__(self, camera: CameraConfig, *, ioctl: Ioctl = fcntl.ioctl) -> None:
        location = parse_source(camera.source).location
        self._camera = camera
        self._device = V4l2Device(f"/dev/video{location}" if location.isdigit() else location, ioctl)
        self._format = abi.PixFormat()

    def open(self) -> None:
        """Open and configure. An `open` that the driver itself blocks is not interrupted.

        Another camera than `identity` names is left as it is: nothing is set on it.
        """
        device = self._device
        device.open()
        self.identity = device.identity
        if self._camera.identity not in (None, self.identity):
            raise CaptureError(
                "replaced", f"{device.path}: is another camera: {self.identity}, expected {self._camera.identity}"
            )
        offers = device.formats()
        wanted = [code for code in _WANTED[self._camera.pixel_format] if code in offers]
        if not wanted:
            asked, on_offer = " or ".join(_WANTED[self._camera.pixel_format]), ", ".join(offers) or "nothing"
            raise CaptureError("settings", f"{device.path}: pixel_format: no {asked}; the camera offers {on_offer}")
        self._format = device.set_format(wanted[0], self._camera.size)
        if self._camera.fps is not None:
            device.set_rate(self._camera.fps)
        device.set_controls(self._camera.controls)
        device.start()

    def frames(self) -> Iterator[Frame]:
        if self._format.pixelformat == abi.fourcc("MJPG"):
            decoder = PacketDecoder(av.CodecContext.create("mjpeg", "r"), self._device.path)
        else:
            decoder = None
        while True:
            captured = self._device.read(self._camera.stall_timeout_s + READ_GRACE_S)
            stamp = _stamp(captured.monotonic_s, time.monotonic(), time.time())
            if decoder is not None and captured.data:
                frames = decoder.decode(_packet(captured.data), stamp)
            else:
                frames = [self._raw_frame(captured, stamp)]
            for frame in frames:
                frame.corrupt = frame.corrupt or captured.damaged
                frame.waited_s = stamp.arrival - captured.not_before_s  # at most
                yield frame

    def interrupt(self) -> None:
        self._device.wake()

    def close(self) -> None:
        self._device.close()

    def _raw_frame(self, captured: Captured, stamp: Stamp) -> Frame:
        """The YUYV picture; damaged where the driver gave less than a whole one."""
        pix = self._format
        line = pix.bytesperline or 2 * pix.width
        if pix.pixelformat != abi.fourcc("YUYV") or len(captured.data) < line * pix.height:
            return undecoded(pix.width, pix.height, stamp)
        rows = np.frombuffer(captured.data, np.uint8, line * pix.height).reshape(pix.height, line)
        matrix, full_range = yuv_colours(pix)
        return Frame(
            format="yuyv422",
            width=pix.width,
            height=pix.height,
            planes=(rows[:, : 2 * pix.width].reshape(pix.height, pix.width // 2, 4),),
            matrix=matrix,
            full_range=full_range,
            arrival=stamp.arrival,
            captured_at=stamp.captured_at,
            clock=stamp.clock,
            pts=stamp.pts,
        )


def yuv_colours(pix: abi.PixFormat) -> tuple[ColorMatrix, bool]:
    """Matrix and full range of a YUV format, with the kernel's defaults for what the driver leaves open.

    The defaults are V4L2_MAP_YCBCR_ENC_DEFAULT and V4L2_MAP_QUANTIZATION_DEFAULT of linux/videodev2.h.
    """
    if pix.ycbcr_enc == abi.YCBCR_ENC_DEFAULT:
        is_709 = pix.colorspace in (abi.COLORSPACE_REC709, abi.COLORSPACE_DCI_P3)
    else:
        is_709 = pix.ycbcr_enc in (abi.YCBCR_ENC_709, abi.YCBCR_ENC_XV709)
    if pix.quantization == abi.QUANTIZATION_DEFAULT:
        full = pix.colorspace == abi.COLORSPACE_JPEG
    else:
        full = pix.quantization == abi.QUANTIZATION_FULL_RANGE
    return "bt709" if is_709 else "bt601", full


def _stamp(driver_s: float | None, monotonic: float, wall: float) -> Stamp:
    """The driver's monotonic time as wall time; our own where the driver's cannot be right."""
    if driver_s is None or not 0 <= monotonic - driver_s <= MAX_DRIVER_AGE_S:
        return Stamp(monotonic, wall, "arrival", None)
    return Stamp(monotonic, wall - (monotonic - driver_s), "driver", driver_s)


def _packet(jpeg: bytes) -> VideoPacket:
    packet = cast("VideoPacket", Packet(jpeg))
    packet.is_keyframe = True
    return packet
