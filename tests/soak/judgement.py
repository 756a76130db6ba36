"""What a soak's records say: how much grew, how late verdicts were, which promises did not hold."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from records import Recorded
from schedule import QUIET
from trends import Slope, Trend, trend

P99_RATIO = 1.10
SILENCE_S = 3.0
"""So long the belts' verdicts may be away while something else is at fault, unless the whole process stands still."""
BEAT_S = 1.0
"""So long a client waits for a heartbeat before it stops the line."""
EVIDENCE_S = 40.0
"""A failing disk is tried again at least every half minute."""
SLOPES_FROM_S = 600.0
"""Less time than this behind the warm-up says nothing of growth."""
PER_DAY = {
    # name in the samples: what it is, unit, scale, growth a day that two hours cannot tell from nothing
    "rss_kb": ("resident memory", "MB", 1 / 1024, 8.0),
    "anon_kb": ("anonymous memory", "MB", 1 / 1024, 8.0),
    "fds": ("descriptors", "", 1.0, 1.0),
    "threads": ("threads", "", 1.0, 1.0),
    "children": ("child processes", "", 1.0, 1.0),
    "journal_b": ("journal with its log", "MB", 2**-20, 8.0),
    "evidence_b": ("evidence", "MB", 2**-20, 8.0),
}


@dataclass(frozen=True)
class Tenth:
    """Latencies of the belts' judged frames over a tenth of the time."""

    frames: int
    p50_ms: float
    p99_ms: float
    spread_ms: float
    """Standard deviation of the p99 of its tenths: what a repetition would differ by, more or less."""
    yardstick_ms: float
    """Median of the fixed work: how fast the machine was."""


def trends_of(recorded: Recorded) -> Iterable[Trend]:
    """One for each quantity; none while there is too little time behind the warm-up."""
    if recorded.ran_s - warm_s(recorded) >= SLOPES_FROM_S:
        for name, (what, unit, scale, bound) in PER_DAY.items():
            found = trend(what, unit, *recorded.series(name, scale), bound=bound, since_s=warm_s(recorded))
            if found is not None:
                yield found


def warm_s(recorded: Recorded) -> float:
    """When what stays has come: after the first tenth, and when every kind of fault has been there once.

    Until then whatever a fault needs for the first time is no growth.
    """
    kinds: set[str] = set()
    every = {fault["kind"] for fault in recorded.meta["planned"]}
    for fault in recorded.meta["planned"]:
        kinds.add(fault["kind"])
        if kinds == every:
            once = fault["at_s"] + fault["lasts_s"]
            return max(QUIET * recorded.length_s, once if once < recorded.ran_s / 2 else 0.0)
    return QUIET * recorded.length_s


def tenth(recorded: Recorded, from_: float, to: float) -> Tenth | None:
    """Of that part of the planned length; None while it has not come."""
    begin, end = from_ * recorded.length_s, to * recorded.length_s
    if recorded.ran_s < end - 5:
        return None
    ms = recorded.latency_ms[(recorded.latency_at >= begin) & (recorded.latency_at < end)]
    at = recorded.latency_at[(recorded.latency_at >= begin) & (recorded.latency_at < end)]
    if len(ms) < 100:
        return None
    edges = np.linspace(begin, end, 11)
    parts = [np.percentile(part, 99) for a, b in pairwise(edges) if len(part := ms[(at >= a) & (at < b)])]
    times, yardstick = recorded.series("yardstick_ms")
    return Tenth(
        frames=len(ms),
        p50_ms=float(np.percentile(ms, 50)),
        p99_ms=float(np.percentile(ms, 99)),
        spread_ms=float(np.std(parts)),
        yardstick_ms=float(np.median(yardstick[(times >= begin) & (times < end)])),
    )


