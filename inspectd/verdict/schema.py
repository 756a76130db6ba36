"""The messages of the verdict stream, as pydantic models: published from these, documented from these."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgpack
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from inspectd.frame import Clock

VerdictKind = Literal["pass", "fail", "no_result"]
NoResultReason = Literal[
    "uncertain",  # no class is sure enough for the thresholds
    "stale",  # the verdict would be older than max_age_ms
    "corrupt",  # the decoder reported damage
    "frozen",  # the camera repeats the same picture
    "resized",  # the frame's size is not the one that the ROI was checked against
    "camera_down",  # no frame could be had
    "deadline",  # a trigger's deadline passed, or a part stayed in view for longer than max_s
    "overload",  # newer frames took its place in the queue
    "engine_error",  # the engine failed, or its scores are no numbers
    "not_ready",  # the system is not ready to judge
    "bad_image",  # darker, brighter, flatter or more blurred than was learnt at commissioning
]
State = Literal[
    "starting",  # not yet able to judge
    "ready",  # able to judge, and vouched for by its last challenge
    "busy",  # judging as many triggers as fit: the next one would be refused
    "fault",  # not able to judge; `reason` says why
]
"""In the spirit of the vision state machine of OPC 40100-1 (Preoperational, Ready, Execution, Error)."""
JournalState = Literal["off", "ok", "failing"]

Encoding = Literal["json", "msgpack"]

Timestamp = Annotated[
    str,
    Field(
        description="RFC 3339, UTC, microseconds",
        pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z$",
        examples=["2026-01-31T12:00:00.000000Z"],
    ),
]
Count = Annotated[int, Field(ge=0)]
Milliseconds = Annotated[float, Field(ge=0)]


class _Message(BaseModel):
    # Unknown fields are ignored: a later inspectd may add some within the same schema version. NaN and
    # infinity are refused, because JSON has no way to say them.
    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        serialize_by_alias=True,
        validate_by_name=True,
        json_schema_serialization_defaults_required=True,
    )


class FrameInfo(_Message):
    index: Count = Field(description="captured frames of this camera in this boot, from 0")
    pts: float | None = Field(description="the stream's own time in seconds; null where it has none")
    clock: Clock = Field(description="where captured_at comes from")


class Latency(_Message):
    """Monotonic clock. `total` runs from the arrival of the frame's data to this message."""

    decode: Milliseconds
    queue: Milliseconds
    engine: Milliseconds
    total: Milliseconds
    trigger: Milliseconds | None = Field(None, description="from the trigger's acceptance to this message")


class BoxScore(_Message):
    label: str
    score: float = Field(ge=0, le=1)
    box: tuple[float, float, float, float] = Field(description="x, y, width, height in frame pixels")


class Verdict(_Message):
    """One inspected region of one frame. Topic `verdict/<camera>/<roi>/`."""

    schema_: Literal["inspectd.verdict/1"] = Field("inspectd.verdict/1", alias="schema")
    boot_id: str = Field(description="new at every start of the daemon")
    seq: int = Field(ge=1, description="counts per topic without gaps from 1 within a boot")
    replayed: bool = Field(False, description="true only on the repeat of a last value for a new subscriber")
    camera: str
    roi: str
    verdict: VerdictKind
    reason: NoResultReason | None = Field(
        None, description="why there is no result; null on pass, fail, and on no_result when no part is in view"
    )
    label: str | None = Field(
        None, description="top class, on fail the defect that failed it; null where nothing was inferred"
    )
    score: float | None = Field(None, ge=0, le=1, description="calibrated probability of label")
    scores: dict[str, float] = Field(default_factory=dict, description="calibrated probability of every class")
    boxes: tuple[BoxScore, ...] = ()
    part_id: str | None = Field(None, description="echoed from the trigger")
    trigger_id: str | None = Field(None, description="which trigger this answers; null in free run")
    frame: FrameInfo | None = Field(description="null only when there was no frame")
    captured_at: Timestamp | None
    published_at: Timestamp
    latency_ms: Latency
    model: str = Field(description="SHA-256 prefix of the bundle")
    config: str = Field(description="SHA-256 prefix of the effective configuration")
    recipe: str | None = Field(None, description="name of the recipe in force; null outside the recipes")
    evidence: str | None = Field(None, description="path of the stored picture, relative to evidence.dir")

    @model_validator(mode="after")
    def _whole(self) -> Verdict:
        if self.verdict != "no_result":
            if self.reason is not None:
                raise ValueError(f"a {self.verdict} carries no reason, got {self.reason}")
            if self.label is None or self.score is None:
                raise ValueError(f"a {self.verdict} needs its label and score")
        elif self.reason is None and self.label is None:
            raise ValueError("a no_result needs a reason, or the label of an empty class")
        return self


class PartFrames(_Message):
    """How many frames of a part were judged how."""

    total: int = Field(ge=0)
    passed: Count
    failed: Count
    uncertain: Count = Field(description="no_result(uncertain): looked at, and not sure")
    unseen: Count = Field(
        description="nothing is known of these: every other no_result, and empty frames inside the part"
    )


