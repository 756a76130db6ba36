"""The figures, as data: `BenchResult.model_dump_json()` is the machine-readable report."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from pydantic import BaseModel, ConfigDict

from inspectd.bench.measure import Sample


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(_Frozen):
    """One thing that was measured; medians over the repeats."""

    what: str
    precision: str | None
    frames: int  # in each repeat
    fps: float
    fps_range: tuple[float, float]  # slowest and fastest repeat
    cpu_ms: float  # user and system, per frame
    times_plain: float | None = None
    times_limit: float | None = None


class Latency(_Frozen):
    """Live: from the arrival of a frame's data to its verdict at the subscriber."""

    frames: int
    judged: int  # the others came too late or were displaced
    p50_ms: float
    p99_ms: float
    max_ms: float
    stages_ms: dict[str, float]  # median of each


class TriggerLatency(_Frozen):
    """Live on command: from sending a trigger to its verdict at the subscriber."""

    triggers: int
    judged: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    interval_ms: float  # between two frames: so long the wait for the next one is at most
    engine_ms: float  # median


class BenchResult(_Frozen):
    machine: str
    clip: str
    bundle: str
    warm_up: int
    repeats: int
    rows: tuple[Row, ...]
    latency: Latency | None
    triggers: TriggerLatency | None
    latency_precision: str | None
    skipped: tuple[str, ...]

    def row(self, what: str, precision: str | None = None) -> Row | None:
        """The row of that name, None where it was skipped."""
        return next((row for row in self.rows if (row.what, row.precision) == (what, precision)), None)


def make_row(what: str, precision: str | None, samples: Sequence[Sample]) -> Row:
    """Medians of the repeats of one measurement."""
    rates = [sample.frames / sample.wall_s for sample in samples]
    return Row(
        what=what,
        precision=precision,
        frames=samples[0].frames,
        fps=median(rates),
        fps_range=(min(rates), max(rates)),
        cpu_ms=median(1000 * sample.cpu_s / sample.frames for sample in samples),
    )
