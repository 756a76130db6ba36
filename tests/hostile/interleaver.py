"""Threads of which only one runs at a time, and the dice say which one goes on at every lock.

A model checker's view of real threads: put `lock` and `condition` in the place of `threading.Lock` and
`threading.Condition` of the module under test, `start` some work, and `run` it to its end. What no schedule of a real
machine shows in a year of tests (a wake-up that nobody gets, a deadlock, a slot with two owners), a few hundred
seeds do.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

MOST_STEPS = 50_000
END_S = 10.0


class DeadlockError(AssertionError):
    """Every thread that is left waits for another."""


class _GiveUp(BaseException):
    """The test has failed: every thread ends where it is."""


class Interleaver:
    """`waits` counts, by thread and condition, how often somebody had to wait. A timeout may fire at any step."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.waits: Counter[tuple[str, Any]] = Counter()
        self.on_timeout: Callable[[Any], None] = lambda condition: None
        self._tasks: list[_Task] = []
        self._running: _Task | None = None
        self._turn = threading.Semaphore(0)  # the scheduler's
        self._failure: BaseException | None = None

    def lock(self) -> _Lock:
        return _Lock(self)

    def condition(self, lock: _Lock) -> _Condition:
        return _Condition(self, lock)

    def start(self, name: str, work: Callable[[], None]) -> None:
        self._tasks.append(_Task(self, name, work))

    def run(self) -> None:
        """Until all have ended.

        Raises:
            DeadlockError: nobody can go on. Else whatever the first of them raised.
        """
        try:
            for _ in range(MOST_STEPS):
                self._tasks = [task for task in self._tasks if task.alive]
                if not self._tasks or self._failure is not None:
                    break
                able = [task for task in self._tasks if task.able]
                if not able:
                    raise DeadlockError(", ".join(f"{task.name} waits for {task.waits_for}" for task in self._tasks))
                self._let(self.dice.choice(able))
            else:
                raise AssertionError(f"no end after {MOST_STEPS} steps")
        finally:
            self._failure = self._failure or (_GiveUp() if self._tasks else None)
            for task in self._tasks:
                task.end()
        if self._failure is not None:
            raise self._failure

    def pause(self) -> None:
        """Whoever calls may be overtaken here."""
        if self._running is not None:
            self._running.hand_over()

    def _let(self, task: _Task) -> None:
        self._running = task
        task.go()
        assert self._turn.acquire(timeout=END_S), f"{task.name} blocks outside of its locks"
        self._running = None


class _Task:
    """One thread. `waits_for` is the lock or the condition that holds it up, None while it could go on."""

    def __init__(self, scheduler: Interleaver, name: str, work: Callable[[], None]) -> None:
        self.name = name
        self.waits_for: _Lock | _Condition | None = None
        self.timed = False
        self._scheduler = scheduler
        self._work = work
        self._go = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.alive = True
        self._thread.start()

    @property
    def able(self) -> bool:
        if isinstance(self.waits_for, _Lock):
            return self.waits_for.owner is None
        return self.waits_for is None or self.timed

    def go(self) -> None:
        self._go.release()

    def hand_over(self) -> None:
        self._scheduler._turn.release()
        self._go.acquire()
        if self._scheduler._failure is not None:
            raise _GiveUp

    def end(self) -> None:
        self.go()
        self._thread.join(END_S)

    def _run(self) -> None:
        self._go.acquire()
        try:
            if self._scheduler._failure is None:
                self._work()
        except _GiveUp:
            pass
        except BaseException as err:
            self._scheduler._failure = self._scheduler._failure or err
        self.alive = False
        self._scheduler._turn.release()


class _Lock:
    def __init__(self, scheduler: Interleaver) -> None:
        self._scheduler = scheduler
        self.owner: Any = None

    def acquire(self) -> bool:
        self._scheduler.pause()
        task = self._scheduler._running
        while self.owner is not None:
            assert task is not None, "the test itself would wait"
            assert self.owner is not task, "locked twice by one thread"
            task.waits_for = self
            task.hand_over()
        if task is not None:
            task.waits_for = None
        self.owner = task or "the test"
        return True

    def release(self) -> None:
        assert self.owner is (self._scheduler._running or "the test"), "released by another thread"
        self.owner = None
        if self._scheduler._failure is None:
            self._scheduler.pause()

    def locked(self) -> bool:
        return self.owner is not None

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        if self._scheduler._failure is None:
            self.release()


class _Condition:
    def __init__(self, scheduler: Interleaver, lock: _Lock) -> None:
        self._scheduler = scheduler
        self._lock = lock
        self._waiting: list[_Task] = []

    def wait(self, timeout: float | None = None) -> bool:
        task = self._scheduler._running
        assert task is not None, "the test itself would wait"
        assert self._lock.owner is task, "waits without the lock"
        self._scheduler.waits[task.name, self] += 1
        task.waits_for, task.timed = self, timeout is not None
        self._waiting.append(task)
        self._lock.owner = None
        task.hand_over()
        told = task not in self._waiting
        if not told:  # its time is over
            self._waiting.remove(task)
            self._scheduler.on_timeout(self)
        task.waits_for = None
        self._lock.acquire()
        return told

    def notify(self, n: int = 1) -> None:
        assert self._lock.owner is (self._scheduler._running or "the test"), "notifies without the lock"
        for task in self._waiting[:n]:
            self._waiting.remove(task)
            task.waits_for = None

    def notify_all(self) -> None:
        self.notify(len(self._waiting))
