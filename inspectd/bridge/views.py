"""What a bridge shows at one instant: of the line, of a camera, of a region."""

from __future__ import annotations

from dataclasses import dataclass

from inspectd.bridge.codes import Code
from inspectd.verdict.schema import Part, State, Verdict

Result = Verdict | Part


@dataclass(frozen=True, slots=True)
class RoiView:
    """A region at one instant. `result` is None exactly when `verdict` is the fail-safe code."""

    verdict: int
    reason: Code
    result: Result | None
    label: int  # index in the layout; 0 none
    age_ms: float | None
    count: int  # results that were published since the bridge listens
    seq: int  # of the newest of them


@dataclass(frozen=True, slots=True)
class CameraView:
    state: State | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class LineView:
    safe: bool
    reason: Code  # why not
    state: State | None
    text: str | None  # the daemon's or the client's words for it
    heartbeats: int
    boot_id: str | None
    recipe: str | None
    config: str
