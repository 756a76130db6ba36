"""The messages of the verdict stream: what they may say, and how they are written."""

from __future__ import annotations

import json
import math
import re
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from inspectd.verdict.schema import (
    BoxScore,
    CameraStatus,
    FrameInfo,
    Heartbeat,
    Latency,
    Message,
    NoResultReason,
    Verdict,
    decode,
    encode,
    json_schema,
    timestamp,
    to_json,
)

AT = "2026-01-31T12:00:00.000000Z"


def verdict(**changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "boot_id": "b00t",
        "seq": 7,
        "camera": "top",
        "roi": "part",
        "verdict": "pass",
        "label": "good",
        "score": 0.98,
        "scores": {"good": 0.98, "scratch": 0.02},
        "frame": FrameInfo(index=6, pts=0.2, clock="rtcp"),
        "captured_at": AT,
        "published_at": AT,
        "latency_ms": Latency(decode=1.5, queue=0.25, engine=4.0, total=6.0),
        "model": "0123456789ab",
        "config": "ba9876543210",
    }
    return Verdict(**{**fields, **changes})


MESSAGES: list[Message] = [
    verdict(),
    verdict(verdict="fail", label="Kratzer – tief", score=0.7, scores={"Kratzer – tief": 0.7}, replayed=True),
    verdict(verdict="no_result", reason="camera_down", label=None, score=None, scores={}, frame=None, captured_at=None),
    verdict(verdict="no_result", label="station", boxes=(BoxScore(label="a", score=0.5, box=(1, 2, 3, 4)),)),
    CameraStatus(boot_id="b00t", seq=1, camera="top", state="fault", reason="stall", published_at=AT),
    Heartbeat(boot_id="b00t", seq=3, state="ready", topics={"verdict/top/part/": 7}, published_at=AT),
]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_survives_the_wire(message: Message, encoding: Any) -> None:
    """decode() finds out itself which encoding and which kind of message it has."""
    assert decode(encode(message, encoding)) == message


def test_both_encodings_say_the_same() -> None:
    """Field for field, under the same names."""
    for message in MESSAGES:
        plain = json.loads(encode(message, "json"))
        packed = msgpack.unpackb(encode(message, "msgpack"))
        assert plain == packed
        assert list(plain) == list(packed)
        assert json.loads(to_json(encode(message, "msgpack"))) == plain


def test_json_is_one_line_with_the_documented_fields_in_order() -> None:
    """What the README's table says."""
    body = encode(verdict(), "json").decode()
    assert "\n" not in body
    assert to_json(body.encode()) == body
    fields = (
        "schema boot_id seq replayed camera roi verdict reason label score scores boxes part_id trigger_id "
        "frame captured_at published_at latency_ms model config recipe evidence"
    )
    assert " ".join(json.loads(body)) == fields
    assert json.loads(body)["schema"] == "inspectd.verdict/1"


@pytest.mark.parametrize(
    "changes",
    [
        {"reason": "stale"},
        {"verdict": "fail", "reason": "uncertain"},
        {"label": None},
        {"score": None},
        {"score": math.nan},
        {"score": 1.001},
        {"scores": {"good": math.nan}},
        {"verdict": "fail", "label": None, "score": None},
        {"verdict": "no_result", "label": None, "score": None},
        {"verdict": "no_result", "reason": "tired"},
        {"verdict": "maybe"},
        {"seq": 0},
        {"published_at": "2026-01-31 12:00:00"},
        {"latency_ms": {"decode": -1.0, "queue": 0, "engine": 0, "total": 0}},
        {"frame": {"index": 0, "pts": math.inf, "clock": "rtcp"}},
    ],
)
def test_a_verdict_that_contradicts_itself_cannot_be_made(changes: dict[str, Any]) -> None:
    """A pass without its score, with a reason or with NaN is no message at all."""
    with pytest.raises(ValidationError):
        verdict(**changes)


def test_fields_of_a_later_version_are_ignored() -> None:
    """A subscriber need not be upgraded together with the daemon."""
    data = {**json.loads(encode(verdict(), "json")), "colour": "blue"}
    assert decode(json.dumps(data).encode()) == verdict()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "neither JSON nor msgpack"),
        (b"{", "Invalid JSON"),
        (b"hello", "neither JSON nor msgpack"),
        (b'{"schema":"inspectd.verdict/2"}', "inspectd.verdict/2"),
        (b"{}", "schema"),
        (b"\xc1", "neither JSON nor msgpack"),
        (b"\x80", "schema"),
        (b"\x91" * 5000, "neither JSON nor msgpack"),
        (encode(verdict(), "msgpack")[:-3], "neither JSON nor msgpack"),
    ],
)
def test_what_is_no_message_is_refused_in_one_line(body: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)) as caught:
        decode(body)
    assert "\n" not in str(caught.value)


