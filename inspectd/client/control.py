"""The control socket alone: for who asks now and then, and does not listen to the stream."""

from __future__ import annotations

import math
import time
from typing import Self, TypeVar

import zmq

from inspectd.client.commands import Command, Commands, ControlTimeout, Reply
from inspectd.client.connection import CONTROL, Keys, requester
from inspectd.client.exchange import Exchange

T = TypeVar("T")


class Control(Commands):
    """Asks the daemon. Used by one thread; a context manager."""

    def __init__(self, endpoint: str = CONTROL, *, keys: Keys | None = None) -> None:
        """Connect, in the background.

        Raises:
            UsageError: the endpoint is none, its host has no address, or a key cannot be used.
        """
        self._context = zmq.Context()
        try:
            self._exchange = Exchange(requester(self._context, endpoint, keys), endpoint)
        except BaseException:
            self._context.term()
            raise

    def _ask(self, command: Command[T]) -> T:
        replies: list[Reply | ControlTimeout] = []
        self._exchange.ask(command.request, command.timeout_s, time.monotonic(), replies.append)
        while not replies:
            left_s = max(0.0, (self._exchange.expires or 0.0) - time.monotonic())
            self._exchange.socket.poll(math.ceil(left_s * 1000), zmq.POLLIN | zmq.POLLOUT * self._exchange.unsent)
            self._exchange.turn(time.monotonic())
        if isinstance(replies[0], ControlTimeout):
            raise replies[0]
        return command.result(replies[0])

    def close(self) -> None:
        """Disconnect. May be called twice."""
        self._exchange.socket.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
