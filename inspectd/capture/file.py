"""A recording as a camera: `file:PATH[?loop=1&realtime=1]`."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import av
from av.container import InputContainer
from av.error import FFmpegError

from inspectd.capture.pyav import PacketDecoder, Stamp, VideoPacket
from inspectd.capture.source import Source
from inspectd.config import CameraConfig
from inspectd.errors import CaptureError, Stopped
from inspectd.frame import Frame
from inspectd.source_spec import parse_source

_FORMATS: Final = (
    "mov,mp4,m4a,3gp,3g2,mj2,matrixbench,matroska,webm,avi,flv,mpegts,mpeg,mpegvideo,asf,h264,hevc,m4v,mjpeg,ivf,obu,"
    "nut,mxf,ogg,gif,apng,rawvideo,yuv4mpegpipe,png_pipe,jpeg_pipe,image2,bmp_pipe,tiff_pipe,webp_pipe,pgm_pipe,ppm_pipe"
)
"""Containers that hold video or one picture. FFmpeg knows more: it would play a text file as ANSI art and follow
a playlist into the network."""
_OPTIONS: Final = {
    "format_whitelist": _FORMATS,
    "protocol_whitelist": "file",
    "pattern_type": "none",  # a picture's name is its name, also with a % in it
}
_DEFAULT_FPS: Final = 25.0  # for streams without times, FFmpeg's own guess
_LATE_S: Final = 1.0


class FileSource(Source):
    """Plays a video file, or one picture as a video of one frame.

    Frames are read as fast as they are taken; with `realtime` each at its time, on the monotonic clock, and
    that is then its arrival. With `loop` the file is opened again at its end, and `pts` goes on from lap to
    lap: a lap lasts from its first picture to the end of its last. Otherwise the end is `finished`.
    """

    def __init__(self, camera: CameraConfig) -> None:
        spec = parse_source(camera.source)
        self._path = Path(spec.location)
        self._loop = spec.flag("loop")
        self._interrupted = threading.Event()
        self._pace = _Pace(self._interrupted) if spec.flag("realtime") else None
        self._timeline = _Timeline()
        self._container: InputContainer | None = None

    def open(self) -> None:
        self.close()
        if not self._path.exists():
            raise CaptureError("refused", f"{self._path}: no such file")
        if not self._path.is_file():
            what = "a directory" if self._path.is_dir() else "no regular file"
            raise CaptureError("refused", f"{self._path}: is {what}; expected a video file")
        try:
            self._container = av.open(f"file:{self._path}", options=dict(_OPTIONS))
        except PermissionError:
            raise CaptureError("refused", f"{self._path}: may not be read by this user") from None
        except FFmpegError as err:
            raise CaptureError("decode", f"{self._path}: is no video that can be decoded: {err.strerror}") from None
        if not self._container.streams.video or self._container.streams.video[0].codec_context is None:
            self.close()
            raise CaptureError("decode", f"{self._path}: holds no video stream that can be decoded")

    def frames(self) -> Iterator[Frame]:
        while True:
            empty = True
            for frame in self._lap():
                empty = False
                yield frame
            if empty:
                raise CaptureError("decode", f"{self._path}: holds no picture that can be decoded")
            if not self._loop:
                raise CaptureError("finished", f"{self._path}: played to its end")
            self._timeline.next_lap()
            self.open()

    def interrupt(self) -> None:
        """Ends the wait for the next frame's time at once, else takes effect with the next packet."""
        self._interrupted.set()

    def close(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            container.close()

    def _lap(self) -> Iterator[Frame]:
        """The file once, from its first to its last frame."""
        assert self._container is not None, "not open"
        stream = self._container.streams.video[0]
        decoder = PacketDecoder(stream.codec_context, str(self._path))
        self._timeline.frame_s = 1 / float(stream.average_rate or stream.guessed_rate or _DEFAULT_FPS)
        packets = self._container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except FFmpegError as err:
                raise CaptureError("decode", f"{self._path}: is damaged: {err.strerror}") from None
            if packet.size == 0:  # the end
                break
            if self._interrupted.is_set():
                raise Stopped("interrupted")
            pts, decode_at = self._timeline.place(packet)
            if self._pace is not None:
                self._pace.wait_until(decode_at)
            yield from decoder.decode(packet, Stamp(time.monotonic(), time.time(), "arrival", pts))
        yield from decoder.flush()


class _Timeline:
    """Times in seconds that go on over the laps of a loop."""

    def __init__(self) -> None:
        self.frame_s = 1 / _DEFAULT_FPS
        self._offset = 0.0  # of this lap
        self._from = math.inf  # of this lap's own times
        self._to = -math.inf
        self._untimed = 0  # packets so far without any time

    def place(self, packet: VideoPacket) -> tuple[float | None, float]:
        """The packet's `pts`, None where the file has none, and when its turn to be decoded is."""
        base = packet.time_base
        if packet.pts is None:
            pts = None
        else:
            start = float(packet.pts * base)
            self._from = min(self._from, start)
            self._to = max(self._to, start + (float(packet.duration * base) if packet.duration else self.frame_s))
            pts = start + self._offset
        if packet.dts is not None:
            return pts, float(packet.dts * base) + self._offset
        if pts is not None:
            return pts, pts
        self._untimed += 1
        return None, (self._untimed - 1) * self.frame_s

    def next_lap(self) -> None:
        if self._to > self._from:
            self._offset += self._to - self._from
        self._from, self._to = math.inf, -math.inf


class _Pace:
    """Lets stream time pass no faster than the monotonic clock."""

    def __init__(self, interrupted: threading.Event) -> None:
        self._interrupted = interrupted
        self._epoch: float | None = None  # monotonic time of the stream's second 0

    def wait_until(self, stream_s: float) -> None:
        """Return when it is time.

        Raises:
            Stopped: interrupted meanwhile.
        """
        now = time.monotonic()
        if self._epoch is None or now - self._epoch - stream_s > _LATE_S:
            self._epoch = now - stream_s  # begin, or begin anew: who was away for so long gets no burst
        if self._interrupted.wait(max(0.0, self._epoch + stream_s - now)):
            raise Stopped("interrupted")
