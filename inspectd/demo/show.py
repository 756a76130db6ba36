"""The demo's course: pictures, model, configuration, daemon, verdicts beside the truth, a clean end."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from inspectd.capture.conveyor import Line
from inspectd.config import HttpConfig, PublishConfig, parse_source
from inspectd.demo.score import Score
from inspectd.demo.view import make_view, summary
from inspectd.errors import BundleError, InspectdError, UsageError
from inspectd.model.bundle import load_bundle
from inspectd.model.synth import is_complete, write_dataset
from inspectd.verdict.schema import Verdict
from inspectd.verdict.tail import Subscriber

PER_CLASS = 200
SEED = 1
SOURCE = "conveyor:?seed=20"
MARKER = "demo.json"
"""Says that a directory is the demo's, so that it may throw away what it finds half made there."""

FIRST_VERDICT_S = 60.0
STOP_S = 10.0

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the demo keeps what it made, for the next time."""

    root: Path

    @property
    def parts(self) -> Path:
        return self.root / "parts"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def log(self) -> Path:
        return self.root / "daemon.log"


def run_demo(directory: Path, seconds: float | None, console: Console) -> int:
    """Make what is missing, run the daemon on the generated camera for `seconds` or until Ctrl-C, show the score.

    Returns 0 after a clean end.

    Raises:
        UsageError: `directory` holds other things.
        InspectdError: training failed, or the daemon did not start, died, or did not stop.
    """
    place = _take(directory)
    _make_parts(place, console)
    _make_bundle(place, console)
    endpoint, metrics = _write_config(place)
    score = Score(Line.from_spec(parse_source(SOURCE)))
    with _stop_on_signals() as stop, _daemon(place, console) as process:
        console.print(f"verdicts  {endpoint}      (try: inspectd tail {endpoint})", highlight=False)
        console.print(f"metrics   {metrics}", highlight=False)
        console.print(f"log       {place.log}      Ctrl-C stops\n", highlight=False)
        took_s = _watch(process, endpoint, score, seconds, stop, console)
    console.print(summary(score, took_s), highlight=False)
    return 0


def _take(directory: Path) -> Place:
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory}: is a file; give another --dir")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()) and not (directory / MARKER).exists():
            raise UsageError(f"{directory}: holds other things; give a --dir that is empty, or new")
        (directory / MARKER).write_text('{"made_by": "inspectd demo"}\n', encoding="utf-8")
    except OSError as err:
        raise UsageError(f"{directory}: cannot be written: {err.strerror}; give another --dir") from err
    return Place(directory.resolve())


def _make_parts(place: Place, console: Console) -> None:
    if is_complete(place.parts, PER_CLASS, SEED):
        return
    shutil.rmtree(place.bundle, ignore_errors=True)  # trained on other pictures
    with _bar(console, "drawing parts") as advance:
        write_dataset(place.parts, PER_CLASS, SEED, progress=advance, overwrite=True)


def _make_bundle(place: Place, console: Console) -> None:
    try:
        bundle = load_bundle(place.bundle)
    except BundleError:
        shutil.rmtree(place.bundle, ignore_errors=True)  # half made, or damaged
        bundle = _train(place, console)
    console.print(f"model     {place.bundle}  ({bundle.short_hash})", highlight=False)
