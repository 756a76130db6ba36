"""The client for programs that wait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self, TypeVar

from inspectd.client.commands import Command, Commands, ControlTimeout
from inspectd.client.connection import CONTROL, VERDICTS, Keys
from inspectd.client.events import Event
from inspectd.client.inbox import Inbox
from inspectd.client.link import FailSafe, Link, Wiring
from inspectd.client.watched import Watched
from inspectd.errors import InspectdError

T = TypeVar("T")

TOPICS = ("verdict/", "part/", "status/")


class Client(Watched, Commands):
    """Listens to a line and asks it things. A context manager, and iterable over events until it is closed.

    `topics` are prefixes. `fail_safe` is called with a reason when the line must not run, and with None when it may
    again: from the client's own thread, within a second of the last heartbeat heard, whatever the rest of the
    program does. At the start it is called with "connecting", at the end with "closed". It should return at once.

    `replay` False never asks for what was missed: a hole is `Lost` at once, and no message waits for an older one.
    At most `queue_size` events wait for the program; what comes then is asked for again once there is room.

    All methods may be called from any thread, `fail_safe` included, but that one must not wait for a reply.
    """

    def __init__(
        self,
        verdicts: str = VERDICTS,
        control: str = CONTROL,
        *,
        topics: Sequence[str] = TOPICS,
        keys: Keys | None = None,
        fail_safe: FailSafe | None = None,
        replay: bool = True,
        queue_size: int = 10_000,
    ) -> None:
        wiring = Wiring(verdicts, control, tuple(topics), keys, fail_safe, replay, queue_size)
        self._inbox = Inbox(queue_size)
        self._link = Link(wiring, self._inbox)

    def start(self) -> None:
        """Connect, in the background, and begin to watch; `with` does it.

        Raises:
            UsageError: an endpoint is none, its host has no address, or a key cannot be used.
        """
        self._link.start()

    def receive(self, timeout_s: float | None = None) -> Event | None:
        """The next event, or None when none came within `timeout_s` or the client was closed.

        Raises:
            InspectdError: the client's thread has died, which is a defect of ours.
        """
        event = self._inbox.take(timeout_s)
        if event is None and self._link.failure is not None:
            raise InspectdError(f"the client ended by an error: {self._link.failure}") from self._link.failure
        return event

    def __iter__(self) -> Iterator[Event]:
        while (event := self.receive()) is not None:
            yield event

    def _ask(self, command: Command[T]) -> T:
        answer = self._link.ask(command)
        try:
            reply = answer.result(command.timeout_s + 1.0)  # the thread ends it by itself; this is if it cannot
        except TimeoutError:
            raise ControlTimeout(f"no answer within {command.timeout_s:g} s") from None
        return command.result(reply)

    def close(self) -> None:
        """Disconnect; `fail_safe` hears "closed". May be called from anywhere, twice."""
        self._link.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
