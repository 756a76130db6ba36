"""USB cameras: a simulated V4L2 driver behind the real structures, the real mmap and the real poll."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from media import access_units, read_barcode, write_clip
from playing import camera, play

from inspectd.capture import usb as usb_source
from inspectd.capture import v4l2
from inspectd.capture import v4l2_abi as abi
from inspectd.capture.gate import WARM_UP_S, Gate
from inspectd.capture.usb import UsbSource, yuv_colours
from inspectd.capture.v4l2 import control_name
from inspectd.errors import Stopped

# -- the kernel's interface ----------------------------------------------------------------------------

LAYOUT = {
    "v4l2_capability": (abi.Capability, ["device_caps"]),
    "v4l2_fmtdesc": (abi.FmtDesc, ["pixelformat"]),
    "v4l2_frmsizeenum": (abi.FrmSizeEnum, ["type", "stepwise"]),
    "v4l2_pix_format": (abi.PixFormat, ["colorspace", "ycbcr_enc", "quantization"]),
    "v4l2_format": (abi.Format, ["fmt"]),
    "v4l2_streamparm": (abi.StreamParm, ["parm"]),
    "v4l2_captureparm": (abi.CaptureParm, ["timeperframe"]),
    "v4l2_requestbuffers": (abi.RequestBuffers, ["memory"]),
    "v4l2_buffer": (abi.Buffer, ["bytesused", "flags", "timestamp", "sequence", "memory", "m", "length"]),
    "v4l2_queryctrl": (abi.QueryCtrl, ["name", "minimum", "flags"]),
    "v4l2_control": (abi.Control, ["value"]),
}
REQUESTS = [
    name
    for name, value in vars(abi).items()
    if name.isupper() and isinstance(value, int) and value >> 8 & 255 == ord("V")
]
CONSTANTS = [
    name for name, value in vars(abi).items() if name.isupper() and isinstance(value, int) and name not in REQUESTS
]


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc and the kernel's headers")
def test_structures_and_numbers_are_those_of_the_c_header(tmp_path):
    expected: dict[str, int] = {}
    lines = []
    for name, (kind, fields) in LAYOUT.items():
        expected[f"sizeof {name}"] = ctypes.sizeof(kind)
        lines.append(f'printf("sizeof {name}=%lu\\n", (unsigned long)sizeof(struct {name}));')
        for field in fields:
            expected[f"{name}.{field}"] = getattr(kind, field).offset
            member = "discrete" if field == "stepwise" else field
            lines.append(f'printf("{name}.{field}=%lu\\n", (unsigned long)offsetof(struct {name}, {member}));')
    for name in REQUESTS:
        expected[name] = getattr(abi, name)
        lines.append(f'printf("{name}=%lu\\n", (unsigned long)VIDIOC_{name});')
    for name in CONSTANTS:
        expected[name] = getattr(abi, name)
        lines.append(f'printf("{name}=%lu\\n", (unsigned long)(unsigned)V4L2_{name});')
    source = "#include <stdio.h>\n#include <stddef.h>\n#include <linux/videodev2.h>\nint main(void) {\n%s\n}\n"
    (tmp_path / "layout.c").write_text(source % "\n".join(lines))
    subprocess.run(["gcc", "-o", tmp_path / "layout", tmp_path / "layout.c"], check=True, timeout=60)
    printed = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True, timeout=10).stdout
    assert dict(line.split("=") for line in printed.splitlines()) == {key: str(n) for key, n in expected.items()}


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Brightness", "brightness"),
        ("White Balance Temperature, Auto", "white_balance_temperature_auto"),
        ("Exposure (Absolute)", "exposure_absolute"),
        ("Zoom, Absolute", "zoom_absolute"),
    ],
)
def test_controls_have_the_names_that_v4l2_ctl_shows(label, name):
    assert control_name(label.encode().ljust(32, b"\0")) == name


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"colorspace": 8}, ("bt601", False)),  # sRGB, what webcams say
        ({"colorspace": 3}, ("bt709", False)),
        ({"colorspace": 7}, ("bt601", True)),  # JPEG
        ({"colorspace": 8, "ycbcr_enc": 2}, ("bt709", False)),
        ({"colorspace": 3, "ycbcr_enc": 1}, ("bt601", False)),
        ({"colorspace": 8, "quantization": 1}, ("bt601", True)),
        ({"colorspace": 7, "quantization": 2}, ("bt601", False)),
    ],
)
def test_raw_colours_follow_the_kernels_defaults(fields, expected):
    assert yuv_colours(abi.PixFormat(**fields)) == expected


# -- the source on a simulated driver --------------------------------------------------------------------

SIZE = (320, 240)
SLOT = 1 << 20  # bytes of one kernel buffer


class Driver:
    """A UVC camera's side of the ioctls; its buffer memory is a real file that the source really maps."""

    def __init__(self, path: Path, pictures: list[bytes], code: str = "MJPG") -> None:
        self.path = path
        path.write_bytes(bytes(4 * SLOT))
        self.pictures = list(pictures)
        self.code = code
        self.controls = {
            0x00980900: ["Brightness", 1, -64, 64, 0, 0],
            0x009A0901: ["Auto Exposure", 3, 0, 3, 3, 0],
            0x009A0902: ["Exposure Time, Absolute", 1, 1, 5000, 157, 0],
            0x009A0903: ["Serial Number", 1, 0, 9, 7, abi.CTRL_FLAG_READ_ONLY],
        }
        self.set_order: list[tuple[str, int]] = []
        self.queued: list[int] = []
        self.at_end = errno.EAGAIN
        self.flags = abi.BUF_FLAG_TIMESTAMP_MONOTONIC
        self.age_s = 0.05
        self.streaming = False

    def __call__(self, fd: int, request: int, argument) -> int:
        handlers = {
            abi.QUERYCAP: self.query_capability,
            abi.ENUM_FMT: self.enumerate_format,
            abi.G_FMT: self.get_format,
            abi.S_FMT: self.set_format,
            abi.ENUM_FRAMESIZES: self.enumerate_size,
            abi.S_PARM: self.set_parameters,
            abi.QUERYCTRL: self.query_control,
            abi.S_CTRL: self.set_control,
            abi.G_CTRL: self.get_control,
            abi.REQBUFS: lambda request: None,
            abi.QUERYBUF: self.query_buffer,
            abi.QBUF: lambda buffer: self.queued.append(buffer.index),
            abi.DQBUF: self.dequeue,
            abi.STREAMON: lambda _: setattr(self, "streaming", True),
            abi.STREAMOFF: lambda _: setattr(self, "streaming", False),
        }
        handlers[request](argument)
        return 0

    def fail(self, number: int):
        raise OSError(number, os.strerror(number))

    def query_capability(self, capability) -> None:
        capability.capabilities = abi.CAP_DEVICE_CAPS
        capability.device_caps = abi.CAP_VIDEO_CAPTURE | abi.CAP_STREAMING

    def enumerate_format(self, description) -> None:
        if description.index:
            self.fail(errno.EINVAL)
        description.pixelformat = abi.fourcc(self.code)

    def get_format(self, format_) -> None:
        format_.fmt.pix.width, format_.fmt.pix.height = SIZE

    def set_format(self, format_) -> None:
        pix = format_.fmt.pix
        pix.width, pix.height = SIZE
        pix.bytesperline = 2 * SIZE[0] + 32 if self.code == "YUYV" else 0
        pix.colorspace = 8

    def enumerate_size(self, size) -> None:
        if size.index:
            self.fail(errno.EINVAL)
        size.type = abi.FRMSIZE_TYPE_DISCRETE
        size.stepwise.min_width, size.stepwise.max_width = SIZE  # `discrete` of the union

    def set_parameters(self, parameters) -> None:
        interval = parameters.parm.capture.timeperframe
        interval.numerator, interval.denominator = 1, 30

    def query_control(self, control) -> None:
        wanted = control.id & ~abi.CTRL_FLAG_NEXT_CTRL
        following = [number for number in sorted(self.controls) if number > wanted]
        if not following:
            self.fail(errno.EINVAL)
        name, kind, minimum, maximum, default, flags = self.controls[following[0]]
        control.id, control.type, control.flags = following[0], kind, flags
        control.minimum, control.maximum, control.default_value = minimum, maximum, default
        control.name[: len(name)] = name.encode()

    def set_control(self, setting) -> None:
        self.set_order.append((self.controls[setting.id][0], setting.value))
        self.controls[setting.id][4] = setting.value

    def get_control(self, setting) -> None:
        setting.value = self.controls[setting.id][4]

    def query_buffer(self, buffer) -> None:
        buffer.length = SLOT
        buffer.m.offset = buffer.index * SLOT

    def dequeue(self, buffer) -> None:
        if not self.pictures:
            self.fail(self.at_end)
        data = self.pictures.pop(0)
        buffer.index = self.queued.pop(0)
        with self.path.open("r+b") as memory:
            memory.seek(buffer.index * SLOT)
            memory.write(data)
        buffer.bytesused = len(data)
        buffer.flags = self.flags
        stamp = time.monotonic() - self.age_s
        buffer.timestamp.tv_sec, buffer.timestamp.tv_usec = int(stamp), int(stamp % 1 * 1e6)


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory) -> list[bytes]:
    clip = tmp_path_factory.mktemp("usb") / "clip.avi"
    return [unit["data"] for unit in access_units(write_clip(clip, 10, codec="mjpeg", pix_fmt="yuvj422p", size=SIZE))]