@given(st.binary() | st.binary().map(lambda tail: b"{" + tail) | st.binary().map(lambda tail: b"\x81" + tail))
def test_no_bytes_make_decode_raise_anything_else(body: bytes) -> None:
    with pytest.raises(ValueError):
        decode(body)


class TestTimestamp:
    @pytest.mark.parametrize(
        ("unix_s", "text"),
        [
            (0.0, "1970-01-01T00:00:00.000000Z"),
            (1769860800.25, "2026-01-31T12:00:00.250000Z"),
            (1769860799.9999999, "2026-01-31T12:00:00.000000Z"),
            (-0.5, "1969-12-31T23:59:59.500000Z"),
        ],
    )
    def test_is_utc_with_microseconds(self, unix_s: float, text: str) -> None:
        assert timestamp(unix_s) == text

    @pytest.mark.parametrize("unix_s", [math.nan, math.inf, 1e15, -1e15])
    def test_refuses_what_is_no_time(self, unix_s: float) -> None:
        with pytest.raises(ValueError):
            timestamp(unix_s)

    @given(st.floats(-62e9, 253e9))
    def test_always_fits_the_schema(self, unix_s: float) -> None:
        assert verdict(captured_at=timestamp(unix_s)).captured_at is not None


def violations(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> list[str]:
    """What `value` does wrong, for as much of JSON Schema as pydantic writes for these models."""
    if "$ref" in schema:
        return violations(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root)
    if "anyOf" in schema:
        return (
            [] if any(not violations(option, value, root) for option in schema["anyOf"]) else [f"{value!r}: no option"]
        )
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    kind = schema["type"]
    if not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return [f"{value!r} is no {kind}"]
    wrong = []
    if kind == "object":
        wrong += [f"{key} is missing" for key in schema.get("required", ()) if key not in value]
        named, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        for key, item in value.items():
            if key in named or others:
                wrong += violations(named.get(key, others), item, root)
    if kind == "array":
        slots = schema.get("prefixItems") or [schema["items"]] * len(value)
        wrong += [problem for item, slot in zip(value, slots, strict=True) for problem in violations(slot, item, root)]
    if "enum" in schema and value not in schema["enum"]:
        wrong.append(f"{value!r} is none of {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        wrong.append(f"{value!r} is not {schema['const']!r}")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        wrong.append(f"{value!r} does not match")
    if kind in ("integer", "number") and not schema.get("minimum", -math.inf) <= value <= schema.get(
        "maximum", math.inf
    ):
        wrong.append(f"{value!r} is out of range")
    return wrong


class TestJsonSchema:
    @pytest.mark.parametrize("message", MESSAGES)
    def test_describes_what_is_sent(self, message: Message) -> None:
        """Every message fits its schema, which knows and requires every field that it has."""
        kinds: dict[type, Any] = {Verdict: "verdict", CameraStatus: "status", Heartbeat: "heartbeat"}
        schema = json_schema(kinds[type(message)])
        data = json.loads(encode(message, "json"))
        assert violations(schema, data, schema) == []
        assert set(data) == set(schema["properties"]) == set(schema["required"])

    @pytest.mark.parametrize(
        "changes",
        [{"seq": 0}, {"seq": "1"}, {"verdict": "ok"}, {"reason": "tired"}, {"published_at": "now"}, {"score": 2}],
    )
    def test_refuses_what_is_never_sent(self, changes: dict[str, Any]) -> None:
        schema = json_schema()
        assert violations(schema, {**json.loads(encode(verdict(), "json")), **changes}, schema)

    def test_lists_every_reason(self) -> None:
        """The contract's list, word for word."""
        text = "uncertain stale corrupt frozen resized camera_down deadline overload engine_error not_ready bad_image"
        assert list(get_args(NoResultReason)) == text.split()
        assert json_schema()["properties"]["reason"]["anyOf"][0]["enum"] == text.split()

    def test_is_plain_json_and_allows_later_fields(self) -> None:
        schema = json_schema()
        assert json.loads(json.dumps(schema)) == schema
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert "additionalProperties" not in schema
