"""The node tree: every variable, method and event field, its type, its meaning, and where its value comes from.

In the spirit of OPC 40100-1 (Machine Vision): a vision system with its state, results as events, jobs started by
methods, recipes selected by name. It is no implementation of that specification, and claims none of its node ids.

A variable has the node id `ns=…;s=` with its path, the names joined by dots:
`VisionSystem.Cameras.line1.Regions.lid.Verdict`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from inspectd.bridge import codes
from inspectd.bridge.codes import Code
from inspectd.bridge.layout import Layout
from inspectd.bridge.views import CameraView, LineView, Result, RoiView
from inspectd.verdict.schema import Verdict

NAMESPACE = "urn:inspectd:bridge:1"
ROOT = "VisionSystem"

UaType = Literal["Boolean", "UInt16", "UInt32", "Double", "String", "DateTime"]

StatusName = Literal[
    "BadWaitingForInitialData", "BadNoCommunication", "BadOutOfService", "BadDeviceFailure", "BadSensorFailure",
    "BadDataLost",
]  # fmt: skip

BAD: dict[Code, StatusName] = {
    codes.WAITING: "BadWaitingForInitialData",
    codes.EXPIRED: "BadWaitingForInitialData",
    codes.SILENT: "BadNoCommunication",
    codes.STARTING: "BadOutOfService",
    codes.BUSY: "BadOutOfService",
    codes.FAULT: "BadDeviceFailure",
    codes.CAMERA: "BadSensorFailure",
    codes.LOST: "BadDataLost",
}
"""Status code of a region's result variables while nothing may be concluded."""

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Variable(Generic[State]):
    """`guarded`: its status is bad, and it has no value, while nothing may be concluded."""

    name: str
    type: UaType
    meaning: str
    value: Callable[[State], Any]
    guarded: bool = False


@dataclass(frozen=True, slots=True)
class Argument:
    name: str
    type: UaType
    meaning: str


@dataclass(frozen=True, slots=True)
class Method:
    name: str
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    meaning: str


@dataclass(frozen=True, slots=True)
class ResultOf:
    """What an event is made from: a message, and what its region shows since it came."""

    message: Result
    view: RoiView


def _verdict_name(view: RoiView) -> str:
    return next(code.name for code in codes.VERDICTS if code.number == view.verdict)


def _of(result: Result | None, name: str) -> Any:
    """A field that only a verdict has, or nothing."""
    return getattr(result, name) if isinstance(result, Verdict) else None


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _captured_at(result: Result | None) -> datetime | None:
    if result is None:
        return None
    return _time(result.captured_at if isinstance(result, Verdict) else result.last_at)


LINE: tuple[Variable[LineView], ...] = (
    Variable("MapVersion", "UInt16", "version of this tree; compare it", lambda s: codes.MAP_VERSION),
    Variable(
        "Heartbeat",
        "UInt32",
        "counts the heartbeats of inspectd, two a second; stands still when inspectd or the network is gone",
        lambda s: s.heartbeats & 0xFFFFFFFF,
    ),
    Variable("Ready", "Boolean", "results may be relied on; false: all verdicts are fail-safe", lambda s: s.safe),
    Variable("State", "String", "`starting`, `ready`, `busy`, `fault`, or `unknown`", lambda s: s.state or "unknown"),
    Variable("StateCode", "UInt16", "the same, see the states", lambda s: codes.STATE_CODES[s.state]),
    Variable("Reason", "String", "why it is not ready, see the reasons", lambda s: s.reason.name),
    Variable("ReasonCode", "UInt16", "the same as a number", lambda s: s.reason.number),
    Variable("Detail", "String", "inspectd's own words for it", lambda s: s.text or ""),
    Variable("Recipe", "String", "the recipe in force; empty outside the recipes", lambda s: s.recipe or ""),
    Variable("Config", "String", "hash of the configuration in force", lambda s: s.config),
    Variable("BootId", "String", "new at every start of inspectd", lambda s: s.boot_id or ""),
)

CAMERA: tuple[Variable[CameraView], ...] = (
    Variable("State", "String", "`starting`, `ready`, `busy`, `fault`, or `unknown`", lambda s: s.state or "unknown"),
    Variable("StateCode", "UInt16", "the same, see the states", lambda s: codes.STATE_CODES[s.state]),
    Variable("Detail", "String", "inspectd's own words for it", lambda s: s.reason or ""),
)

ROI: tuple[Variable[RoiView], ...] = (
    Variable("VerdictCode", "UInt16", "see the verdicts; 0 while nothing may be concluded", lambda s: s.verdict),
    Variable("Reason", "String", "why there is no pass or fail, see the reasons", lambda s: s.reason.name),
    Variable("ReasonCode", "UInt16", "the same as a number", lambda s: s.reason.number),
    Variable("Results", "UInt32", "counts the results since the bridge started", lambda s: s.count & 0xFFFFFFFF),
    Variable("Sequence", "UInt32", "`seq` of the newest result, as in the journal", lambda s: s.seq & 0xFFFFFFFF),
    Variable("Verdict", "String", "`pass`, `fail`, `no_result`", _verdict_name, guarded=True),
    Variable("Label", "String", "top class; of a fail the defect", lambda s: _label(s.result), guarded=True),
    Variable("LabelIndex", "UInt16", "its index in the layout, from 1; 0 none", lambda s: s.label, guarded=True),
    Variable("Score", "Double", "probability of the label; 0 without one", lambda s: _score(s.result), guarded=True),
    Variable(
        "PartId", "String", "of the trigger; empty without one", lambda s: _of(s.result, "part_id") or "", guarded=True
    ),
    Variable(
        "TriggerId", "String", "which trigger it answers", lambda s: _of(s.result, "trigger_id") or "", guarded=True
    ),
    Variable("CapturedAt", "DateTime", "when the picture was taken", lambda s: _captured_at(s.result), guarded=True),
    Variable(
        "Model", "String", "hash of the model that judged", lambda s: s.result.model if s.result else "", guarded=True
    ),
    Variable("Recipe", "String", "recipe in force", lambda s: (s.result and s.result.recipe) or "", guarded=True),
)

