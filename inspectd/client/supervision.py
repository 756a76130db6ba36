"""Whether the line may run: by the heartbeats, and by whether what is read is fresh. No sockets, no clock of its own.

All times are monotonic seconds that the caller gives.
"""

from __future__ import annotations

from inspectd.client.transit import Transit
from inspectd.verdict.schema import State

SILENCE_S = 0.9
"""Longest time between two heartbeats (0.5 s is the rule); what is left to 1 s is for getting the word out."""

STALL_S = 0.5
"""Not having read the stream to its end for longer, this process stood still, or cannot keep up."""

PACE_S = 0.25
"""Heartbeats that waited come one after the other, and keep the stream from its end however slowly they are read. One
before which nothing had come for so long has just come."""


class Supervision:
    """The heartbeats. `reason` is None while the line may run, else why not: "connecting", "silent", or what the
    last heartbeat said: "starting", "busy", "fault: …"."""

    def __init__(self) -> None:
        self.reason: str | None = "connecting"
        self.heard_at: float | None = None
        self._said: str | None = None  # by the last heartbeat: why the line may not run

    def heartbeat(self, state: State, reason: str | None, at: float) -> None:
        """A heartbeat was heard. What it says counts with the next `look`."""
        self.heard_at = at
        self._said = None if state == "ready" else f"{state}: {reason}" if reason else state

    def look(self, now: float) -> None:
        """Bring `reason` up to date."""
        if self.heard_at is not None:
            self.reason = self._said if now - self.heard_at <= SILENCE_S else "silent"

    @property
    def due(self) -> float | None:
        """When silence begins; `look` then, or earlier."""
        return None if self.heard_at is None else self.heard_at + SILENCE_S


class Pace:
    """When what is read now arrived, at the earliest. Usually now.

    A process that stood still (stopped, suspended, starved) finds messages and heartbeats that waited for it, and they
    would look fresh. So whoever has not read the stream to its end for STALL_S takes all that comes as old as that,
    and no heartbeat for a sign of life, until heartbeats come at their pace again. What did not fit into the buffers
    here waits at the daemon and comes after a pause (TCP asks ever more seldom whether there is room), as if at its
    pace: it took longer on its way than those before.
    """

    def __init__(self, now: float) -> None:
        self._read_at = now  # when the stream was last read to its end
        self._stalled_since: float | None = None
        self._heartbeat_at = now
        self._transit = Transit()

    def look(self, now: float) -> None:
        """After reading, and before what was read is believed."""
        if self._stalled_since is None and now - self._read_at > STALL_S:
            self._stalled_since = self._read_at
            self._heartbeat_at = now

    def read_all(self, now: float) -> None:
        """Nothing more waits to be read, as of `now`."""
        self._read_at = now

    @property
    def stalled(self) -> bool:
        return self._stalled_since is not None

    def arrived(self, now: float) -> float:
        """The earliest time at which what is read now can have arrived."""
        return now if self._stalled_since is None else self._stalled_since

    def heartbeat(self, published: float, now: float) -> None:
        """A heartbeat that the daemon sent at `published` (Unix seconds, its clock) is read now. It ends the stall, and
        is itself fresh, when the stream was read to its end PACE_S after the one before it, or later, and when it was
        not on its way for STALL_S longer than others."""
        self._transit.heard(published, now)
        paced = self._read_at - self._heartbeat_at >= PACE_S
        if paced and self._transit.age_s(published, now) < STALL_S:
            self._stalled_since = None
        self._heartbeat_at = now
