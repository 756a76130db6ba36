"""An IP camera: `rtsp://` and `rtsps://`, through FFmpeg's RTSP client.

Times: a frame's `arrival` is when FFmpeg handed its data over. For H.264 and HEVC that is when the next
picture began to come, one frame interval late: only then does FFmpeg's parser know that the picture is
complete (measured with a server on loopback at 30 fps: 34 ms; JPEG, whose end is marked, 2 ms).
`captured_at` is the camera's own clock once an RTCP sender report has told it, else the arrival.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final, NoReturn, cast
from urllib.parse import urlsplit

import av
import av.logging
import structlog
from av import error
from av.container import InputContainer

from inspectd.capture.peer import PeerSocket
from inspectd.capture.pyav import PacketDecoder, Stamp, VideoPacket
from inspectd.capture.source import Source
from inspectd.config import CameraConfig, read_credentials
from inspectd.errors import CaptureError, Stopped
from inspectd.frame import Clock, Frame
from inspectd.source_spec import redact, with_credentials
from inspectd.workers import Deadline

log = structlog.get_logger(__name__)

READ_GRACE_S: Final = 1.0
"""On top of `stall_timeout_s`, so that the camera's own watchdog comes first."""
MAX_CLOCK_ERROR_S: Final = 600.0
"""A camera's clock is trusted only this close to ours: beyond, it was never set, or shows local time."""
_WATCHED: Final = ("h264", "hevc")
"""Codecs that predict pictures from others and whose damage `pyav` is known to find; of MPEG-4, VP8 and their like it
calls pictures whole that were predicted from one that never came."""
_PORTS: Final = {"rtsp": 554, "rtsps": 322}  # FFmpeg's defaults
_OPTIONS: Final = {
    "allowed_media_types": "video",
    # Open with the first picture: FFmpeg would first collect a second of them, and hand them over stale.
    "probesize": "32",
    "analyzeduration": "0",
    # Also over TCP, where cameras drop packets when the network is slow: makes FFmpeg notice the gap.
    "reorder_queue_size": "4",
}


