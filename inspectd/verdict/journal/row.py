"""The rows of a journal and the chain that binds each to all before it."""

from __future__ import annotations

import hashlib
import struct
import time
from typing import Literal, NamedTuple

from inspectd.verdict.schema import timestamp

EventKind = Literal["boot", "config", "recipe", "model", "challenge"]
Kind = Literal[
    "message",  # published: topic, seq and body as on the wire
    "late",  # a result that came after its deadline and was not published
    "boot",  # the daemon started
    "config",  # a configuration came into force
    "recipe",  # a recipe came into force
    "model",  # a model came into force
    "challenge",  # golden pictures were judged
    "lost",  # rows before this one never reached the journal; its body says how many and which
]

HASH_BYTES = 32
MAX_BODY_BYTES = 16_000_000
"""A longer body is lost and counted; a verdict has about a thousand."""

_DOMAIN = b"inspectd.journal/1\n"
_FIXED = struct.Struct(">QqqQQQQ")  # number, at_us, seq or -1, and the lengths of kind, boot_id, topic, body
_NONE = 2**64 - 1  # as a length: there is no topic


class Entry(NamedTuple):
    """What is handed over: a row that has no place in the chain yet. `at_us`: Unix time in microseconds."""

    at_us: int
    kind: Kind
    topic: str | None
    seq: int | None
    body: bytes


class Row(NamedTuple):
    """A row as it is in the table `rows`, in the order of its columns."""

    number: int
    at_us: int
    kind: str
    boot_id: str
    topic: str | None
    seq: int | None
    body: bytes
    hash: bytes


def recorded_at(at_us: int) -> str:
    """A row's time as people read it; as a number where somebody put one that is no time."""
    try:
        return timestamp(at_us / 1e6)
    except ValueError:
        return str(at_us)


def entry(kind: Kind, topic: str | None, seq: int | None, body: bytes) -> Entry:
    """An entry of this moment."""
    return Entry(time.time_ns() // 1000, kind, topic, seq, body)


def follow(previous: bytes, number: int, boot_id: str, entry: Entry) -> Row:
    """The row that an entry becomes after the row whose hash is `previous`.

    Raises:
        ValueError: no such row can be: a body that is too long, a text that is no UTF-8, a value of a wrong kind.
    """
    if len(entry.body) > MAX_BODY_BYTES:
        raise ValueError(f"a body of {len(entry.body)} bytes is longer than {MAX_BODY_BYTES}")
    row = Row(number, entry.at_us, entry.kind, boot_id, entry.topic, entry.seq, entry.body, b"")
    try:
        return row._replace(hash=chain_hash(previous, row))
    except (struct.error, TypeError, AttributeError) as err:  # UnicodeEncodeError is a ValueError
        raise ValueError(f"no row: {err}") from err


def chain_hash(previous: bytes, row: Row) -> bytes:
    """SHA-256 over the previous row's hash and everything in this row but its own.

    Every length stands before the first text, so that no two different rows give the same bytes:

        "inspectd.journal/1\\n" previous
        number at_us seq len(kind) len(boot_id) len(topic) len(body)
        kind boot_id topic body

    Numbers are 8 bytes, big-endian; at_us and seq are signed. Without a seq it is -1; without a topic its length is
    2^64 - 1.
    """
    kind, boot_id = row.kind.encode(), row.boot_id.encode()
    topic = b"" if row.topic is None else row.topic.encode()
    fixed = _FIXED.pack(
        row.number,
        row.at_us,
        -1 if row.seq is None else row.seq,
        len(kind),
        len(boot_id),
        _NONE if row.topic is None else len(topic),
        len(row.body),
    )
    return hashlib.sha256(b"".join((_DOMAIN, previous, fixed, kind, boot_id, topic, row.body))).digest()
