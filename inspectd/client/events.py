"""What a client tells: messages, and what became of those that never came."""

from __future__ import annotations

import time
from dataclasses import dataclass

from inspectd.verdict.schema import Message

LIVE_S = 1.0
"""An older message is no longer live, however it came."""


@dataclass(frozen=True, slots=True)
class Received:
    """One message of the stream, once; per topic in the order of `seq`.

    `body` is what stood on the wire, JSON or msgpack. `received_at` is monotonic seconds. `recovered` says that the
    message did not come by itself when it was published: it was fetched by a replay, or this process had stood
    still while it waited.
    """

    topic: str
    message: Message
    body: bytes
    received_at: float
    recovered: bool = False

    @property
    def live(self) -> bool:
        """Whether a gate may act on it, asked now: fresh, no repeat of a last value, not recovered.

        True for at most a second after the message came. A handler that was busy for longer finds False.
        """
        repeat = getattr(self.message, "replayed", False)
        return not (repeat or self.recovered) and time.monotonic() - self.received_at < LIVE_S


@dataclass(frozen=True, slots=True)
class Lost:
    """Messages `first` to `last` of a topic were published and will never come: nothing is known of those parts."""

    topic: str
    boot_id: str
    first: int
    last: int

    @property
    def count(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Restarted:
    """The daemon is another one. Numbers begin at 1 again; what the old one had accepted has no answer.

    What the old one published last comes afterwards, recovered, if there is a journal; without one, what it
    published after its last heartbeat is not known to be lost.
    """

    old_boot: str
    new_boot: str


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the line may run has changed: the same that `fail_safe` was told. `reason` is None when it may."""

    reason: str | None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something came that is no message of the stream; `why` is one line."""

    why: str


Event = Received | Lost | Restarted | Health | Unreadable
