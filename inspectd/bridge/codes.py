"""The numbers that stand for words on the PLC's side. They are a contract: none ever changes its meaning.

Verdict codes are words of a Reed-Muller code: any two differ in 8 of 16 bits, and all but `fail_safe` differ in
8 bits from 0x0000 and from 0xFFFF. Neither cleared memory, nor a stuck line, nor swapped bytes, nor up to seven
flipped bits read as a pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from inspectd.verdict.control_schema import ErrorCode
from inspectd.verdict.schema import NoResultReason, State, VerdictKind

MAP_VERSION: Final = 1
"""Of the register map and the node tree; another one means that a PLC program must be looked at."""

FAIL_SAFE: Final = 0x0000
VERDICT_CODES: Final[dict[VerdictKind, int]] = {"pass": 0x5AA5, "fail": 0x6996, "no_result": 0x3CC3}

UNKNOWN_LABEL: Final = 0xFFFF
"""Index of a label that is not in the layout; 0 is no label, 1 the first of the layout."""

STATE_CODES: Final[dict[State | None, int]] = {None: 0, "starting": 1, "ready": 2, "busy": 3, "fault": 4}


@dataclass(frozen=True, slots=True)
class Code:
    """A number, its name in logs and in OPC UA, and what it means to somebody at the line."""

    number: int
    name: str
    meaning: str


VERDICTS: Final = (
    Code(FAIL_SAFE, "fail_safe", "nothing may be concluded: reject, or stop; the reason code says why"),
    Code(VERDICT_CODES["pass"], "pass", "the only value that may open a gate"),
    Code(VERDICT_CODES["fail"], "fail", "a defect; the label index says which"),
    Code(VERDICT_CODES["no_result"], "no_result", "looked at without a result: reject; the reason code says why"),
)

STATES: Final = (
    Code(0, "unknown", "nothing heard yet, nothing for a second, or a camera's state was lost on its way"),
    Code(1, "starting", "not yet able to judge"),
    Code(2, "ready", "able to judge"),
    Code(3, "busy", "judging is suspended for a moment"),
    Code(4, "fault", "not able to judge"),
)

_NO_RESULT: Final[dict[NoResultReason, tuple[int, str]]] = {
    "uncertain": (1, "no class is sure enough"),
    "stale": (2, "the verdict came too late"),
    "corrupt": (3, "the picture is damaged"),
    "frozen": (4, "the camera repeats the same picture"),
    "resized": (5, "the picture has another size"),
    "camera_down": (6, "no picture could be had"),
    "deadline": (7, "the trigger's deadline passed"),
    "overload": (8, "newer pictures took its place"),
    "engine_error": (9, "the network failed"),
    "not_ready": (10, "inspectd was not ready to judge"),
    "bad_image": (12, "the picture is too dark, too bright, flat or blurred: lens, lamp, focus"),
}

NONE: Final = Code(0, "none", "no reason: pass or fail")
EMPTY: Final = Code(11, "empty", "there is no part in view")
WAITING: Final = Code(100, "waiting", "no result since the start, or since outputs were last forced to fail-safe")
EXPIRED: Final = Code(101, "expired", "the last result is older than --hold-ms")
SILENT: Final = Code(102, "silent", "no heartbeat of inspectd: not running, or the network is down")
STARTING: Final = Code(103, "starting", "inspectd is starting")
BUSY: Final = Code(104, "busy", "inspectd says that it is busy")
FAULT: Final = Code(105, "fault", "inspectd is at fault; its log and `inspectd status` say why")
CAMERA: Final = Code(106, "camera", "this camera is starting or at fault, or its state was lost on its way")
LOST: Final = Code(107, "lost", "a result was lost on its way; the next one counts again")

REASONS: Final = (
    NONE,
    *sorted(
        [*(Code(number, name, meaning) for name, (number, meaning) in _NO_RESULT.items()), EMPTY],
        key=lambda code: code.number,
    ),
    WAITING,
    EXPIRED,
    SILENT,
    STARTING,
    BUSY,
    FAULT,
    CAMERA,
    LOST,
)


def reason_of(reason: NoResultReason | None) -> Code:
    """Of a no_result; without a reason it says that there is no part."""
    if reason is None:
        return EMPTY
    number, meaning = _NO_RESULT[reason]
    return Code(number, reason, meaning)


_REFUSALS: Final[dict[ErrorCode, tuple[int, str]]] = {
    "bad_request": (1, "inspectd does not understand the request; other versions?"),
    "too_large": (2, "the request is too large"),
    "unknown_op": (3, "this inspectd has no triggers"),
    "forbidden": (4, "the bridge's key has not the role control"),
    "unknown_camera": (5, "inspectd has no such camera: the layout does not fit"),
    "not_triggered": (6, "the camera runs free; set trigger = 'command'"),
    "bad_deadline": (7, "the deadline is not within 5 and 60000 ms"),
    "duplicate": (8, "this part number is being inspected, or was a moment ago"),
    "busy": (9, "as many triggers as fit are under way"),
    "no_journal": (10, "nothing is journaled"),
    "journal_failing": (11, "the journal cannot be written"),
    "unknown_boot": (12, "unknown boot"),
    "unknown_recipe": (13, "there is no such recipe"),
    "no_challenge": (14, "no golden pictures are configured"),
    "refused": (15, "refused; the log of inspectd says why"),
    "stopping": (16, "inspectd is stopping"),
    "internal": (17, "a defect of inspectd; its log says more"),
}

NO_ERROR: Final = Code(0, "none", "no error")
NO_REPLY: Final = Code(100, "no_reply", "inspectd did not answer the request")
NO_ANSWER: Final = Code(101, "no_answer", "a region's result did not come by the deadline")
UNSAFE: Final = Code(102, "fail_safe", "inspectd is not ready, or stopped being so before the result came")
RESET_FIRST: Final = Code(103, "reset_first", "the bridge has just started: reset the trigger once, then set it")

ERRORS: Final = (
    NO_ERROR,
    *(Code(number, name, meaning) for name, (number, meaning) in _REFUSALS.items()),
    NO_REPLY,
    NO_ANSWER,
    UNSAFE,
    RESET_FIRST,
)


def error_of(code: str) -> Code:
    """Of a refusal; one that a newer inspectd may have is `refused`."""
    for error in ERRORS:
        if error.name == code and error.number < NO_REPLY.number:
            return error
    return error_of("refused")
