"""The demo's course: pictures, model, configuration, daemon, verdicts beside the truth, a clean end."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from inspectd.capture.conveyor import Line
from inspectd.client import Client, Lost, Received
from inspectd.config import ControlConfig, HttpConfig, PublishConfig
from inspectd.demo.score import Score
from inspectd.demo.view import make_view, summary
from inspectd.errors import BundleError, InspectdError, UsageError
from inspectd.model.bundle import load_bundle
from inspectd.model.synth import is_complete, write_dataset
from inspectd.progress import progress_bars
from inspectd.source_spec import parse_source
from inspectd.verdict.schema import Verdict

PER_CLASS = 250
SEED = 1
SIZE = (240, 240)  # of a drawn part; more than the network sees
SOURCE = "conveyor:?seed=20"
MARKER = "demo.json"
"""Says that a directory is the demo's, so that it may throw away what it finds half made there."""

FIRST_VERDICT_S = 60.0
STOP_S = 10.0


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
    endpoint, control, metrics = _write_config(place)
    score = Score(Line.from_spec(parse_source(SOURCE)))
    with _stop_on_signals() as stop, _daemon(place, console) as process:
        console.print(f"verdicts  {endpoint}      (try: inspectd tail {endpoint})", highlight=False)
        console.print(f"metrics   {metrics}", highlight=False)
        console.print(f"log       {place.log}      Ctrl-C stops\n", highlight=False)
        took_s = _watch(process, endpoint, control, score, seconds, stop, console)
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
    if is_complete(place.parts, PER_CLASS, SEED, SIZE):
        return
    shutil.rmtree(place.bundle, ignore_errors=True)  # trained on other pictures
    with progress_bars(console) as tell:
        write_dataset(
            place.parts, PER_CLASS, SEED, SIZE, lambda done, total: tell("drawing parts", done, total), overwrite=True
        )


def _make_bundle(place: Place, console: Console) -> None:
    try:
        bundle = load_bundle(place.bundle)
    except BundleError:
        shutil.rmtree(place.bundle, ignore_errors=True)  # half made, or damaged
        from inspectd.workshop.options import TrainOptions  # torch, only where there is no bundle yet
        from inspectd.workshop.train import train

        # From random weights, because the demo has no network; small pictures, because it has a minute. By
        # steps and not by time, so that a slower machine waits longer for the same model.
        options = TrainOptions(weights="none", size=96, epochs=9, batch_size=32, seed=SEED)
        with progress_bars(console) as tell:
            made = train(place.parts, place.bundle, options, tell, restart=True)
        assert made is not None, "one process trains"
        bundle = made
    console.print(f"model     {place.bundle}  ({bundle.short_hash})", highlight=False)


def _write_config(place: Place) -> tuple[str, str, str]:
    """Write the daemon's configuration; returns the endpoints of its verdicts and control, and its metrics' URL."""
    defaults = (PublishConfig().bind, ControlConfig().bind, HttpConfig().bind)
    with ExitStack() as held:  # until the last is known, so that all are different
        publish, control, http = (f"127.0.0.1:{_free_port(default, held)}" for default in defaults)
    roi = Line.from_spec(parse_source(SOURCE)).roi
    place.config.write_text(
        f"""# Written by `inspectd demo`, anew each time. config.example.toml explains every key.
[model]
bundle = "{place.bundle.name}"

[[cameras]]
name = "line1"
source = "{SOURCE}"

[[cameras.rois]]
name = "station"
box = [{roi.x}, {roi.y}, {roi.width}, {roi.height}]

[publish]
bind = "tcp://{publish}"

[control]
bind = "tcp://{control}"

[http]
bind = "{http}"
""",
        encoding="utf-8",
    )
    return f"tcp://{publish}", f"tcp://{control}", f"http://{http}/metrics"


def _free_port(default: str, held: ExitStack) -> int:
    """The port of the default address if nobody has it, else one that the system says is free; ours while `held` is."""
    for port in (int(default.rpartition(":")[2]), 0):
        probe = held.enter_context(socket.socket())
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port just left is free
        with suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise InspectdError("no free port on 127.0.0.1")


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C, SIGTERM and the end of the terminal set; a second Ctrl-C ends the demo at once."""
    stop = threading.Event()

    def ask(number: int, _frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _daemon(place: Place, console: Console) -> Iterator[subprocess.Popen[bytes]]:
    """The real daemon, as a user runs it; stopped by SIGTERM. Its end is judged: anything but 0 is an error.

    It has a process group of its own, so that Ctrl-C reaches it once, through us.
    """
    with place.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "inspectd", "run", "-c", str(place.config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    try:
        yield process
        early = process.poll()
        if early is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                raise InspectdError(f"the daemon did not stop within {STOP_S:.0f} s; see {place.log}") from None
        if early is not None or process.returncode != 0:
            for line in _last_lines(place.log):
                console.print(line, style="dim", highlight=False, markup=False)
            when = "ended by itself" if early is not None else "was stopped, but ended"
            raise InspectdError(f"the daemon {when} with exit code {process.returncode}; see {place.log}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _last_lines(log: Path) -> list[str]:
    with log.open(encoding="utf-8", errors="replace") as lines:
        return [line.rstrip() for line in deque(lines, maxlen=8)]


def _watch(
    process: subprocess.Popen[bytes],
    endpoint: str,
    control: str,
    score: Score,
    seconds: float | None,
    stop: threading.Event,
    console: Console,
) -> float:
    """Follow the stream until the time is up, somebody stops us, or the daemon ends; seconds it took."""
    started = time.monotonic()
    # Without replay: the view shows what came in time, and says what did not.
    client = Client(endpoint, control, topics=["verdict/"], replay=False)
    with client, make_view(console, score) as view:
        while not stop.is_set() and process.poll() is None:
            event = client.receive(0.1)
            now = time.monotonic()
            if isinstance(event, Received) and isinstance(event.message, Verdict):
                score.add(event.message, now)
            elif isinstance(event, Lost):
                score.lost += event.count
            if score.started is not None:
                view.refresh()
                if seconds is not None and now - score.started >= seconds:
                    break
            elif now - started > FIRST_VERDICT_S:
                raise InspectdError(f"no verdict within {FIRST_VERDICT_S:.0f} s from {endpoint}; see the daemon's log")
    return time.monotonic() - score.started if score.started is not None else 0.0
