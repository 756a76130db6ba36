"""The register map: every address, its name, its meaning, and where its value comes from, in one table.

Addresses are those on the wire, from 0 (an address 1 in the notation 30002 or 40002). The map is in three kinds of
blocks: the line at 0, camera n at n * 1000, its region m at n * 1000 + m * 20, counted from 1. A 32-bit value has its
high word first. Function codes 3 and 4 read the same memory, and so do 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from inspectd.bridge import codes
from inspectd.bridge.handshake import Handshake, Signals
from inspectd.bridge.layout import CameraLayout, Layout
from inspectd.bridge.views import CameraView, LineView, RoiView
from inspectd.verdict.schema import Verdict

LINE_SIZE = 20
CAMERA_STRIDE = 1000
ROI_STRIDE = 20
CAMERA_BITS = 16
NEVER_MS = 0xFFFF
"""The age of a result that is not there; real ages end below it."""

PART_NUMBER, DEADLINE, TRIGGER = 10, 12, 13
"""What a PLC writes into, from the start of a camera's registers."""

TRIGGER_BIT = 0
"""What a PLC writes into, from the start of a camera's bits."""

DEFAULT_DEADLINE_MS = 1000
WRITABLE = range(PART_NUMBER, TRIGGER + 1)


@dataclass(frozen=True, slots=True)
class LineState:
    """What the line's block is made from."""

    line: LineView
    layout: Layout


@dataclass(frozen=True, slots=True)
class CameraState:
    """What a camera's block is made from."""

    line: LineView
    view: CameraView
    signals: Signals
    handshake: Handshake
    part_number: int
    deadline_ms: int
    rois: int


@dataclass(frozen=True, slots=True)
class RoiState:
    """What a region's block is made from."""

    line: LineView
    view: RoiView
    handshake: Handshake


State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Register(Generic[State]):
    """One value: `words` registers from `offset` on, unsigned."""

    offset: int
    name: str
    meaning: str
    value: Callable[[State], int]
    words: int = 1
    writable: bool = False

    @property
    def type(self) -> str:
        return f"uint{16 * self.words}"


@dataclass(frozen=True, slots=True)
class Bit(Generic[State]):
    """One coil or discrete input."""

    offset: int
    name: str
    meaning: str
    value: Callable[[State], bool]
    writable: bool = False


def _heartbeat(line: LineView) -> int:
    return line.heartbeats & 0xFFFF


def _part_number(view: RoiView) -> int:
    part_id = view.result.part_id if isinstance(view.result, Verdict) else None
    if part_id is None or not part_id.isascii() or not part_id.isdecimal() or len(part_id) > 10:
        return 0
    number = int(part_id)
    return number if number <= 0xFFFFFFFF else 0


def _trigger_number(state: RoiState) -> int:
    result = state.view.result
    return state.handshake.number_of(result.trigger_id) if isinstance(result, Verdict) else 0


def _score(view: RoiView) -> int:
    return 0 if view.result is None or view.result.score is None else round(view.result.score * 1000)


def _age_ms(view: RoiView) -> int:
    return NEVER_MS if view.age_ms is None else min(int(view.age_ms), NEVER_MS - 1)


HEARTBEAT_MEANING = (
    "counts the heartbeats of inspectd, two a second. Stands still when inspectd, the network or the bridge is gone: "
    "when it has not changed for 1.5 s, reject and stop"
)

LINE: tuple[Register[LineState], ...] = (
    Register(0, "map_version", "version of this map; compare it", lambda s: codes.MAP_VERSION),
    Register(1, "heartbeat", HEARTBEAT_MEANING, lambda s: _heartbeat(s.line)),
    Register(2, "ready", "1: results may be relied on; 0: all verdicts are fail-safe", lambda s: int(s.line.safe)),
    Register(3, "state", "state of inspectd, see the states", lambda s: codes.STATE_CODES[s.line.state]),
    Register(4, "reason", "why it is not ready, see the reasons", lambda s: s.line.reason.number),
    Register(5, "cameras", "how many cameras the layout has", lambda s: len(s.layout.cameras)),
    Register(6, "layout", "changes when cameras, regions or labels do; compare it", lambda s: s.layout.fingerprint),
)

