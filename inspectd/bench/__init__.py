"""`inspectd bench`: what this machine does, part by part and end to end, with its comparisons in one run.

    clip.py        a generated H.264 recording, as an industrial camera would send it
    parts.py       decode alone, crop alone, engine alone
    loops.py       the loop that tutorials teach, and the limit: two threads written by hand
    end_to_end.py  the daemon itself, subscribed over ZeroMQ: throughput, and latency live
    report.py      the figures as a table

Every measurement is repeated, in turns (A B C A B C): a shared machine drifts, and so it drifts for all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from inspectd.bench.clip import make_clip
from inspectd.bench.end_to_end import daemon_run, live_latency, trigger_latency
from inspectd.bench.loops import plain_loop, two_threads
from inspectd.bench.measure import Clip, Sample
from inspectd.bench.parts import crop_only, decode_only, engine_only
from inspectd.bench.report import print_report
from inspectd.bench.result import BenchResult, Row, make_row
from inspectd.config import EngineConfig
from inspectd.engine.select import make_engine
from inspectd.errors import BundleError, ConfigError, UsageError
from inspectd.frame import Box
from inspectd.machine import machine
from inspectd.model.bundle import Bundle, load_bundle

__all__ = ["BenchOptions", "BenchResult", "run_bench"]

Measurements = dict[tuple[str, str | None], Callable[[], Sample]]
"""(what, precision) -> one repeat of it."""

_ENGINES = (
    EngineConfig(device="cpu", precision="f32"),
    EngineConfig(device="cpu", precision="bf16"),
    EngineConfig(device="cpu", precision="int8"),
    EngineConfig(device="cuda"),
)
"""From slow to fast; which of them this machine and the bundle have is found out."""


JOURNALED = "daemon, journal and replays"
DEFAULT_BOX = Box(560, 140, 800, 800)


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure. The clip is `warm_up + frames` long; only `frames` of it count."""

    bundle: Path | None = None  # without one, random weights, which needs torch
    frames: int = 600
    warm_up: int = 64
    repeats: int = 3
    width: int = 1920
    height: int = 1080
    box: Box = DEFAULT_BOX
    fps: int = 30
    live_frames: int = 300  # how many the latency is measured with; 0 leaves it out

    def __post_init__(self) -> None:
        if self.frames < 16 or self.warm_up < 8 or self.repeats < 1:
            raise UsageError("bench: needs at least 16 frames, 8 of warm-up and 1 repeat")
        if self.width % 2 or self.height % 2 or not self.box.fits(self.width, self.height):
            raise UsageError(f"bench: box {self.box} does not fit {self.width}x{self.height}, or that is odd")


def run_bench(options: BenchOptions, console: Console) -> BenchResult:
    """Measure, print the table to `console`, and return the figures.

    Raises:
        UsageError: the bundle cannot be used, or there is none and torch to make one is not installed.
        InspectdError: the daemon ended early or a verdict was missing: its figures would mean nothing.
    """
    with tempfile.TemporaryDirectory(prefix="inspectd-bench-") as name, console.status("encoding the clip") as status:
        folder = Path(name)
        clip = Clip(folder / "clip.mp4", options.box, options.warm_up, options.frames)
        make_clip(clip.path, clip.total, options.width, options.height, options.fps)
        status.update("loading the model")
        bundle = load_bundle(options.bundle) if options.bundle else _random_bundle(folder / "bundle")
        engines, skipped = _engines(bundle)
        measurements = _measurements(clip, bundle, engines)
        samples: dict[tuple[str, str | None], list[Sample]] = {key: [] for key in measurements}
        for turn in range(options.repeats):
            for key, measure in list(measurements.items()):
                status.update(f"{turn + 1} of {options.repeats}: {' '.join(filter(None, key))}")
                try:
                    samples[key].append(measure())
                except ImportError as err:
                    skipped.append(f"{key[0]}: {err.name} is not installed")
                    del measurements[key], samples[key]
        latency = triggers = None
        precision, fastest = next(reversed(engines.items()))
        if options.live_frames:
            status.update("live")
            live = replace(clip, path=folder / "live.mp4", frames=options.live_frames)
            make_clip(live.path, live.total, options.width, options.height, options.fps)
            latency = live_latency(live, bundle, fastest)
            status.update("on command")
            size = (options.width, options.height)
            triggers = trigger_latency(live, bundle, fastest, size, options.fps, options.live_frames)
    result = BenchResult(
        machine=machine(),
        clip=f"{options.width}x{options.height} H.264, box {options.box}",
        bundle=bundle.short_hash,
        warm_up=options.warm_up,
        repeats=options.repeats,
        rows=_compared([make_row(*key, values) for key, values in samples.items()]),
        latency=latency,
        triggers=triggers,
        latency_precision=precision if latency else None,
        skipped=tuple(skipped),
    )
    print_report(result, console)
    return result


def _measurements(clip: Clip, bundle: Bundle, engines: dict[str, EngineConfig]) -> Measurements:
    """Everything that is measured, in the order of the table."""
    spec = bundle.manifest.preprocess
    found: Measurements = {
        ("decode", None): partial(decode_only, clip),
        ("crop", None): partial(crop_only, clip, spec),
    }
    for precision, config in engines.items():
        found["engine", precision] = partial(engine_only, clip, bundle, config)
    found["plain loop", "f32"] = partial(plain_loop, clip, bundle)
    # End to end, f32 would only be of interest where there is nothing better.
    serving = {p: c for p, c in engines.items() if p != "f32"} or engines
    for precision, config in serving.items():
        if config.device == "cpu":
            found["two threads", precision] = partial(two_threads, clip, bundle, precision)
        found["daemon", precision] = partial(daemon_run, clip, bundle, config)
    found[JOURNALED, precision] = partial(daemon_run, clip, bundle, config, journal=True)
    return found


def _engines(bundle: Bundle) -> tuple[dict[str, EngineConfig], list[str]]:
    """The engines that can be had, by precision, and why the others cannot.

    Raises:
        UsageError: there is none.
    """
    engines, skipped = {}, []
    for config in _ENGINES:
        try:
            with closing(make_engine(bundle, config)) as engine:
                engines[engine.info.precision] = config
        except (ConfigError, BundleError) as err:
            skipped.append(f"engine {config.device} {config.precision}: {err}")
    if not engines:
        raise UsageError(f"bench: no engine can run the bundle: {skipped[0]}")
    return engines, skipped


def _compared(rows: list[Row]) -> tuple[Row, ...]:
    """The rows with their ratios to the plain loop, and to the two threads of the same precision."""
    plain = next((row.fps for row in rows if row.what == "plain loop"), None)
    limits = {row.precision: row.fps for row in rows if row.what == "two threads"}

    def compared(row: Row) -> Row:
        if row.what not in ("two threads", "daemon", JOURNALED):
            return row
        limit = limits.get(row.precision)
        return row.model_copy(
            update={
                "times_plain": row.fps / plain if plain else None,
                "times_limit": row.fps / limit if limit else None,
            }
        )

    return tuple(compared(row) for row in rows)


def _random_bundle(path: Path) -> Bundle:
    try:
        from inspectd.model.export import random_bundle
    except ImportError as err:
        raise UsageError(f"bench: a bundle is made with {err.name}, not installed; give one with --bundle") from err
    return random_bundle(path)