@pytest.fixture(scope="module")
def raws(tmp_path_factory) -> list[bytes]:
    """YUYV pictures with 32 bytes of padding behind each line."""
    clip = write_clip(tmp_path_factory.mktemp("usb") / "clip.avi", 10, codec="rawvideo", pix_fmt="yuyv422", size=SIZE)
    pictures = [np.frombuffer(unit["data"], np.uint8).reshape(SIZE[1], 2 * SIZE[0]) for unit in access_units(clip)]
    return [np.pad(picture, ((0, 0), (0, 32))).tobytes() for picture in pictures]


def usb(driver: Driver, **settings) -> UsbSource:
    config = {"stall_timeout_s": 0.2} | settings
    # /dev/../ROOT: what is configured must lie below /dev, the simulated device's memory does not
    return UsbSource(camera(f"usb:/dev/..{driver.path}", **config), ioctl=driver)


def test_usb_jpeg_frames_carry_the_drivers_clock(tmp_path, jpegs):
    driver = Driver(tmp_path / "video", jpegs)
    frames, _ = play(usb(driver), limit=10)
    assert [read_barcode(frame) for frame in frames] == list(range(10))
    for frame in frames:
        assert (frame.format, frame.full_range, frame.clock, frame.corrupt) == ("yuv422p", True, "driver", False)
        assert frame.pts is not None
        assert frame.arrival - frame.pts >= driver.age_s
        wall_of_pts = frame.pts + time.time() - time.monotonic()
        assert frame.captured_at == pytest.approx(wall_of_pts, abs=0.5)
    assert not driver.streaming, "close did not stop the stream"


