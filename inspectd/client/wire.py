"""From the wire to a message, checked: a message under another topic's name is none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from inspectd.client.events import Received
from inspectd.verdict.schema import (
    HEARTBEAT_TOPIC,
    Heartbeat,
    Message,
    Part,
    Verdict,
    decode,
    part_topic,
    status_topic,
    verdict_topic,
)


def parsed(frames: Sequence[bytes]) -> tuple[str, bytes, Message]:
    """Topic, body and message.

    Raises:
        ValueError: it is none, or none of this topic; one line.
    """
    topic = frames[0].decode(errors="replace")
    if len(frames) != 2:
        raise ValueError(f"{topic[:80]!r}: {len(frames)} frame(s) where topic and body are expected")
    try:
        message = decode(frames[1])
    except ValueError as err:
        raise ValueError(f"{topic[:80]!r}: {err}") from None
    if topic != topic_of(message):
        raise ValueError(f"{topic[:80]!r}: the message is one of {topic_of(message)[:80]!r}")
    return topic, frames[1], message


def recovered(fields: Mapping[str, Any], now: float) -> Received:
    """A message out of a replay.

    Raises:
        ValueError: it is none; one line.
    """
    body = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    try:
        message = decode(body)
    except ValueError as err:
        raise ValueError(f"replayed: {err}") from None
    return Received(topic_of(message), message, body, now, recovered=True)


def topic_of(message: Message) -> str:
    """The topic that a message belongs to, by what it says."""
    if isinstance(message, Heartbeat):
        return HEARTBEAT_TOPIC
    if isinstance(message, Verdict):
        return verdict_topic(message.camera, message.roi)
    if isinstance(message, Part):
        return part_topic(message.camera, message.roi)
    return status_topic(message.camera)