class DecisiveFrame(_Message):
    """The frame that decided a part, and the verdict message that told of it."""

    seq: int = Field(ge=1, description="of its message on verdict/<camera>/<roi>/")
    index: Count
    pts: float | None
    captured_at: Timestamp | None
    evidence: str | None


class Part(_Message):
    """One part in free run: a run of frames with something in view. Topic `part/<camera>/<roi>/`."""

    schema_: Literal["inspectd.part/1"] = Field("inspectd.part/1", alias="schema")
    boot_id: str
    seq: int = Field(ge=1, description="counts per topic without gaps from 1 within a boot")
    replayed: bool = False
    camera: str
    roi: str
    verdict: VerdictKind
    reason: NoResultReason | None = Field(None, description="why there is no result; null on pass and fail")
    label: str | None
    score: float | None = Field(None, ge=0, le=1)
    vote: Literal["any_defect", "n_of_m", "best_view"]
    frames: PartFrames
    first_index: Count
    last_index: Count
    first_at: Timestamp | None = Field(description="captured_at of the part's first frame")
    last_at: Timestamp | None = Field(description="captured_at of the part's last frame with something in view")
    decisive: DecisiveFrame | None = Field(description="null when no frame could decide")
    published_at: Timestamp
    model: str
    config: str
    recipe: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Part:
        if (self.reason is None) != (self.verdict != "no_result"):
            raise ValueError("a no_result carries a reason, and only a no_result does")
        if self.verdict != "no_result" and (self.label is None or self.decisive is None):
            raise ValueError(f"a {self.verdict} needs its label and its decisive frame")
        return self


class CameraStatus(_Message):
    """State of a camera. Topic `status/<camera>/`."""

    schema_: Literal["inspectd.status/1"] = Field("inspectd.status/1", alias="schema")
    boot_id: str
    seq: int = Field(ge=1)
    replayed: bool = False
    camera: str
    state: State
    reason: str | None
    published_at: Timestamp


class Heartbeat(_Message):
    """Twice a second, whatever happens; never replayed, so hearing one means now. Topic `heartbeat/`."""

    schema_: Literal["inspectd.heartbeat/1"] = Field("inspectd.heartbeat/1", alias="schema")
    boot_id: str
    seq: int = Field(ge=1)
    state: State
    reason: str | None = Field(None, description="why the state is not ready")
    topics: dict[str, int] = Field(description="newest seq of every topic, so that a lost tail shows")
    journal: JournalState = Field(
        "off", description="failing: not everything is on disk; nothing passes meanwhile where it is required"
    )
    recipe: str | None = None
    config: str = Field("", description="SHA-256 prefix of the effective configuration")
    published_at: Timestamp


def verdict_topic(camera: str, roi: str) -> str:
    return f"verdict/{camera}/{roi}/"


def part_topic(camera: str, roi: str) -> str:
    return f"part/{camera}/{roi}/"


def status_topic(camera: str) -> str:
    return f"status/{camera}/"


HEARTBEAT_TOPIC = "heartbeat/"


Message = Verdict | Part | CameraStatus | Heartbeat
_MODELS: dict[str, type[Message]] = {
    "verdict": Verdict,
    "part": Part,
    "status": CameraStatus,
    "heartbeat": Heartbeat,
}
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="schema_")])


def encode(message: Message, encoding: Encoding) -> bytes:
    """The body of a message, the second frame on the wire: UTF-8 JSON without line breaks, or msgpack."""
    if encoding == "json":
        return message.model_dump_json().encode()
    return bytes(msgpack.packb(message.model_dump()))


def decode(body: bytes) -> Message:
    """A message from its body, JSON or msgpack: an object starts with `{` in one and never in the other.

    Raises:
        ValueError: one line that says what is wrong.
    """
    try:
        return _MESSAGE.validate_json(body) if is_json(body) else _MESSAGE.validate_python(msgpack.unpackb(body))
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "message"
        raise ValueError(f"{where}: {first['msg']}") from None
    except (ValueError, msgpack.UnpackException) as err:
        raise ValueError(f"neither JSON nor msgpack: {err or type(err).__name__}") from None


def is_json(body: bytes) -> bool:
    return body[:1] == b"{"


def to_json(body: bytes) -> str:
    """A body as one line of JSON: as it came where it is one already.

    Raises:
        ValueError: neither JSON nor msgpack.
    """
    if not is_json(body):
        return json.dumps(msgpack.unpackb(body), ensure_ascii=False, separators=(",", ":"))
    text = body.decode()
    return text if "\n" not in text else json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))


def timestamp(unix_s: float) -> str:
    """RFC 3339 in UTC with microseconds.

    Raises:
        ValueError: not a time between the years 1 and 9999.
    """
    try:
        return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="microseconds")[:-6] + "Z"
    except (OverflowError, OSError) as err:
        raise ValueError(f"{unix_s} is no Unix time") from err


def json_schema(name: str = "verdict") -> dict[str, Any]:
    """JSON Schema (2020-12) of `verdict`, `part`, `status` or `heartbeat`, from the model that publishes it."""
    schema = _MODELS[name].model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:inspectd:{name}:1", **schema}