def test_usb_raw_frames_are_cut_out_of_the_drivers_padded_lines(tmp_path, raws):
    frames, _ = play(usb(Driver(tmp_path / "video", raws, "YUYV")), limit=10)
    assert [read_barcode(frame) for frame in frames] == list(range(10))
    assert {(frame.format, frame.matrix, frame.full_range) for frame in frames} == {("yuyv422", "bt601", False)}
    assert frames[0].planes[0].shape == (240, 160, 4)


def test_a_usb_frame_keeps_its_picture_when_the_driver_fills_the_buffer_again(tmp_path, raws):
    frames, _ = play(usb(Driver(tmp_path / "video", raws, "YUYV")), limit=10)
    assert [read_barcode(frame) for frame in frames] == list(range(10))  # read after four buffers went round


@pytest.mark.parametrize("code", ["MJPG", "YUYV"])
def test_usb_pictures_that_are_short_or_empty_are_corrupt_and_counted(tmp_path, jpegs, raws, code):
    pictures = list((jpegs if code == "MJPG" else raws)[:5])
    pictures[1] = pictures[1][: len(pictures[1]) // 2]
    pictures[3] = b""
    frames, _ = play(usb(Driver(tmp_path / "video", pictures, code)), limit=5)
    assert [frame.corrupt for frame in frames] == [False, True, False, True, False]


@pytest.mark.parametrize("code", ["MJPG", "YUYV"])
def test_what_the_driver_flags_as_damaged_is_corrupt(tmp_path, jpegs, raws, code):
    driver = Driver(tmp_path / "video", (jpegs if code == "MJPG" else raws)[:3], code)
    driver.flags |= abi.BUF_FLAG_ERROR
    frames, _ = play(usb(driver), limit=3)
    assert [frame.corrupt for frame in frames] == [True] * 3


@pytest.mark.parametrize(("flags", "age_s"), [(0, 0.0), (abi.BUF_FLAG_TIMESTAMP_MONOTONIC, 3600.0)])
def test_a_driver_time_that_cannot_be_right_falls_back_to_arrival(tmp_path, jpegs, flags, age_s):
    driver = Driver(tmp_path / "video", jpegs)
    driver.flags, driver.age_s = flags, age_s
    frame = play(usb(driver), limit=1)[0][0]
    assert (frame.clock, frame.pts) == ("arrival", None)
    assert frame.captured_at == pytest.approx(time.time(), abs=5)


# -- how old a picture is --------------------------------------------------------------------------------


class Clock:
    """Stands for the module `time`; the driver lets it go on while it has no picture."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self.now_s


class Shutter(Driver):
    """Takes a picture every `interval_s`, as long as it has a buffer to put it in."""

    def __init__(self, path: Path, clock: Clock, interval_s: float) -> None:
        super().__init__(path, [], "YUYV")
        self.clock = clock
        self.interval_s = interval_s
        self.next_at = clock.now_s + interval_s
        self.full: list[tuple[int, float]] = []  # buffer, and when its picture was taken
        self.taken_at = 0.0  # the picture that was handed over last

    def __call__(self, fd: int, request: int, argument) -> int:
        while self.streaming and self.next_at <= self.clock.now_s:
            if self.queued:
                self.full.append((self.queued.pop(0), self.next_at))
            self.next_at += self.interval_s
        return super().__call__(fd, request, argument)

    def dequeue(self, buffer) -> None:
        if not self.full:
            self.clock.now_s += v4l2.WATCH_S
            self.fail(errno.EAGAIN)
        buffer.index, self.taken_at = self.full.pop(0)
        buffer.bytesused = SIZE[1] * (2 * SIZE[0] + 32)
        buffer.flags = self.flags
        stamp = self.taken_at - self.age_s
        buffer.timestamp.tv_sec, buffer.timestamp.tv_usec = int(stamp), int(stamp % 1 * 1e6)


@pytest.fixture
def shoot(tmp_path, monkeypatch):
    """Play a camera, with a standstill of ours half-way: the admission of each frame, and how old it really is then.

    Without those in which it warms up.
    """
    clock = Clock()
    monkeypatch.setattr(v4l2, "time", clock)
    monkeypatch.setattr(usb_source, "time", clock)

    def run(
        interval_s: float, frames: int, *, stop_s: float = 0.0, flags: int, age_s: float = 0.03, busy_s: float = 0.0
    ):
        driver = Shutter(tmp_path / "video", clock, interval_s)
        driver.flags, driver.age_s = flags, age_s
        source = usb(driver, stall_timeout_s=60, frozen_after_s=0)
        gate = Gate(source._camera)
        source.open()
        told, warm_at = [], None
        for frame in source.frames():
            warm_at = warm_at or frame.arrival + WARM_UP_S
            clock.now_s += busy_s
            admission = gate.admit(frame, clock.now_s)
            assert frame.arrival - frame.waited_s <= driver.taken_at, "a later trigger would be answered"
            if frame.arrival < warm_at:
                assert admission == "stale"
                continue
            told.append((admission, clock.now_s - driver.taken_at))
            if len(told) == frames // 2:
                clock.now_s += stop_s
            if len(told) == frames:
                break
        source.close()
        return told

    return run


STAMPED, UNSTAMPED = abi.BUF_FLAG_TIMESTAMP_MONOTONIC, 0


@pytest.mark.parametrize(("flags", "age_s"), [(STAMPED, 0.03), (STAMPED, 900.0), (UNSTAMPED, 0.0)])
@pytest.mark.parametrize(
    ("interval_s", "stop_s"), [(12, 23), (12, 40), (2, 3.9), (1, 0.0), (0.2, 3), (1 / 30, 0.7), (1 / 30, 60)]
)
def test_what_had_waited_in_the_driver_is_stale_and_nothing_else_is(shoot, interval_s, stop_s, flags, age_s):
    """Whether the driver's clock is right, wrong or none, and however slow the camera is."""
    told = shoot(interval_s, 40, stop_s=stop_s, flags=flags, age_s=age_s)
    assert {admission for admission, age in told if age > 0.5} <= {"stale"}
    assert {admission for admission, _ in told[:20]} == {"admitted"}
    assert {admission for admission, _ in told[24:]} == {"admitted"}  # four buffers
    assert stop_s == 0 or "stale" in {admission for admission, _ in told}


def test_a_reader_that_never_finds_the_driver_without_a_picture_knows_how_old_one_can_be(shoot):
    """Buffers go round: a picture was taken after the driver had got its buffer back."""
    told = shoot(1 / 30, 60, flags=UNSTAMPED, busy_s=0.05)
    assert {admission for admission, _ in told} == {"admitted"}
    assert max(age for _, age in told) > 0.1


def test_controls_are_set_in_the_configured_order(tmp_path, jpegs):
    driver = Driver(tmp_path / "video", jpegs)
    play(usb(driver, controls={"auto_exposure": 1, "exposure_time_absolute": 200}), limit=1)
    assert driver.set_order == [("Auto Exposure", 1), ("Exposure Time, Absolute", 200)]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"controls": {"exposure": 1}}, "auto_exposure, brightness, exposure_time_absolute, serial_number"),
        ({"controls": {"brightness": 65}}, "-64 to 64"),
        ({"controls": {"serial_number": 1}}, "read-only"),
        ({"size": (640, 480)}, "MJPG comes in: 320x240"),
        ({"fps": 60}, "gives 30 for 60"),
        ({"pixel_format": "yuyv"}, "the camera offers MJPG"),
    ],
)
def test_a_setting_that_the_camera_does_not_take_is_named_with_what_it_offers(tmp_path, jpegs, settings, says):
    _, error = play(usb(Driver(tmp_path / "video", jpegs), **settings))
    assert error is not None
    assert error.reason == "settings"
    assert says in str(error)
    assert str(next(iter(settings))) in str(error)


