"""The client for asyncio.

The same thread does the work as for `Client`, and not a socket of the event loop: a loop that is blocked by some
handler would neither hear the heartbeat nor notice its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self, TypeVar

from inspectd.client import commands
from inspectd.client.commands import ASK_S, CHANGE_S, Command
from inspectd.client.connection import CONTROL, VERDICTS, Keys
from inspectd.client.events import Event
from inspectd.client.inbox import Inbox
from inspectd.client.link import FailSafe, Link, Wiring
from inspectd.client.sync import TOPICS
from inspectd.client.watched import Watched
from inspectd.errors import InspectdError
from inspectd.verdict.control_schema import MAX_REPLAY, ReplayPage, TriggerAccepted

T = TypeVar("T")


class AsyncClient(Watched):
    """`Client` for asyncio: `async with`, `async for event in client`, and requests to await.

    Belongs to the event loop in which it was started. `fail_safe` is called from the client's own thread, even when
    the loop is blocked: it must not touch the loop but through `loop.call_soon_threadsafe`.
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
        self._loop: asyncio.AbstractEventLoop | None = None  # set by start(), before the thread runs
        self._arrived = asyncio.Event()
        self._inbox = Inbox(queue_size, self._notify)
        self._link = Link(wiring, self._inbox)

    async def start(self) -> None:
        """Connect, in the background, and begin to watch; `async with` does it.

        Raises:
            UsageError: an endpoint is none, its host has no address, or a key cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._link.start)  # a name may have to be looked up

    async def receive(self, timeout_s: float | None = None) -> Event | None:
        """The next event, or None when none came within `timeout_s` or the client was closed.

        Raises:
            InspectdError: the client's thread has died, which is a defect of ours.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    self._arrived.clear()
                    if (event := self._inbox.take(0)) is not None:
                        return event
                    if self._inbox.closed:
                        break
                    await self._arrived.wait()
        if self._link.failure is not None:
            raise InspectdError(f"the client ended by an error: {self._link.failure}") from self._link.failure
        return None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self.receive()
        if event is None:
            raise StopAsyncIteration
        return event

    # As `commands.Commands` says them.

    async def trigger(
        self, camera: str, part_id: str | None = None, *, deadline_ms: float, timeout_s: float = ASK_S
    ) -> TriggerAccepted:
        return await self._ask(commands.trigger(camera, part_id, deadline_ms, timeout_s))

    async def replay(
        self,
        topic: str,
        from_seq: int = 1,
        boot_id: str | None = None,
        *,
        limit: int = MAX_REPLAY,
        timeout_s: float = ASK_S,
    ) -> ReplayPage:
        return await self._ask(commands.replay(topic, from_seq, boot_id, limit, timeout_s))

    async def status(self, *, timeout_s: float = ASK_S) -> dict[str, Any]:
        return await self._ask(commands.status(timeout_s))

    async def recipe(self, name: str | None, *, timeout_s: float = CHANGE_S) -> dict[str, Any]:
        return await self._ask(commands.recipe(name, timeout_s))

    async def reload(self, *, timeout_s: float = CHANGE_S) -> dict[str, Any]:
        return await self._ask(commands.reload(timeout_s))

    async def challenge(self, *, timeout_s: float = CHANGE_S) -> dict[str, Any]:
        return await self._ask(commands.challenge(timeout_s))

    async def _ask(self, command: Command[T]) -> T:
        return command.result(await asyncio.wrap_future(self._link.ask(command)))

    async def close(self) -> None:
        """Disconnect; `fail_safe` hears "closed". May be called twice."""
        await asyncio.to_thread(self._link.stop)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _notify(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                self._loop.call_soon_threadsafe(self._arrived.set)