class RtspSource(Source):
    """One RTSP session, video only. Gaps in the RTP sequence mark frames as corrupt over both transports."""

    def __init__(self, camera: CameraConfig) -> None:
        self._camera = camera
        self._shown = redact(camera.source)  # the only form that reaches messages
        parts = urlsplit(camera.source)
        self._peer = PeerSocket(parts.port or _PORTS[parts.scheme])
        self._interrupted = threading.Event()
        self._container: InputContainer | None = None
        self._lost = False  # RTP packets were, while the session was opened
        self._clock_known = False  # the last packet had the camera's time
        self._clock_refused = False

    def open(self) -> None:
        _listen_to_ffmpeg()
        url = with_credentials(self._camera.source, read_credentials(self._camera))
        limit = _TimeLeft(self._camera.connect_timeout_s)
        self._peer.remember()
        if self._interrupted.is_set():
            raise Stopped("interrupted")
        try:
            with av.logging.Capture() as messages:
                self._container = av.open(
                    url,
                    options=self._options(),
                    timeout=(cast("Any", limit), self._camera.stall_timeout_s + READ_GRACE_S),
                )
        except error.FFmpegError as err:
            self._raise_for(err, "connecting", timed_out=limit.deadline.passed)
        self._lost = _tells_loss(messages)  # the first picture was received in there
        self._peer.claim()
        if self._interrupted.is_set():
            raise Stopped("interrupted")
        if not self._container.streams.video or self._container.streams.video[0].codec_context is None:
            raise CaptureError("decode", f"{self._shown}: offers no video that can be decoded")
        context = self._container.streams.video[0].codec_context
        if context.name not in _WATCHED and not context.codec.intra_only:
            raise CaptureError(
                "decode",
                f"{self._shown}: sends {context.codec.canonical_name}, in which a lost picture would go unnoticed; "
                "set it to H.264, HEVC or JPEG",
            )

    def frames(self) -> Iterator[Frame]:
        assert self._container is not None, "not open"
        stream = self._container.streams.video[0]
        decoder = PacketDecoder(stream.codec_context, self._shown)
        packets = self._container.demux(stream)
        while True:
            packet, lost = self._receive(packets)
            arrival, wall = time.monotonic(), time.time()
            captured_at, clock = self._capture_time(packet, wall)
            pts = None if packet.pts is None else float(packet.pts * packet.time_base)
            with av.logging.Capture():
                frames = decoder.decode(packet, Stamp(arrival, captured_at, clock, pts, lost))
            yield from frames

    def interrupt(self) -> None:
        """Shut the connection down, which ends a blocked read at once.

        Not reached: a name that is being resolved, a connection that is being made (both end with
        `connect_timeout_s`; a resolver may take its own time), and a connection that cannot be told from
        that of another camera behind the same port, opened at the same moment (ends with the read
        timeout, `stall_timeout_s` + 1 s).
        """
        self._interrupted.set()
        self._peer.shut_down()

    def close(self) -> None:
        self._peer.release()
        container, self._container = self._container, None
        if container is not None:
            container.close()

    def _options(self) -> dict[str, str]:
        return {"rtsp_transport": self._camera.transport, **_OPTIONS}

    def _receive(self, packets: Iterator[VideoPacket]) -> tuple[VideoPacket, bool]:
        """The next coded picture, and whether RTP packets before or within it were lost."""
        try:
            with av.logging.Capture() as messages:
                packet = next(packets)
        except StopIteration:
            raise CaptureError("ended", f"{self._shown}: the camera closed the connection") from None
        except error.FFmpegError as err:
            self._raise_for(err, "reading", timed_out=False)
        if self._interrupted.is_set():
            raise Stopped("interrupted")
        if packet.size == 0:  # PyAV's sign for the end, which asks the decoder for what it still holds
            raise CaptureError("ended", f"{self._shown}: the camera closed the connection")
        lost, self._lost = self._lost or _tells_loss(messages), False
        return packet, lost

    def _capture_time(self, packet: VideoPacket, wall: float) -> tuple[float, Clock]:
        """When the picture was taken, Unix seconds, and whose clock says so.

        FFmpeg attaches the camera's wall clock to each packet (producer reference time, microseconds),
        computed from the newest RTCP sender report: so it follows a camera whose oscillator drifts.
        """
        known, self._clock_known = self._clock_known, packet.has_sidedata("prft")
        # The first one that has it may have it from the picture behind: the parser hands on what came last.
        if not (known and self._clock_known):
            return wall, "arrival"
        captured_at = struct.unpack_from("=q", bytes(cast("Any", packet.get_sidedata("prft"))))[0] / 1e6
        if abs(captured_at - wall) <= MAX_CLOCK_ERROR_S:
            return captured_at, "rtcp"
        if not self._clock_refused:
            self._clock_refused = True
            log.warning("camera_clock_refused", camera=self._camera.name, ahead_s=round(captured_at - wall, 1))
        return wall, "arrival"

    def _raise_for(self, err: error.FFmpegError, doing: str, *, timed_out: bool) -> NoReturn:
        """Raise what an FFmpeg error means; nothing of its own text, which holds the URL with the password."""
        if self._interrupted.is_set():
            raise Stopped("interrupted") from None
        where = self._shown
        if timed_out or isinstance(err, (error.ExitError, error.TimeoutError)):
            raise CaptureError("timeout", f"{where}: no answer in time while {doing}") from None
        if isinstance(err, (error.HTTPUnauthorizedError, error.HTTPForbiddenError)):
            message = f"{where}: the camera refuses the credentials ({err.strerror}); see credentials_file"
            raise CaptureError("auth", message) from None
        if isinstance(err, error.InvalidDataError):
            raise CaptureError("decode", f"{where}: what answers is no RTSP server, or sends no video") from None
        if doing == "reading":
            raise CaptureError("ended", f"{where}: the connection broke: {err.strerror}") from None
        raise CaptureError("refused", f"{where}: cannot connect: {err.strerror}") from None


def _tells_loss(messages: Iterable[tuple[int, str, str]]) -> bool:
    """Whether FFmpeg has noticed a gap in the RTP sequence."""
    return any(text.startswith("RTP:") for _level, _name, text in messages)


class _TimeLeft:
    """A timeout over several steps: PyAV asks anew before each of its two, and would grant each the whole."""

    def __init__(self, timeout_s: float) -> None:
        self.deadline = Deadline(timeout_s)

    def __float__(self) -> float:
        return self.deadline.left()


def _listen_to_ffmpeg() -> None:
    """Let FFmpeg's warnings reach `av.logging.Capture`: lost RTP packets are told nowhere else.

    What nobody captures is dropped. This is process-wide, and the same for every source.
    """
    logging.getLogger("libav").setLevel(logging.CRITICAL + 1)
    av.logging.set_skip_repeated(v=False)
    av.logging.set_level(av.logging.WARNING)
