"""Another camera in a camera's place: known by what the device says of itself, and never judged."""

import errno
import os
import time

import pytest
from playing import camera, play
from test_capture_camera import Metrics, Sink
from test_capture_usb import Driver, raws, usb

from inspectd.capture import v4l2_abi as abi
from inspectd.capture.camera import Camera
from inspectd.capture.identity import identity
from inspectd.capture.usb import UsbSource

__all__ = ["raws"]  # the pictures, a fixture

ONE, OTHER = "uvcvideo:HD Webcam:usb-1", "uvcvideo:HD Webcam:usb-2"


def capability(driver=b"uvcvideo", card=b"HD Webcam", bus=b"usb-1"):
    made = abi.Capability()
    for field, text in ((made.driver, driver), (made.card, card), (made.bus_info, bus)):
        field[: len(text)] = text
    return made


class Named(Driver):
    """A driver that says which camera it has."""

    def __init__(self, path, pictures, bus):
        super().__init__(path, pictures, "YUYV")
        self.bus = bus

    def query_capability(self, told):
        super().query_capability(told)
        named = capability(bus=self.bus)
        told.driver, told.card, told.bus_info = named.driver, named.card, named.bus_info


@pytest.fixture
def sysfs(tmp_path):
    """The tree that the kernel shows of a USB camera, with /dev/null as its node."""
    device = tmp_path / "devices" / "usb1" / "1-2"
    node = device / "1-2:1.0" / "video4linux" / "video0"
    node.mkdir(parents=True)
    (node / "device").symlink_to("../../../1-2:1.0")
    (tmp_path / "dev" / "char").mkdir(parents=True)
    (tmp_path / "dev" / "char" / "1:3").symlink_to(node)
    return tmp_path, device


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"idVendor": b"046d\n", "idProduct": b"0825\n", "serial": b"5F2C1A40\n"}, "046d:0825:5F2C1A40"),
        ({"idVendor": b"046d\n", "idProduct": b"0825\n"}, "046d:0825"),
        ({"idVendor": b"046d\n", "idProduct": b"0825\n", "serial": b" \xc3\x28 \x1b[2J\n"}, "046d:0825:?( ?[2J"),
        ({}, ONE),
    ],
)
def test_a_usb_camera_is_known_by_its_descriptors_and_another_by_its_driver_and_place(sysfs, files, expected):
    root, device = sysfs
    for name, content in files.items():
        (device / name).write_bytes(content)
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        assert identity(fd, capability(), root) == expected
    finally:
        os.close(fd)


def test_another_camera_than_the_configured_one_is_refused_and_nothing_is_set_on_it(tmp_path, raws):
    driver = Named(tmp_path / "video", raws, b"usb-2")
    frames, error = play(usb(driver, identity=ONE, controls={"brightness": 3}))
    assert frames == []
    assert error.reason == "replaced"
    assert ONE in str(error)
    assert OTHER in str(error)
    assert driver.set_order == []
    assert not driver.streaming


def test_the_configured_camera_is_taken(tmp_path, raws):
    frames, _ = play(usb(Named(tmp_path / "video", raws, b"usb-1"), identity=ONE), limit=3)
    assert len(frames) == 3


def test_the_camera_that_was_there_first_is_the_one_that_may_come_back(tmp_path, raws):
    """Unplugged, another one in its place: a fault that stays, without a frame. The first one again: frames."""
    places = (b"usb-1", b"usb-2", b"usb-2", b"usb-1")
    drivers = [Named(tmp_path / f"video{n}", raws[:3], place) for n, place in enumerate(places)]
    for driver in drivers:
        driver.at_end = errno.ENODEV
    left, told, sink = list(drivers), [], Sink()

    def make(config):
        driver = left.pop(0)
        source = config.model_copy(update={"source": f"usb:/dev/..{driver.path}"})
        return UsbSource(source, ioctl=driver)

    watched = Camera(camera("usb:0"), sink, Metrics(), lambda _, state, reason: told.append(reason or state), make)
    watched.start()
    limit = time.monotonic() + 30
    while told.count("ended") < 2:
        assert time.monotonic() < limit, told
        watched.supervise()
        time.sleep(0.01)
    watched.signal()
    assert watched.join(10)
    assert told == ["starting", "ended", "replaced", "ended"]
    assert len(sink.taken) == 6
    assert [len(driver.pictures) for driver in drivers] == [0, 3, 3, 0]


@pytest.mark.parametrize("source", ["rtsp://192.0.2.1/live", "conveyor:", "file:clip.mp4"])
def test_an_identity_that_could_never_be_checked_is_an_error(source):
    with pytest.raises(ValueError, match="identity is known of USB cameras only"):
        camera(source, identity=ONE)