def test_settings_that_the_camera_takes_are_no_error(tmp_path, jpegs):
    frames, error = play(usb(Driver(tmp_path / "video", jpegs), size=SIZE, fps=30, pixel_format="mjpeg"), limit=1)
    assert error is None
    assert len(frames) == 1


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EAGAIN, "timeout"), (errno.ENODEV, "ended"), (errno.EIO, "ended")]
)
def test_a_usb_camera_that_falls_silent_or_is_unplugged_ends_the_frames(tmp_path, jpegs, number, reason):
    driver = Driver(tmp_path / "video", jpegs[:2])
    driver.at_end = number
    frames, error = play(usb(driver, stall_timeout_s=0.01))
    assert len(frames) == 2
    assert error is not None
    assert error.reason == reason


@pytest.mark.parametrize("when", ["before", "while"])
def test_interrupt_ends_a_usb_read_at_once(tmp_path, jpegs, when):
    source = usb(Driver(tmp_path / "video", []), stall_timeout_s=60)
    if when == "before":
        source.interrupt()
    source.open()
    if when == "while":
        threading.Timer(0.05, source.interrupt).start()
    with pytest.raises(Stopped):
        next(source.frames())
    source.close()
    source.close()
    source.interrupt()


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("usb:99", "/dev/video99: no such device"),
        ("usb:/dev/v4l/by-id/usb-nothing-video-index0", "no such device"),
        ("usb:/dev/null", "no video device"),
        ("usb:/dev/..{file}", "no video device"),
        ("usb:/dev/", "Is a directory"),
    ],
)
def test_what_is_no_camera_is_refused_with_the_reason(tmp_path, device, says):
    (tmp_path / "file").write_text("not a camera")
    source = UsbSource(camera(device.format(file=tmp_path / "file")))
    _, error = play(source)
    assert error is not None
    assert error.reason == "refused"
    assert says in str(error)
    source.close()


def test_a_device_that_may_not_be_opened_names_the_group(tmp_path):
    (tmp_path / "video").write_bytes(b"")
    (tmp_path / "video").chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        _, error = play(UsbSource(camera(f"usb:/dev/..{tmp_path / 'video'}")))
    finally:
        if root:
            os.seteuid(0)
    assert error is not None
    assert error.reason == "refused"
    assert "group video" in str(error)
