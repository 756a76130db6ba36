"""Progress for people: bars on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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


class Display(Tell, Protocol):
    """Where progress is shown, and lines that stay."""

    def print(self, text: str) -> None: ...


@contextmanager
def progress_bars(console: Console) -> Iterator[Display]:
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
        yield _Bars(progress)


class _Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int, message: str = "") -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, message=message)
        self._progress.update(self._tasks[stage], completed=done, total=total, message=message)

    def print(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)


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

    def print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class EpochTable:
    """One line per epoch, under a heading that is written once; the best one so far is marked."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._names: tuple[str, ...] = ()

    def __call__(self, row: dict[str, float]) -> None:
        names = tuple(name for name in row if name != "best")
        if names != self._names:
            self._names = names
            self._write("  ".join(f"{name:>{self._width(name)}}" for name in names))
        cells = (f"{self._text(name, row[name]):>{self._width(name)}}" for name in names)
        self._write("  ".join(cells) + (" *" if row.get("best") else ""))

    @staticmethod
    def _width(name: str) -> int:
        return max(len(name), 8 if name != "epoch" else 5)

    @staticmethod
    def _text(name: str, value: float) -> str:
        match name:
            case "epoch":
                return str(int(value))
            case "rate":
                return f"{value:.1e}"
            case _ if abs(value) >= 100:
                return f"{value:.0f}"
            case _:
                return f"{value:.4f}"
