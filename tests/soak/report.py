"""What a soak has shown: report.md for people, report.json for machines, report.png to look at."""

import json
import statistics
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

from chart import draw
from judgement import (
    SLOPES_FROM_S,
    Tenth,
    broken_promises,
    in_words,
    longest_beat_s,
    memory_kept_mb,
    silence_s,
    tenth,
    times_of,
    trends_of,
    warm_s,
)
from records import Recorded
from schedule import QUIET
from torments import BY_NAME
from trends import CONFIDENCE, Slope, Trend


def write_report(folder: Path) -> list[str]:
    """Write the report of what lies in the folder; returns one line for each broken promise."""
    recorded = Recorded(folder)
    trends = list(trends_of(recorded))
    tenths = [tenth(recorded, from_, to) for from_, to in ((0.0, QUIET), (1 - QUIET, 1.0))]
    broken = list(broken_promises(recorded, trends, tenths))
    draw(recorded, folder / "report.png")
    summary = {
        "meta": recorded.meta | {"planned": len(recorded.meta["planned"])},
        "ran_s": recorded.ran_s,
        "end": recorded.end,
        "trends": [asdict(one) | {"zero": one.zero} for one in trends],
        "tenths": [None if one is None else asdict(one) for one in tenths],
        "faults": recorded.faults,
        "broken": broken,
    }
    (folder / "report.json").write_text(json.dumps(summary, indent=1))
    (folder / "report.md").write_text(_page(recorded, trends, tenths, broken))
    return broken


def _page(recorded: Recorded, trends: list[Trend], tenths: list[Tenth | None], broken: list[str]) -> str:
    meta, end = recorded.meta, recorded.end
    hours = recorded.ran_s / 3600
    load = f"{meta['load']:.0%} of what was measured before" if meta["load"] else "as asked for"
    under_way = "" if end else f", of {recorded.length_s / 3600:.2f} planned: not at its end"
    lines = [
        "# Soak",
        "",
        f"{hours:.2f} h{under_way}; seed {meta['seed']}; {meta['machine']}, on processors {meta['cpus']}.",
        f"Two cameras at {meta['belt_fps']} fps each ({load}), an RTSP camera at 25 fps, a triggered one.",
        "ResNet18 in INT8, journal and evidence on.",
        "",
        "![Samples over time](report.png)",
        "",
        "## Promises",
        "",
        *(["Every promise held."] if not broken else [f"- **broken**: {line}" for line in broken]),
        "",
        *_counts(recorded),
        "",
        *_latency_table(tenths),
        "",
        *_trend_table(recorded, trends),
        "",
        *_fault_table(recorded),
        "",
        *_log_table(recorded),
    ]
    return "\n".join(lines) + "\n"


def _counts(recorded: Recorded) -> list[str]:
    last = next((s["metrics"] for s in reversed(recorded.samples) if s.get("metrics")), None)
    if last is None:
        return []
    scrapes = sum(bool(s.get("metrics")) for s in recorded.samples)
    seen: Counter[str] = Counter()
    for sample in recorded.samples:
        seen.update(sample["verdicts"])
    kinds: Counter[str] = Counter()
    for key, count in seen.items():
        kinds[key.split("/")[1]] += count
    reasons = ", ".join(f"{name} {count:,.0f}" for name, count in sorted(last["no_result"].items()) if name != "none")
    lines = [
        "| | |",
        "|---|---|",
        f"| frames captured | {sum(last['captured'].values()):,.0f} |",
        f"| verdicts seen and held against the truth | {', '.join(f'{n:,} {k}' for k, n in sorted(kinds.items()))} |",
        f"| no_result by reason | {reasons or 'none'} |",
        f"| dropped by reason | {', '.join(f'{k} {v:,.0f}' for k, v in last['dropped'].items()) or 'none'} |",
        f"| scrapes with balanced books | {scrapes:,} |",
        f"| longest time between two heartbeats, while the process runs | {longest_beat_s(recorded):.2f} s |",
        f"| reconnects of cameras | {last['reconnects']:.0f} |",
        f"| evidence | {last['evidence_kept']:,.0f} pictures, lost {json.dumps(last['evidence_lost'])} |",
    ]
    if (end := recorded.end) is not None:
        lines += [
            f"| wrong pass, stale pass | {end['wrong_pass']}, {end['stale_pass']} |",
            f"| a pass was behind the freshest picture by at most | {end.get('latest_pass_s', 0):.2f} s |",
            f"| other wrong judgements | {end['wrong_fail']} |",
            f"| messages; missing, twice | {end['messages']:,}; {end['gaps']}, {end['repeats']} |",
            f"| triggers; refused; without exactly one answer | {' ; '.join(map(str, end['triggers'].values()))} |",
            f"| subscribers that came and went, pages of replay | {end['visitors']:,}, {end['replayed_pages']:,} |",
            f"| journal | {end['journal']} |",
            f"| end | exit code {end['exit_code']} {end['stop_s']:.1f} s after SIGTERM |",
        ]
    return lines


