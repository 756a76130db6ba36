"""Frames of a station as the part counter is told of them, by one letter each.

p pass   f fail   u uncertain about a part   . empty station   ? uncertain, most like an empty station
x never judged (overload)   c never judged (corrupt)   n never judged (not_ready)
"""

from __future__ import annotations

from typing import Any

from inspectd.verdict.schema import FrameInfo, Latency, Verdict, timestamp

AT = 1_700_000_000.0
KINDS: dict[str, dict[str, Any]] = {
    "p": {"verdict": "pass", "label": "good", "score": 0.9},
    "f": {"verdict": "fail", "label": "scratch", "score": 0.8},
    "u": {"verdict": "no_result", "reason": "uncertain", "label": "good", "score": 0.6},
    ".": {"verdict": "no_result", "label": "empty", "score": 0.99},
    "?": {"verdict": "no_result", "reason": "uncertain", "label": "empty", "score": 0.5},
    "x": {"verdict": "no_result", "reason": "overload"},
    "c": {"verdict": "no_result", "reason": "corrupt"},
    "n": {"verdict": "no_result", "reason": "not_ready"},
}


def verdict(kind: str, index: int, **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "boot_id": "b00t",
        "seq": index + 1,
        "camera": "top",
        "roi": "part",
        "frame": FrameInfo(index=index, pts=None, clock="arrival"),
        "captured_at": timestamp(AT + index),
        "published_at": timestamp(AT + index),
        "latency_ms": Latency(decode=0, queue=0, engine=0, total=0),
        "model": "m0del",
        "config": "c0nfig",
        "evidence": f"{index}.png",
    }
    return Verdict(**{**fields, **KINDS[kind], **changes})
