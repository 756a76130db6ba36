"""Commands on their way to the one thread that carries them out, one after the other: each is answered, and once."""

from __future__ import annotations

from queue import Empty, Full, Queue
from threading import Lock

from pydantic import BaseModel

from inspectd.verdict.control_schema import ControlError, Request
from inspectd.verdict.publisher import Answer


class CommandQueue:
    """`put` is for any thread, once it is open; `take` and `answer` are for the one; `close` for any, twice as well."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: Queue[tuple[Request, Answer]] = Queue(capacity)  # full means busy
        self._lock = Lock()
        self._accepting = False  # guarded by _lock, like _under_way
        self._under_way: Answer | None = None

    def open(self) -> None:
        """Take commands from now on."""
        with self._lock:
            self._accepting = True

    def put(self, request: Request, answer: Answer) -> None:
        """Have it done.

        Raises:
            ControlError: `busy`: too many wait; `stopping`.
        """
        with self._lock:
            if not self._accepting:
                raise stopping()
            try:
                self._waiting.put_nowait((request, answer))
            except Full:
                raise ControlError("busy", f"{self._capacity} commands wait already") from None

    def take(self, timeout_s: float) -> Request | None:
        """The next one, which is under way until it is answered; None when there is none in time."""
        try:
            request, answer = self._waiting.get(timeout=timeout_s)
        except Empty:
            return None
        with self._lock:
            self._under_way = answer
        return request

    def answer(self, result: BaseModel | ControlError) -> None:
        """Answer the one that is under way, if nobody has meanwhile."""
        with self._lock:
            answer, self._under_way = self._under_way, None
        if answer is not None:
            answer(result)

    def close(self) -> None:
        """Refuse what waits, and all that comes."""
        with self._lock:
            self._accepting = False  # what is in the queue now is all there will ever be
        while True:
            try:
                _, answer = self._waiting.get_nowait()
            except Empty:
                return
            answer(stopping())


def stopping() -> ControlError:
    return ControlError("stopping", "the daemon is being stopped")
