"""How long one picture takes on this machine, in the daemon's own engine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np

from inspectd.config import EngineConfig
from inspectd.engine.base import Slot
from inspectd.engine.select import make_engine
from inspectd.frame import U8
from inspectd.model.bundle import Bundle
from inspectd.workshop.evaluation.figures import Latency

WARM_UP = 30
_LEAST, _MOST = 100, 1000  # pictures that are timed


def measure_latency(
    name: str,
    bundle: Bundle,
    config: EngineConfig,
    pixels: U8,
    enough_s: float,
    on_progress: Callable[[int, int], None],
) -> Latency:
    """Time pictures one after the other, from the filled slot to the logits.

    Args:
        name: what the copy is called in the report.
        pixels: uint8 [N, height, width, 3]; taken in turns.
        enough_s: after so long no more than the least number of pictures is timed.
    """
    with closing(make_engine(bundle, config.model_copy(update={"max_batch_size": 1}))) as engine:
        slot = Slot(0, engine.allocate(1)[0])
        engine.warm_up()
        times_s: list[float] = []
        deadline = None
        while len(times_s) < WARM_UP + _MOST:
            slot.pixels[:] = pixels[len(times_s) % len(pixels)]
            started = time.perf_counter()
            engine.submit([slot], lambda slots: None)
            engine.collect()
            ended = time.perf_counter()
            times_s.append(ended - started)
            if len(times_s) == WARM_UP:
                deadline = ended + enough_s
            if deadline is not None and ended > deadline and len(times_s) >= WARM_UP + _LEAST:
                break
        runs = f"{engine.info.name} {engine.info.precision} on {engine.info.device}"
    measured_ms = np.array(times_s[WARM_UP:]) * 1000
    on_progress(1, 1)
    p50, p99 = np.percentile(measured_ms, [50, 99])
    return Latency(
        copy_name=name,
        runs=runs,
        pictures=len(measured_ms),
        warm_up=WARM_UP,
        threads=config.threads or len(os.sched_getaffinity(0)),
        p50_ms=round(float(p50), 3),
        p99_ms=round(float(p99), 3),
        max_ms=round(float(measured_ms.max()), 3),
    )