RESULT_EVENT = "ResultReadyEventType"
RESULT_FIELDS: tuple[Variable[ResultOf], ...] = (
    Variable("Camera", "String", "where", lambda s: s.message.camera),
    Variable("Region", "String", "where", lambda s: s.message.roi),
    Variable("VerdictCode", "UInt16", "see the verdicts", lambda s: s.view.verdict),
    Variable("Verdict", "String", "`pass`, `fail`, `no_result` or `fail_safe`", lambda s: _verdict_name(s.view)),
    Variable("Reason", "String", "why there is no pass or fail", lambda s: s.view.reason.name),
    Variable("ReasonCode", "UInt16", "the same as a number", lambda s: s.view.reason.number),
    Variable("Label", "String", "top class; of a fail the defect", lambda s: _label(s.view.result)),
    Variable("LabelIndex", "UInt16", "its index in the layout, from 1; 0 none", lambda s: s.view.label),
    Variable("Score", "Double", "probability of the label", lambda s: _score(s.view.result)),
    Variable("PartId", "String", "of the trigger; empty without one", lambda s: _of(s.message, "part_id") or ""),
    Variable("TriggerId", "String", "which trigger it answers", lambda s: _of(s.message, "trigger_id") or ""),
    Variable("Sequence", "UInt32", "`seq`, as in the journal", lambda s: s.message.seq & 0xFFFFFFFF),
    Variable("BootId", "String", "which start of inspectd", lambda s: s.message.boot_id),
    Variable("CapturedAt", "DateTime", "when the picture was taken", lambda s: _captured_at(s.message)),
    Variable("PublishedAt", "DateTime", "when inspectd told", lambda s: _time(s.message.published_at)),
    Variable("Model", "String", "hash of the model that judged", lambda s: s.message.model),
    Variable("Config", "String", "hash of the configuration in force", lambda s: s.message.config),
    Variable("Recipe", "String", "recipe in force", lambda s: s.message.recipe or ""),
)

READY_EVENT = "ReadyChangedEventType"
READY_FIELDS: tuple[Variable[LineView], ...] = tuple(
    variable for variable in LINE if variable.name in ("Ready", "State", "Reason", "ReasonCode", "Detail")
)

SELECT_RECIPE = Method(
    "SelectRecipe",
    (Argument("Name", "String", "name of the recipe; empty for none"),),
    (
        Argument("Recipe", "String", "what is in force now"),
        Argument("Config", "String", "hash of the configuration in force now"),
    ),
    "switches the recipe; answers when the new one is in force, and fails with the old one in force",
)
TRIGGER = Method(
    "Trigger",
    (
        Argument("PartId", "String", "comes back with the results; empty for none"),
        Argument("DeadlineMs", "Double", "how long the results may take, 5 to 60000"),
    ),
    (
        Argument("TriggerId", "String", "comes back with the results"),
        Argument("AcceptedAt", "DateTime", "frames from here on count"),
        Argument("DeadlineAt", "DateTime", "each region has its result by then"),
    ),
    "inspects the next part; answers at once, the results come as one event per region",
)

REFUSALS: dict[str, str] = {
    "forbidden": "BadUserAccessDenied",
    "unknown_camera": "BadNotFound",
    "unknown_recipe": "BadNotFound",
    "not_triggered": "BadInvalidState",
    "bad_request": "BadInvalidArgument",
    "bad_deadline": "BadOutOfRange",
    "duplicate": "BadEntryExists",
    "busy": "BadTooManyOperations",
    "stopping": "BadShutdown",
    "fail_safe": "BadInvalidState",
    "no_reply": "BadTimeout",
}
"""Status codes of a refused method call; everything else is BadInternalError."""


def _label(result: Result | None) -> str:
    return "" if result is None else result.label or ""


def _score(result: Result | None) -> float:
    return 0.0 if result is None else result.score or 0.0


def camera_path(camera: str) -> str:
    return f"{ROOT}.Cameras.{camera}"


def roi_path(camera: str, roi: str) -> str:
    return f"{camera_path(camera)}.Regions.{roi}"


def paths(layout: Layout) -> Iterator[tuple[str, str, str]]:
    """The whole tree of one line: kind ("variable" or "method"), type, path."""
    for line in LINE:
        yield "variable", line.type, f"{ROOT}.{line.name}"
    yield "method", "", f"{ROOT}.{SELECT_RECIPE.name}"
    for camera in layout.cameras:
        for each in CAMERA:
            yield "variable", each.type, f"{camera_path(camera.name)}.{each.name}"
        yield "method", "", f"{camera_path(camera.name)}.{TRIGGER.name}"
        for roi in camera.rois:
            for region in ROI:
                yield "variable", region.type, f"{roi_path(camera.name, roi.name)}.{region.name}"
