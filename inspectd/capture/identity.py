"""Which camera a device is: what tells it from another one that was plugged in at its place."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from inspectd.capture import v4l2_abi as abi

SYSFS: Final = Path("/sys")
_SHOWN: Final = 200
"""Characters; descriptors are written by the maker of the camera, and by nobody else checked."""


def identity(fd: int, capability: abi.Capability, sysfs: Path = SYSFS) -> str:
    """`VENDOR:PRODUCT:SERIAL` of an open USB camera (two where it has no serial number), `DRIVER:CARD:BUS` of another.

    Asked of the open device and not of its path: the path may lead elsewhere by now. Two cameras of one model
    without serial numbers cannot be told apart.
    """
    return _usb(os.fstat(fd).st_rdev, sysfs) or ":".join(
        _plain(bytes(part)) for part in (capability.driver, capability.card, capability.bus_info)
    )


def _usb(rdev: int, sysfs: Path) -> str | None:
    """What the USB device behind a video node says of itself, or None: the node's device is one of its interfaces."""
    try:
        device = (sysfs / "dev" / "char" / f"{os.major(rdev)}:{os.minor(rdev)}" / "device").resolve(strict=True).parent
        found = [_plain((device / name).read_bytes()) for name in ("idVendor", "idProduct")]
    except OSError:
        return None
    with contextlib.suppress(OSError):  # cheap ones have none
        found.append(_plain((device / "serial").read_bytes()))
    return ":".join(part for part in found if part)


def _plain(text: bytes) -> str:
    """Up to the first zero, printable ASCII, without blanks around it: what fits into a line of a configuration."""
    characters = text.split(b"\0")[0].decode("latin-1").strip()
    return "".join(character if " " <= character <= "~" else "?" for character in characters)[:_SHOWN]