def broken_promises(recorded: Recorded, trends: list[Trend], tenths: list[Tenth | None]) -> Iterable[str]:
    """One line for each promise that did not hold."""
    seen = Counter(one["promise"] for one in recorded.broken)
    for promise, count in seen.items():
        first = next(one["detail"] for one in recorded.broken if one["promise"] == promise)
        yield f"{promise}: broken {count} times, first: {first[:300]}"
    for one in trends:
        if not one.zero:
            yield f"{one.name} grows by {in_words(one.slope, one.unit)} a day"
    first, last = tenths
    if first and last and last.p99_ms > P99_RATIO * first.p99_ms:
        yield f"p99 of the last tenth is {last.p99_ms:.1f} ms, of the first {first.p99_ms:.1f}: more than a tenth above"
    beat_s = longest_beat_s(recorded)
    if beat_s > BEAT_S:
        yield f"a heartbeat at least every {BEAT_S:.0f} s while the process runs: {beat_s:.1f} s without"
    for line in recorded.log():
        if "exception" in line or line.get("event") == "text":
            yield f"the log has an exception: {json.dumps(line)[:300]}"
            break
    for fault in recorded.faults:
        if fault["group"] == "disk" and fault["recovered"] is not None:
            _, well_s = times_of(recorded, fault)
            if (well_s is None or well_s > EVIDENCE_S) and recorded.ran_s > fault["over"] + EVIDENCE_S:
                yield f"evidence is kept again {EVIDENCE_S:.0f} s after its disk is well: {well_s}, {fault['kind']}"
        silent_s = silence_s(recorded, fault)
        if fault["group"] != "process" and silent_s > SILENCE_S:
            yield f"the belts' verdicts were away for {silent_s:.1f} s: {fault['kind']} at {fault['began']:.0f} s"
    if recorded.end is None:
        return
    if recorded.end["exit_code"] != 0 or recorded.end["by_itself"]:
        yield f"the daemon ends cleanly when it is asked to: exit code {recorded.end['exit_code']}"
    if not recorded.end["complete"]:
        yield "every message arrives: not all came of which the last heartbeat spoke"
    if recorded.end["answers_without_trigger"]:
        yield f"one answer to each trigger: {recorded.end['answers_without_trigger']} answers too many"


def longest_beat_s(recorded: Recorded) -> float:
    """The longest time between two heartbeats, but for those in which the process was stopped."""
    stopped = [(f["began"] - 1, (f["over"] or f["began"]) + 3) for f in recorded.faults if f["group"] == "process"]
    return max(
        (s["longest_beat_s"] for s in recorded.samples if not any(a <= s["t"] <= b for a, b in stopped)), default=0.0
    )


def silence_s(recorded: Recorded, fault: dict) -> float:
    """The longest time without a judgement of the belts, from the fault's begin to a few seconds after its end."""
    begin, end = fault["began"], max(fault["over"] or 0.0, fault["recovered"] or 0.0) + 2
    first, last = np.searchsorted(recorded.latency_at, [begin, end])
    return float(np.diff(recorded.latency_at[max(0, first - 1) : last + 1]).max(initial=0.0))


def memory_kept_mb(recorded: Recorded, fault: dict) -> float | None:
    """By how much anonymous memory differs a few seconds after a fault from just before it: where growth comes from."""
    times, memory = recorded.series("anon_kb", 1 / 1024)
    before = memory[(times > fault["began"] - 6) & (times < fault["began"])]
    after = memory[(times > (fault["over"] or np.inf) + 3) & (times < (fault["over"] or np.inf) + 8)]
    return float(np.median(after) - np.median(before)) if len(before) and len(after) else None


def times_of(recorded: Recorded, fault: dict) -> tuple[float | None, float | None]:
    """Seconds until a fault was seen, and from its end until all was well; of a disk by the evidence's own counts."""
    if fault["group"] != "disk":
        seen, well = fault["detected"], fault["recovered"]
    else:
        seen = _rise(*recorded.metric("evidence_lost", "disk"), fault["began"])
        well = None if fault["over"] is None else _rise(*recorded.metric("evidence_kept"), fault["over"])
    return (
        None if seen is None else seen - fault["began"],
        None if well is None or fault["over"] is None else max(0.0, well - fault["over"]),
    )


def _rise(times: np.ndarray, counts: np.ndarray, since: float) -> float | None:
    """When a count was first seen above what it was at that time."""
    before = counts[times <= since][-1] if (times <= since).any() else 0.0
    above = (times > since) & (counts > before)
    return float(times[above][0]) if above.any() else None


def in_words(one: Slope, unit: str) -> str:
    return f"{one.value:+.2f} ± {one.error:.2f} {unit}".rstrip()
