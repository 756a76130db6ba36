"""Progress for people: bars on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Tell(Protocol):
    """Called with a stage's name, how much of it is done, and a few words on how it goes."""

    def __call__(self, stage: str, done: int, total: int, message: str = "") -> None: ...


@contextmanager
def progress_bars(console: Console) -> Iterator[Tell]:
    """A bar with its ETA for each stage that is told of, in that order; without a terminal a line as each ends.

    Nothing is shown before the first step, so that a refusal stays one line.
    """
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[message]}"),
    )
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(stage: str, done: int, total: int, message: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, message=message)
            progress.update(tasks[stage], completed=done, total=total, message=message)

        yield tell


class _Lines:
    """A line when a stage ends, and when its message changes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started: dict[str, float] = {}
        self._message = ""

    def __call__(self, stage: str, done: int, total: int, message: str = "") -> None:
        started = self._started.setdefault(stage, time.monotonic())
        if done == total or (message and message != self._message):
            self._message = message
            words = "  ".join(filter(None, [f"{stage} {done}/{total}", f"{time.monotonic() - started:.0f} s", message]))
            self._console.print(words, highlight=False, markup=False)
