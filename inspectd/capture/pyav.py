"""From coded packets to frames: what RTSP, file and USB share. Damage is never hidden.

A picture is marked corrupt when its own data was damaged or when, in decoding order, damage lies between
it and the last point from which decoding is known to be clean. Damage is: what the transport or FFmpeg
reports, a reference picture that never came (`h264.Continuity`), JPEG data without an end or without a
restart marker that belongs there (`jpeg`), and the start of a stream in the middle of a group of pictures.
A packet that cannot be decoded at all becomes a corrupt frame as well, so that it is counted.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, TypeAlias, cast

import numpy as np
from av.codec.context import Flags
from av.error import FFmpegError
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from inspectd.capture import jpeg
from inspectd.capture.h264 import Continuity, is_whole
from inspectd.capture.picture import PictureReader
from inspectd.errors import CaptureError
from inspectd.frame import Clock, Frame

VideoPacket: TypeAlias = "Packet[VideoStream]"  # PyAV's class takes no parameters at run time

MAX_BAD_PACKETS: Final = 100
"""So many packets in a row without one picture (4 s at 25 fps) are no video."""
_MAX_NOTED: Final = 32
"""Damaged pictures that are remembered one by one: twice the longest reordering."""

_ERR_DETECT: Final = {
    "h264": "aggressive",  # else slices with data left behind their last block come without a flag
    "hevc": "explode",  # else a slice that cannot be decoded leaves a picture without it, and no flag either
    "mjpeg": "explode",  # else damaged scans do
}
_MAX_PIXELS: Final = {"h264": 1 << 25, "hevc": 1 << 25}
_MAX_STILL_PIXELS: Final = 1 << 27
"""Of a picture: 8K video, and stills of 134 megapixels. A damaged header may ask for more, times 17 for references."""


@dataclass(slots=True)
class Stamp:
    """What is known of a packet before it is decoded."""

    arrival: float
    captured_at: float
    clock: Clock
    pts: float | None
    lost: bool = False  # the transport lost data before or within this packet
    sequence: int = 0  # place in decoding order; set by the decoder


@dataclass(frozen=True, slots=True)
class _CleanPoint:
    """What is shown from the picture `sequence` on depends on nothing that came before `refreshed_from`."""

    sequence: int
    refreshed_from: int


@dataclass(frozen=True, slots=True)
class _Held:
    """A picture that came out of the decoder, None where it could make nothing of the data."""

    picture: VideoFrame | None
    stamp: Stamp
    covered_from: int  # on what came before this, in decoding order, it does not depend


class PacketDecoder:
    """One stream's decoder; single-threaded, so that a frame is never held back for another.

    Measured (1080p H.264, 7 Mbit/s, 2 cores): 3.8 to 4.1 CPU-ms a frame with one thread, 4.2 to 4.3 with
    frame threads, which also add one frame of delay each; slice threads change nothing, for cameras send
    one slice. `low_delay` is not set: it saves nothing without B-frames and misorders them where there are.

    `context` is not opened yet; `source` names it in messages and logs and holds no secret.
    """

    def __init__(self, context: VideoCodecContext, source: str) -> None:
        self._context = context
        self._source = source
        self._codec = context.name
        self._intra_only = context.codec.intra_only
        self._continuity = Continuity(context.extradata) if self._codec == "h264" else None
        self._hevc_length_size = _hevc_length_size(context.extradata)
        self._reader = PictureReader(source)
        context.thread_count = 1
        context.copy_opaque = True
        context.flags |= Flags.output_corrupt  # else FFmpeg hides what precedes the first key frame
        context.options = {"max_pixels": str(_MAX_PIXELS.get(self._codec, _MAX_STILL_PIXELS))}
        if self._codec in _ERR_DETECT:
            context.options |= {"err_detect": _ERR_DETECT[self._codec]}

        self._sequence = 0
        self._bad = 0
        self._spent_s = 0.0  # decoding time since the last picture came out
        self._size: tuple[int, int] | None = None
        # In decoding order, by sequence number. Before the first clean point all is damaged.
        self._damage: set[int] = set()
        self._damaged_to = 0  # all up to here may be, no more is known of it
        self._clean: deque[_CleanPoint] = deque(maxlen=16)
        self._pending: dict[int, Stamp] = {}  # sent, and not come out yet
        self._held: list[_Held] = []  # came out, but see _release

    def decode(self, packet: VideoPacket, stamp: Stamp) -> list[Frame]:
        """Decode one packet (a coded picture); frames in display order, none, one or several.

        Raises:
            CaptureError: `MAX_BAD_PACKETS` packets in a row came to nothing.
        """
        self._sequence += 1
        stamp.sequence = self._sequence
        self._judge(packet, stamp)
        packet.opaque = stamp
        self._pending[stamp.sequence] = stamp
        started = time.perf_counter()
        try:
            pictures = self._context.decode(packet)
        except FFmpegError:
            pictures = []
            self._refuse(stamp)
        self._spent_s += time.perf_counter() - started
        return self._collect(pictures, stamp)

    def flush(self) -> list[Frame]:
        """The frames that the decoder still holds, at the end of a file."""
        started = time.perf_counter()
        try:
            pictures = self._context.decode(None)
        except FFmpegError:
            pictures = []
        self._spent_s += time.perf_counter() - started
        last = Stamp(time.monotonic(), time.time(), "arrival", None, sequence=self._sequence)
        frames = self._collect(pictures, last)
        self._pending.clear()
        return frames + self._release()

    # -- damage, in decoding order ----------------------------------------------------------------------

    def _judge(self, packet: VideoPacket, stamp: Stamp) -> None:
        """Note what the packet itself tells of damage and of clean points."""
        sequence = stamp.sequence
        lost, clean = False, 0 if packet.is_keyframe or self._intra_only else None
        if self._continuity is not None:
            lost, clean = self._continuity.follow(bytes(packet))
        elif self._codec == "hevc":
            lost = not is_whole(bytes(packet), self._hevc_length_size)
        elif self._codec == "mjpeg":
            lost = not jpeg.is_whole(bytes(packet))
        if clean is not None:
            self._clean.append(_CleanPoint(sequence, sequence - clean))
        if lost or packet.is_corrupt or stamp.lost:
            self._note(sequence)
        if stamp.lost:
            # The loss is reported with the packet before or within which it happened: the next may have a hole too.
            self._note(sequence + 1)

    def _note(self, sequence: int) -> None:
        """That picture is damaged. Of more than `_MAX_NOTED`, all up to the newest forgotten one count as damaged."""
        self._damage.add(sequence)
        if len(self._damage) > _MAX_NOTED:
            oldest = min(self._damage)
            self._damage.remove(oldest)
            self._damaged_to = max(self._damaged_to, oldest)

    def _refuse(self, stamp: Stamp) -> None:
        """The decoder could make nothing of the packet."""
        self._note(stamp.sequence)
        del self._pending[stamp.sequence]
        self._bad += 1
        if self._bad >= MAX_BAD_PACKETS:
            raise CaptureError(
                "decode", f"{self._source}: {self._bad} packets in a row could not be decoded as {self._codec}"
            )
        if self._size is not None:
            self._held.append(_Held(None, stamp, 0))

    def _covered_from(self, stamp: Stamp) -> int:
        """Where the clean point begins that covers the picture which comes out now; 0 where none does.

        Pictures that follow a clean point in the data but come out before it may refer to what was before
        it (open groups of pictures): it does not cover them. Not every recording has times that tell.
        """
        for point in reversed(self._clean):
            if point.sequence <= stamp.sequence and point.sequence not in self._pending:
                return point.refreshed_from
        return 0

    def _is_damaged(self, held: _Held) -> bool:
        """Whether damage lies between the picture and the clean point that covers it."""
        first, last = held.covered_from, held.stamp.sequence
        return first <= self._damaged_to or any(first <= sequence <= last for sequence in self._damage)

    # -- pictures, in display order -----------------------------------------------------------------------

    def _collect(self, pictures: list[VideoFrame], newest: Stamp) -> list[Frame]:
        for picture in pictures:
            self._bad = 0
            # A decoder that does not pass the stamp on gets the newest: right where nothing is reordered.
            stamp = cast("Stamp", picture.opaque or newest)
            self._pending.pop(stamp.sequence, None)
            if picture.is_corrupt:
                self._note(stamp.sequence)
            self._held.append(_Held(picture, stamp, self._covered_from(stamp)))
        # No more than `reorder_depth` pictures can be on their way; older entries came to nothing.
        while len(self._pending) > self._context.reorder_depth:
            del self._pending[next(iter(self._pending))]
        return self._release()

    def _release(self) -> list[Frame]:
        """Frames whose fate is known: every picture decoded before them has come out and told of its damage.

        Without B-frames that is each frame at once. With them, a B-frame waits for the picture that it
        was predicted from and that is shown after it.
        """
        oldest = next(iter(self._pending), self._sequence + 1)
        ready = 0
        while ready < len(self._held) and self._held[ready].stamp.sequence < oldest:
            ready += 1
        released, self._held = self._held[:ready], self._held[ready:]
        share_s, self._spent_s = (self._spent_s / ready, 0.0) if ready else (0.0, self._spent_s)
        return [self._frame(held, share_s) for held in released]

    def _frame(self, held: _Held, decode_s: float) -> Frame:
        stamp = held.stamp
        if held.picture is None:
            assert self._size is not None
            frame = undecoded(*self._size, stamp)
        else:
            frame = self._reader.read(held.picture)
            frame.arrival, frame.captured_at = stamp.arrival, stamp.captured_at
            frame.clock, frame.pts = stamp.clock, stamp.pts
            self._size = frame.width, frame.height
        frame.decode_s = decode_s
        frame.corrupt = self._is_damaged(held)
        return frame


def pts_seconds(packet: VideoPacket, time_base: Fraction | None) -> float | None:
    """The packet's presentation time in seconds, None where the stream has none."""
    return None if packet.pts is None or not time_base else float(packet.pts * time_base)


def _hevc_length_size(extradata: bytes | None) -> int:
    """Bytes of the length before each NAL unit of HEVC; 0 means start codes (ISO/IEC 14496-15, 8.3.3.1)."""
    return (extradata[21] & 3) + 1 if extradata and extradata[0] == 1 and len(extradata) > 22 else 0


def undecoded(width: int, height: int, stamp: Stamp) -> Frame:
    """Stands for a picture that could not be decoded: gray without memory of its own, always corrupt."""
    return Frame(
        format="gray",
        width=width,
        height=height,
        planes=(np.broadcast_to(np.uint8(0), (height, width)),),
        matrix="bt601",
        full_range=True,
        arrival=stamp.arrival,
        captured_at=stamp.captured_at,
        clock=stamp.clock,
        pts=stamp.pts,
        corrupt=True,
    )