CAMERA: tuple[Register[CameraState], ...] = (
    Register(0, "heartbeat", "the same as the line's", lambda s: _heartbeat(s.line)),
    Register(1, "state", "state of the camera, see the states", lambda s: codes.STATE_CODES[s.view.state]),
    Register(
        2,
        "handshake",
        "bit 0 ack, bit 1 busy, bit 2 done, bit 3 error: the same as the discrete inputs",
        lambda s: s.signals.ack | s.signals.busy << 1 | s.signals.done << 2 | (s.signals.error.number != 0) << 3,
    ),
    Register(3, "trigger_number", "counts the triggers, 1 to 65535 and round again", lambda s: s.handshake.number),
    Register(4, "trigger_error", "why the trigger failed, see the errors", lambda s: s.signals.error.number),
    Register(5, "regions", "how many regions the camera has", lambda s: s.rois),
    Register(
        PART_NUMBER,
        "part_number",
        "write: the part that the next trigger is for; its decimal digits are the part_id; 0 is none",
        lambda s: s.part_number,
        words=2,
        writable=True,
    ),
    Register(
        DEADLINE,
        "deadline_ms",
        f"write: how long the next trigger's results may take, 5 to 60000; {DEFAULT_DEADLINE_MS} at the start",
        lambda s: s.deadline_ms,
        writable=True,
    ),
    Register(
        TRIGGER,
        "trigger",
        "write: 1 sets the trigger, 0 resets it; the same as the coil. One request may write all four registers",
        lambda s: int(s.handshake.is_set),
        writable=True,
    ),
)

ROI: tuple[Register[RoiState], ...] = (
    Register(
        0, "heartbeat", "the same as the line's, so that one request has all that counts", lambda s: _heartbeat(s.line)
    ),
    Register(1, "verdict", "see the verdicts; only 23205 (0x5AA5) is a pass", lambda s: s.view.verdict),
    Register(2, "reason", "why there is no pass or fail, see the reasons", lambda s: s.view.reason.number),
    Register(
        3,
        "label",
        "index of the label in the layout, from 1; 0 none, 65535 a label that the layout does not have",
        lambda s: s.view.label,
    ),
    Register(4, "score", "probability of the label, per mille", lambda s: _score(s.view)),
    Register(
        5,
        "age_ms",
        f"time since the result was published; {NEVER_MS} without a result",
        lambda s: _age_ms(s.view),
    ),
    Register(
        6,
        "results",
        "counts the results of this region since the bridge started; a step of more than 1 is a result not seen",
        lambda s: s.view.count & 0xFFFFFFFF,
        words=2,
    ),
    Register(
        8, "sequence", "`seq` of the newest result, as in the journal", lambda s: s.view.seq & 0xFFFFFFFF, words=2
    ),
    Register(10, "trigger_number", "which trigger this answers; 0: none of this bridge's", _trigger_number),
    Register(
        12,
        "part_number",
        "the part it is about; 0 when its part_id is no number",
        lambda s: _part_number(s.view),
        words=2,
    ),
)

LINE_BITS: tuple[Bit[LineState], ...] = (Bit(0, "ready", "results may be relied on", lambda s: s.line.safe),)

CAMERA_BIT_TABLE: tuple[Bit[CameraState], ...] = (
    Bit(TRIGGER_BIT, "trigger", "coil, write: the PLC sets and resets it", lambda s: s.handshake.is_set, writable=True),
    Bit(1, "ack", "inspectd has accepted the trigger", lambda s: s.signals.ack),
    Bit(2, "busy", "the trigger is under way", lambda s: s.signals.busy),
    Bit(3, "done", "every region has its result", lambda s: s.signals.done),
    Bit(4, "error", "the trigger failed; trigger_error says why", lambda s: s.signals.error.number != 0),
    Bit(5, "camera_ready", "the camera's state is ready", lambda s: s.view.state == "ready"),
)


def camera_address(camera: int) -> int:
    """First register of a camera, counted from 0."""
    return (camera + 1) * CAMERA_STRIDE


def roi_address(camera: int, roi: int) -> int:
    """First register of a region, both counted from 0."""
    return camera_address(camera) + (roi + 1) * ROI_STRIDE


def bit_address(camera: int) -> int:
    """First coil or discrete input of a camera, counted from 0."""
    return (camera + 1) * CAMERA_BITS


def addresses(layout: Layout) -> Iterator[tuple[str, int, str, str]]:
    """The whole map of one line: kind ("register" or "bit"), address, type, name."""
    for register in LINE:
        yield "register", register.offset, register.type, register.name
    for number, camera in enumerate(layout.cameras):
        yield from _camera_addresses(number, camera)
    for bit in LINE_BITS:
        yield "bit", bit.offset, "bit", bit.name
    for number, camera in enumerate(layout.cameras):
        for each in CAMERA_BIT_TABLE:
            yield "bit", bit_address(number) + each.offset, "bit", f"{camera.name}.{each.name}"


def _camera_addresses(number: int, camera: CameraLayout) -> Iterator[tuple[str, int, str, str]]:
    base = camera_address(number)
    for register in CAMERA:
        yield "register", base + register.offset, register.type, f"{camera.name}.{register.name}"
    for index, roi in enumerate(camera.rois):
        base = roi_address(number, index)
        for each in ROI:
            yield "register", base + each.offset, each.type, f"{camera.name}.{roi.name}.{each.name}"
