"""What goes out: every message numbered, journaled and sent, and the last one of each topic remembered.

Owned by the thread "zeromq". With `before_publish` messages are staged: written to disk together, and only then
sent. A disk that does not answer in `THROUGH_S` holds no message up: what it says is decided anew, knowing that it is
not on disk, it goes out, and the journal says that it fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from inspectd.verdict.schema import CameraStatus, Encoding, JournalState, Part, Verdict, encode

THROUGH_S = 0.1
FADE = 0.98
"""What is left, one flush later, of the longest time that the disk took."""
Told = TypeVar("Told", Verdict, Part, CameraStatus)


class MessageJournal(Protocol):
    """The part of the journal that the stream fills; none of it raises, only `write_through` waits."""

    @property
    def state(self) -> JournalState: ...
    def message(self, topic: str, seq: int, body: bytes) -> None: ...
    def late(self, body: bytes) -> None: ...
    def write_through(self, timeout_s: float) -> bool: ...


@dataclass(slots=True)
class _Topic:
    """One topic's state."""

    name: str
    wire: bytes
    seq: int = 0
    last: Verdict | Part | CameraStatus | None = None


@dataclass(slots=True)
class _Staged:
    topic: _Topic
    message: Verdict | Part | CameraStatus
    body: bytes
    instead: Callable[[Any, bool], Verdict | Part | CameraStatus | None] | None
    then: Callable[[Any], None] | None


class Stream:
    """Numbers per topic from 1 without gaps within a boot."""

    def __init__(
        self,
        encoding: Encoding,
        send: Callable[[bytes, bytes], None],
        journal: MessageJournal | None,
        *,
        before_publish: bool,
    ) -> None:
        self._encoding: Encoding = encoding
        self._send = send
        self._journal = journal
        self._before_publish = before_publish and journal is not None
        self._topics: dict[str, _Topic] = {}
        self._staged: list[_Staged] = []
        self.hold_s = 0.0
        """For how long the disk held up messages of late: the worst, which fades. 0 when nothing waits for it."""

    def tell(
        self,
        topic: str,
        make: Callable[[int], Told],
        *,
        instead: Callable[[Told, bool], Told | None] | None = None,
        then: Callable[[Told], None] | None = None,
    ) -> None:
        """Number, journal and send the message that `make(seq)` gives, now or with the next `flush`.

        Right before it is sent `instead(message, recorded)` may give another of the same seq; `recorded` is false when
        the disk was waited for and did not take it. `then(message)` is called with what was sent.
        """
        known = self._topics.get(topic)
        if known is None:
            known = self._topics[topic] = _Topic(topic, topic.encode())
        message = make(known.seq + 1)
        known.seq += 1
        staged = _Staged(known, message, encode(message, self._encoding), instead, then)
        if self._before_publish:
            self._staged.append(staged)
            return
        self._revise(staged, recorded=True)
        self._send(known.wire, staged.body)
        known.last = staged.message
        if self._journal is not None:
            self._journal.message(topic, staged.message.seq, staged.body)
        if staged.then is not None:
            staged.then(staged.message)

    def flush(self) -> None:
        """Write what is staged to disk and send it, and what that makes others tell as well."""
        while self._staged:
            batch, self._staged = self._staged, []
            recorded = self._write_through(batch)
            for staged in batch:
                self._send_staged(staged, recorded=recorded)

    def _write_through(self, batch: list[_Staged]) -> bool:
        assert self._journal is not None
        for staged in batch:
            self._journal.message(staged.topic.name, staged.message.seq, staged.body)
        asked = time.monotonic()
        recorded = self._journal.write_through(THROUGH_S)
        self.hold_s = max(time.monotonic() - asked, self.hold_s * FADE)
        return recorded

    def _send_staged(self, staged: _Staged, *, recorded: bool) -> None:
        assert self._journal is not None
        if self._revise(staged, recorded=recorded):
            self._journal.message(staged.topic.name, staged.message.seq, staged.body)  # the later row counts
        self._send(staged.topic.wire, staged.body)
        staged.topic.last = staged.message
        if staged.then is not None:
            staged.then(staged.message)

    def _revise(self, staged: _Staged, *, recorded: bool) -> bool:
        """The last moment before it is sent; whether it says something else now."""
        if staged.instead is None or (other := staged.instead(staged.message, recorded)) is None:
            return False
        staged.message, staged.body = other, encode(other, self._encoding)
        return True

    def repeat(self, prefixes: set[bytes]) -> None:
        """Send the last message of every topic that a new subscription asks for, as it was but `replayed`."""
        for topic in self._topics.values():
            if topic.last is not None and topic.wire.startswith(tuple(prefixes)):
                message = topic.last.model_copy(update={"replayed": True})
                self._send(topic.wire, encode(message, self._encoding))

    @property
    def newest(self) -> dict[str, int]:
        """The newest seq of every topic."""
        return {name: topic.seq for name, topic in self._topics.items()}