def _latency_table(tenths: list[Tenth | None]) -> list[str]:
    lines = [
        "## Latency of the belts, from the arrival of a frame to its verdict",
        "",
        "| | frames | p50 | p99 | p99 of its tenths varies by | fixed work took |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in zip(("first tenth", "last tenth"), tenths, strict=True):
        if one is not None:
            lines.append(
                f"| {name} | {one.frames:,} | {one.p50_ms:.1f} ms | {one.p99_ms:.1f} ms "
                f"| ± {one.spread_ms:.1f} ms | {one.yardstick_ms:.2f} ms |"
            )
    first, last = tenths
    if first and last:
        lines += ["", f"p99 of the last tenth against the first: {100 * (last.p99_ms / first.p99_ms - 1):+.1f} %."]
    return lines


def _trend_table(recorded: Recorded, trends: list[Trend]) -> list[str]:
    if not trends:
        return [f"No slopes: fewer than {SLOPES_FROM_S / 60:.0f} minutes behind the warm-up say nothing of growth."]
    return [
        "## Growth",
        "",
        f"Least squares over the medians of blocks, from minute {warm_s(recorded) / 60:.0f} on: a tenth has passed,",
        f"and every fault has been there once if there was time. Interval at {CONFIDENCE:.0%}. Zero: the interval of",
        "the whole or of the second half holds zero, or the slope is below what so short a time can tell from nothing.",
        "",
        "| | first block | last block | largest | a day ± standard error | interval | second half | told from | zero |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {t.name} | {t.first:.1f} {t.unit} | {t.last:.1f} {t.unit} | {t.largest:.1f} {t.unit} "
            f"| {in_words(t.slope, t.unit)} | {_interval(t.slope)} | {_interval(t.late)} | {t.bound:g} "
            f"| {'yes' if t.zero else '**no**'} |"
            for t in trends
        ),
    ]


def _interval(one: Slope) -> str:
    return f"{one.low:+.1f} … {one.high:+.1f}"


def _fault_table(recorded: Recorded) -> list[str]:
    by_kind: defaultdict[str, list[dict]] = defaultdict(list)
    for fault in recorded.faults:
        by_kind[fault["kind"]].append(fault)
    lines = [
        f"## {len(recorded.faults)} faults",
        "",
        "Seconds, median and longest. Recovered: from its end to the next judgement of that camera, or to the next",
        "picture kept where it was the disk.",
        "",
        "| fault | times | seen after | recovered after | belts away at most | memory it left, first and median, MB |",
        "|---|---|---|---|---|---|",
    ]
    for kind in BY_NAME:
        if faults := by_kind[kind]:
            times = [times_of(recorded, f) for f in faults]
            seen = [after for after, _ in times if after is not None]
            over = [after for _, after in times if after is not None]
            silent = max(silence_s(recorded, f) for f in faults)
            kept = [mb for f in faults if (mb := memory_kept_mb(recorded, f)) is not None]
            left = f"{kept[0]:+.1f}, {statistics.median(kept):+.1f}" if kept else ""
            lines.append(f"| {kind} | {len(faults)} | {_median(seen)} | {_median(over)} | {silent:.2f} | {left} |")
    return lines


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}, {max(values):.2f}" if values else ""


def _log_table(recorded: Recorded) -> list[str]:
    events = Counter((line.get("level", ""), line.get("event", "")) for line in recorded.log())
    return [
        "## The daemon's log",
        "",
        "| level | event | lines |",
        "|---|---|---|",
        *(f"| {level} | {str(event)[:80]} | {count} |" for (level, event), count in sorted(events.items())),
    ]
