"""The messages of the control socket: JSON requests and their JSON replies.

A request is one object with `op`; whatever it has in `id` comes back in the reply. A reply has `ok`, `op` and
`id`, and beside them either the result or `error`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from inspectd.config import Name

MAX_REQUEST_BYTES = 65_536
MIN_DEADLINE_MS = 5
MAX_DEADLINE_MS = 60_000
MAX_REPLAY = 1000
"""Messages in one reply to `replay`; the rest is asked for again."""
MAX_INT = 2**53
"""Every JSON reader and every database keeps whole numbers up to this one exactly."""

Role = Literal["read", "control"]
"""What a client key may do: `read` may ask, `control` may also command."""

ErrorCode = Literal[
    "bad_request",  # no JSON object, or a field that is missing, unknown or of the wrong kind
    "too_large",  # more than MAX_REQUEST_BYTES
    "unknown_op",
    "forbidden",  # this client's key may not do that
    "unknown_camera",
    "not_triggered",  # the camera runs free
    "bad_deadline",  # not within MIN_DEADLINE_MS and MAX_DEADLINE_MS
    "duplicate",  # this part_id is being inspected, or was a moment ago
    "busy",  # as many as fit are under way: ask again later
    "no_journal",  # nothing is journaled, so nothing can be replayed
    "journal_failing",
    "unknown_boot",
    "unknown_recipe",
    "no_challenge",  # no golden pictures are configured
    "refused",  # the new configuration, recipe or model was not taken; the old one stays
    "stopping",
    "internal",
]

PartId = Annotated[str, Field(min_length=1, max_length=128)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    id: Annotated[str, Field(max_length=128)] | Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)] | None = None


class TriggerRequest(_Request):
    """Inspect the next part. Answered at once; its verdicts come on the stream, one per ROI."""

    op: Literal["trigger"]
    camera: Name
    part_id: PartId | None = None
    deadline_ms: float


class ReplayRequest(_Request):
    """What was published on one topic from `from_seq` on, in one boot; without `boot_id` in this one."""

    op: Literal["replay"]
    topic: Annotated[str, Field(min_length=1, max_length=256)]
    from_seq: Annotated[int, Field(ge=1, le=MAX_INT)]
    boot_id: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_REPLAY)] = MAX_REPLAY


class StatusRequest(_Request):
    op: Literal["status"]


class ReloadRequest(_Request):
    """Read the configuration file again. Answered when the new one is in force, or refused."""

    op: Literal["reload"]


class ChallengeRequest(_Request):
    """Judge the golden pictures now. Answered with what came out."""

    op: Literal["challenge"]


class RecipeRequest(_Request):
    """Switch to a recipe; null is what stands outside the recipes. Answered when it is in force, or refused."""

    op: Literal["recipe"]
    name: Name | None


Request = TriggerRequest | ReplayRequest | StatusRequest | ReloadRequest | ChallengeRequest | RecipeRequest
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="op")])

READER_OPS = frozenset({"replay", "status"})
"""What the role `read` may do; everything else needs `control`."""


class TriggerAccepted(BaseModel):
    """Result of `trigger`."""

    trigger_id: str
    accepted_at: str
    deadline_at: str


class ReplayPage(BaseModel):
    """Result of `replay`: messages as they were published, but `replayed`, in the order of `seq`.

    `missing` are ranges [first, last] that are not in the journal (any more). `next_seq` is where to go on, null when
    this boot has no more; then `next_boot_id` names the boot that came after it, null when it is the running one.
    """

    topic: str
    boot_id: str
    messages: list[dict[str, Any]]
    missing: list[tuple[int, int]] = []
    next_seq: int | None
    next_boot_id: str | None = None


class ControlError(Exception):
    """A request is refused; becomes the reply's `error`."""

    def __init__(self, code: ErrorCode, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.details = details


def parse_request(body: bytes) -> Request:
    """A request from its JSON.

    Raises:
        ControlError: it is none; the message is one line.
    """
    if len(body) > MAX_REQUEST_BYTES:
        raise ControlError("too_large", f"{len(body)} bytes are more than {MAX_REQUEST_BYTES}")
    try:
        return _REQUEST.validate_json(body)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][1:2]) or "request"
        if first["type"] == "union_tag_invalid":
            raise ControlError("unknown_op", f"op is none of {first['ctx']['expected_tags']}") from None
        raise ControlError("bad_request", f"{where}: {' '.join(first['msg'].split())}") from None
