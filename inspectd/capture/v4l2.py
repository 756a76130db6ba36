"""One V4L2 capture device: format, rate, controls, and a ring of kernel buffers.

The kernel is spoken to directly, not through FFmpeg's v4l2 input: that one blocks where nothing can
interrupt it, drops damaged buffers without a word, and sets no controls.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import math
import mmap
import os
import re
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from inspectd.capture import v4l2_abi as abi
from inspectd.capture.identity import identity
from inspectd.errors import CaptureError, CaptureReason, Stopped
from inspectd.workers import Deadline

BUFFERS: Final = 4
WATCH_S: Final = 0.01
"""How often the driver is looked at while it has no picture: so exactly is known when one was not there yet."""

Ioctl = Callable[[int, int, Any], object]
"""`fcntl.ioctl`; a test puts a simulated driver here."""


@dataclass(frozen=True, slots=True)
class Captured:
    """One dequeued buffer, copied out of the kernel's memory, which goes back at once."""

    data: bytes
    damaged: bool
    monotonic_s: float | None
    """When the driver stamped it on the kernel's monotonic clock, None if it uses another."""
    not_before_s: float
    """A moment at which the picture was surely not finished yet, by the same clock: it has not waited for longer."""


class V4l2Device:
    """An open capture device. `wake` may be called from any thread, all else from the capturing one."""

    def __init__(self, path: str, ioctl: Ioctl = fcntl.ioctl) -> None:
        self.path = path
        self.identity: str | None = None
        """Which camera it is, once it is open."""
        self._call = ioctl
        self._fd = -1
        self._buffers: list[mmap.mmap] = []
        self._handed_over_at: list[float] = []  # each buffer to the driver, which fills it after that; monotonic
        self._empty_at = -math.inf  # when the driver last had no picture; monotonic
        self._streaming = False
        self._wake_lock = threading.Lock()
        # Guarded by _wake_lock.
        self._wake_fd = -1
        self._woken = False

    def open(self) -> None:
        """Open the device and see that it is a camera.

        Raises:
            CaptureError: `refused`, and why.
        """
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._refused("no such device; is the camera plugged in?") from None
        except PermissionError:
            raise self._refused("may not be opened by this user; it must be in the group video") from None
        except OSError as err:
            raise self._refused(f"cannot be opened: {err.strerror}") from None
        with self._wake_lock:
            self._wake_fd = os.eventfd(int(self._woken), os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        capability = abi.Capability()
        try:
            self._call(self._fd, abi.QUERYCAP, capability)
        except OSError:
            raise self._refused("is no video device") from None
        own = capability.capabilities & abi.CAP_DEVICE_CAPS
        offers = capability.device_caps if own else capability.capabilities
        if not offers & abi.CAP_VIDEO_CAPTURE or not offers & abi.CAP_STREAMING:
            raise self._refused("is no video capture device; cameras often have a second node for metadata")
        self.identity = identity(self._fd, capability)

    def close(self) -> None:
        """Stop and free everything; may be called twice."""
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.close(self._wake_fd)
                self._wake_fd = -1
        if self._fd < 0:
            return
        if self._streaming:
            with contextlib.suppress(OSError):  # unplugged
                self._call(self._fd, abi.STREAMOFF, ctypes.c_int(abi.BUF_TYPE_VIDEO_CAPTURE))
        self._streaming = False
        for buffer in self._buffers:
            buffer.close()
        self._buffers.clear()
        self._handed_over_at.clear()
        os.close(self._fd)
        self._fd = -1

    def wake(self) -> None:
        """Make a waiting `read` raise `Stopped`, now and from then on."""
        with self._wake_lock:
            self._woken = True
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    # -- settings ---------------------------------------------------------------------------------------

    def formats(self) -> list[str]:
        """Pixel formats on offer, by their four-letter codes."""
        names = []
        for index in range(256):
            description = abi.FmtDesc(index=index, type=abi.BUF_TYPE_VIDEO_CAPTURE)
            try:
                self._call(self._fd, abi.ENUM_FMT, description)
            except OSError:
                break
            names.append(abi.fourcc_name(description.pixelformat))
        return names

    def set_format(self, code: str, size: tuple[int, int] | None) -> abi.PixFormat:
        """Choose pixel format and size (None keeps the device's own) and return what the driver made of it."""
        format_ = abi.Format(type=abi.BUF_TYPE_VIDEO_CAPTURE)
        self._ask(abi.G_FMT, format_, "cannot tell its format")
        pix = format_.fmt.pix
        if size is not None:
            pix.width, pix.height = size
        pix.pixelformat = abi.fourcc(code)
        pix.field = abi.FIELD_ANY
        pix.bytesperline = pix.sizeimage = 0
        self._ask(abi.S_FMT, format_, f"does not accept the format {code}")
        if pix.pixelformat != abi.fourcc(code) or (size is not None and (pix.width, pix.height) != size):
            got = f"{abi.fourcc_name(pix.pixelformat)} {pix.width}x{pix.height}"
            offers = ", ".join(self._sizes(code)) or "the driver does not tell"
            wanted = code if size is None else f"{code} {size[0]}x{size[1]}"
            raise self._settings(f"size: the camera gives {got} for {wanted}; {code} comes in: {offers}")
        return abi.PixFormat.from_buffer_copy(pix)

    def set_rate(self, fps: float) -> None:
        parameters = abi.StreamParm(type=abi.BUF_TYPE_VIDEO_CAPTURE)
        interval = parameters.parm.capture.timeperframe
        interval.numerator, interval.denominator = 1000, round(fps * 1000)
        self._ask(abi.S_PARM, parameters, f"fps: the camera does not accept {fps:g}")
        got = interval.denominator / interval.numerator if interval.numerator else 0.0
        if abs(got - fps) > 0.01 * fps:
            raise self._settings(f"fps: the camera gives {got:g} for {fps:g} at this size and format")

    def controls(self) -> dict[str, abi.QueryCtrl]:
        """What can be set, by the names that `v4l2-ctl` shows."""
        found: dict[str, abi.QueryCtrl] = {}
        last = 0
        while True:
            control = abi.QueryCtrl(id=last | abi.CTRL_FLAG_NEXT_CTRL)
            try:
                self._call(self._fd, abi.QUERYCTRL, control)
            except OSError:
                return found
            if control.id <= last:  # a driver that goes round in circles
                return found
            last = control.id
            if control.type in abi.CTRL_SETTABLE and not control.flags & abi.CTRL_FLAG_DISABLED:
                found[control_name(bytes(control.name))] = control

    def set_controls(self, wanted: dict[str, int]) -> None:
        """Set controls in the given order (an automatic one must be off before its manual one is set)."""
        known = self.controls() if wanted else {}
        for name, value in wanted.items():
            control = known.get(name)
            if control is None:
                names = ", ".join(sorted(known)) or "none"
                raise self._settings(f"controls.{name}: the camera has no such control; it has: {names}")
            if control.flags & abi.CTRL_FLAG_READ_ONLY:
                raise self._settings(f"controls.{name}: is read-only")
            if control.type != 8 and not control.minimum <= value <= control.maximum:  # a bit mask has no minimum
                limits = f"{control.minimum} to {control.maximum}"
                raise self._settings(f"controls.{name}: {value} is out of range, {limits}")
            setting = abi.Control(id=control.id, value=value)
            self._ask(abi.S_CTRL, setting, f"controls.{name}: the camera does not accept {value}")
            self._ask(abi.G_CTRL, setting, f"controls.{name}: cannot be read back")
            if setting.value != value:
                raise self._settings(f"controls.{name}: the camera made {setting.value} of {value}")

    # -- streaming --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Hand the driver its buffers and begin."""
        request = abi.RequestBuffers(count=BUFFERS, type=abi.BUF_TYPE_VIDEO_CAPTURE, memory=abi.MEMORY_MMAP)
        self._ask(abi.REQBUFS, request, "gives no buffers", "refused")
        if request.count == 0:
            raise self._refused("gives no buffers")
        for index in range(request.count):
            buffer = self._buffer(index)
            self._ask(abi.QUERYBUF, buffer, "does not describe its buffers", "refused")
            self._buffers.append(mmap.mmap(self._fd, buffer.length, offset=buffer.m.offset))
            self._handed_over_at.append(time.monotonic())
            self._ask(abi.QBUF, buffer, "takes no buffers", "refused")
        self._ask(abi.STREAMON, ctypes.c_int(abi.BUF_TYPE_VIDEO_CAPTURE), "does not start", "refused")
        self._streaming = True

    def read(self, timeout_s: float) -> Captured:
        """The next buffer that the driver has filled.

        How long it may have been filled already is known whatever the driver's clock says, and whoever was held up:
        the picture was made after its buffer was handed over, and after the driver had last been seen without one.

        Raises:
            CaptureError: `timeout`, or `ended` when the device is gone.
            Stopped: `wake` was called.
        """
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake_fd, select.POLLIN)
        deadline = Deadline(timeout_s)
        while True:
            asked_at = time.monotonic()
            ready = dict(poll.poll(0))
            if self._wake_fd in ready:
                raise Stopped("interrupted")
            if self._fd in ready and (captured := self._dequeue()) is not None:
                return captured
            self._empty_at = asked_at
            if deadline.passed:
                raise CaptureError("timeout", f"{self.path}: no picture for {timeout_s:g} s")
            poll.poll(min(deadline.left(), WATCH_S) * 1000)

    def _dequeue(self) -> Captured | None:
        buffer = self._buffer(0)
        try:
            self._call(self._fd, abi.DQBUF, buffer)
        except BlockingIOError:
            return None
        except OSError as err:
            why = "was unplugged" if err.errno == errno.ENODEV else f"failed: {err.strerror}"
            raise CaptureError("ended", f"{self.path}: {why}") from None
        data = self._buffers[buffer.index][: buffer.bytesused]
        monotonic = buffer.flags & abi.BUF_FLAG_TIMESTAMP_MASK == abi.BUF_FLAG_TIMESTAMP_MONOTONIC
        stamp = buffer.timestamp.tv_sec + buffer.timestamp.tv_usec / 1e6 if monotonic else None
        damaged = bool(buffer.flags & abi.BUF_FLAG_ERROR)
        not_before = max(self._empty_at, self._handed_over_at[buffer.index])
        self._handed_over_at[buffer.index] = time.monotonic()
        self._ask(abi.QBUF, self._buffer(buffer.index), "does not take its buffer back", "ended")
        return Captured(data, damaged, stamp, not_before)

    def _buffer(self, index: int) -> abi.Buffer:
        return abi.Buffer(index=index, type=abi.BUF_TYPE_VIDEO_CAPTURE, memory=abi.MEMORY_MMAP)

    # -- errors -----------------------------------------------------------------------------------------

    def _ask(
        self, request: int, argument: ctypes.Structure | ctypes.c_int, problem: str, reason: CaptureReason = "settings"
    ) -> None:
        try:
            self._call(self._fd, request, argument)
        except OSError as err:
            if err.errno == errno.EBUSY:
                raise self._refused("is in use by another program") from None
            if err.errno == errno.ENODEV:
                raise CaptureError("ended", f"{self.path}: was unplugged") from None
            raise CaptureError(reason, f"{self.path}: {problem}: {err.strerror}") from None

    def _sizes(self, code: str) -> Iterator[str]:
        for index in range(256):
            size = abi.FrmSizeEnum(index=index, pixel_format=abi.fourcc(code))
            try:
                self._call(self._fd, abi.ENUM_FRAMESIZES, size)
            except OSError:
                return
            step = size.stepwise
            if size.type != abi.FRMSIZE_TYPE_DISCRETE:
                yield f"{step.min_width}x{step.min_height} to {step.max_width}x{step.max_height}"
                return
            yield f"{step.min_width}x{step.max_width}"  # of the union's `discrete`: width, height

    def _refused(self, why: str) -> CaptureError:
        return CaptureError("refused", f"{self.path}: {why}")

    def _settings(self, why: str) -> CaptureError:
        return CaptureError("settings", f"{self.path}: {why}")


def control_name(name: bytes) -> str:
    """A control's name as `v4l2-ctl` writes it: `White Balance, Automatic` -> `white_balance_automatic`."""
    text = name.split(b"\0")[0].decode("utf-8", "replace").lower()
    return re.sub(r"[^a-z0-9]+", "_", text).strip("_")
