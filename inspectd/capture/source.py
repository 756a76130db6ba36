"""What every source is: it opens, yields frames, and raises. It knows no retry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

from inspectd.config import CameraConfig
from inspectd.frame import Frame
from inspectd.source_spec import parse_source
from inspectd.verdict.schema import NoResultReason


class Source(ABC):
    """One connection to one camera or file, used once: `open`, `frames`, `close`.

    All but `interrupt` are called by the camera's capture thread.
    """

    identity: str | None = None
    """Once open: what tells this very camera from any other, however it was reached; None where nothing does."""

    @abstractmethod
    def open(self) -> None:
        """Connect. Blocks at most about the configured `connect_timeout_s`.

        Raises:
            CaptureError: with the reason for status and metrics.
        """

    @abstractmethod
    def frames(self) -> Iterator[Frame]:
        """Yield frames for as long as there are any.

        A live source never returns normally: it raises. A file returns (raises `finished`) at its end.

        Raises:
            CaptureError: the stream ended or failed; `finished` when a file was played to its end.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """From any thread: make a blocked `open` or `frames` return soon, as far as the library can."""

    @abstractmethod
    def close(self) -> None:
        """Free everything. May be called twice, and after a failed `open`."""


class FrameSink(Protocol):
    """Where a camera delivers its frames; exactly one of these is called for each captured frame."""

    def inspect(self, frame: Frame) -> None:
        """A fresh, whole, changed frame of the right size: crop and classify it."""

    def refuse(self, frame: Frame, reason: NoResultReason) -> None:
        """A frame that must not be judged: every ROI gets `no_result(reason)`."""

    def skip(self, frame: Frame, reason: str) -> None:
        """A frame left out on purpose (`max_fps`): counted as dropped, nothing is published."""


def make_source(camera: CameraConfig) -> Source:
    """The source that `camera.source` names; its libraries are imported only now."""
    spec = parse_source(camera.source)
    match spec.kind:
        case "rtsp":
            from inspectd.capture.rtsp import RtspSource

            return RtspSource(camera)
        case "usb":
            from inspectd.capture.usb import UsbSource

            return UsbSource(camera)
        case "file":
            from inspectd.capture.file import FileSource

            return FileSource(camera)
        case "conveyor":
            from inspectd.capture.conveyor import ConveyorSource

            return ConveyorSource(camera)
