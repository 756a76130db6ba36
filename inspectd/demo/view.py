"""What the demo shows: a live table on a terminal, one line a second elsewhere, a summary at the end."""

from __future__ import annotations

import time
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from inspectd.demo.score import ANSWERS, Passage, Score, expected
from inspectd.model.synth import KINDS


class View(Protocol):
    """Entered once, refreshed as often as the caller likes; it shows no more than is readable."""

    def refresh(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


def make_view(console: Console, score: Score) -> View:
    return LiveView(console, score) if console.is_terminal else PlainView(console, score)


class LiveView:
    def __init__(self, console: Console, score: Score) -> None:
        self._score = score
        self._live = Live(console=console, auto_refresh=False)
        self._next = 0.0

    def refresh(self) -> None:
        if (now := time.monotonic()) >= self._next:
            self._next = now + 0.25
            self._live.update(self._picture(), refresh=True)

    def _picture(self) -> Group:
        return Group(_parts(self._score), Text(), matrix(self._score), Text(), _totals(self._score))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.update(self._picture(), refresh=True)
        self._live.stop()


class PlainView:
    """Also for a log file: one summary a second."""

    def __init__(self, console: Console, score: Score) -> None:
        self._console = console
        self._score = score
        self._next = time.monotonic() + 1

    def refresh(self) -> None:
        if (now := time.monotonic()) >= self._next:
            self._next = now + 1
            last = self._score.passages[-1] if self._score.passages else None
            newest = f"  last part: {_in_words(last)}" if last is not None else ""
            self._console.print(_totals(self._score).plain + newest, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def matrix(score: Score) -> Table:
    """Truth against answer, in frames; what is right is green, a wrong PASS red."""
    table = Table(title="frames: what was there, and what was said", title_justify="left", title_style="bold")
    table.add_column("truth")
    for given in ANSWERS:
        table.add_column(given, justify="right")
    for truth in KINDS:
        cells = []
        for given in ANSWERS:
            count = score.answers[truth, given]
            right, wrong_pass = given == expected(truth), given == "pass" and truth != "good"
            style = "dim" if not count else "green" if right else "bold white on red" if wrong_pass else "yellow"
            cells.append(Text(str(count) if count else "·", style))
        table.add_row(truth, *cells)
    return table


def _parts(score: Score) -> Table:
    table = Table(title="the last parts", title_justify="left", title_style="bold")
    for name in ("truth", "verdicts", "label", "score", "latency"):
        table.add_column(name, justify="right" if name in ("score", "latency") else "left")
    for passage in score.passages:
        total = sum(passage.answers.values())
        style = "green" if passage.right == total else "bold red" if _passed_wrongly(passage) else "yellow"
        last = passage.last
        sure = "" if last is None or last.score is None else f"{last.score:.3f}"
        latency = "" if last is None else f"{last.latency_ms.total:.1f} ms"
        label = "" if last is None else last.label or last.reason or ""
        table.add_row(passage.truth, Text(_counts(passage), style), label, sure, latency)
    return table


def _totals(score: Score) -> Text:
    p50, p99 = score.latency_ms(0.5, 0.99)
    text = Text(f"{score.fps():5.1f} fps   latency p50 {p50:.1f} ms, p99 {p99:.1f} ms   ")
    text.append(f"right {100 * score.agreement:.1f} % of {score.compared}   ")
    text.append(f"wrong PASS {score.wrong_pass}", "bold red" if score.wrong_pass else "green")
    text.append(f"   missed defects {score.missed}", "yellow" if score.missed else "")
    if score.lost:
        text.append(f"   lost verdicts {score.lost}", "yellow")
    return text


def summary(score: Score, seconds: float) -> Group:
    """The end of the demo: the whole score, and what the figures mean."""
    rate = score.seen / seconds if seconds > 0 else 0.0
    p50, p99 = score.latency_ms(0.5, 0.99)
    lines = [
        f"{score.seen} verdicts in {seconds:.0f} s: {rate:.1f} fps, latency p50 {p50:.1f} ms, p99 {p99:.1f} ms",
        f"right: {score.right} of {score.compared} frames with a known truth ({100 * score.agreement:.1f} %)",
        f"wrong PASS: {score.wrong_pass} frames; defects not failed: {score.missed} frames",
        f"verdicts lost on the way: {score.lost}",
    ]
    return Group(matrix(score), *lines)


def _in_words(passage: Passage) -> str:
    return f"{passage.truth}: {_counts(passage)}"


def _counts(passage: Passage) -> str:
    return ", ".join(f"{passage.answers[given]} {given}" for given in ANSWERS if passage.answers[given])


def _passed_wrongly(passage: Passage) -> bool:
    return passage.truth != "good" and passage.answers["pass"] > 0
