"""The figures as a table for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from inspectd.bench.result import BenchResult, Row


def print_report(result: BenchResult, console: Console) -> None:
    console.print(f"[bold]{result.machine}[/bold]", highlight=False)
    console.print(f"{result.clip}; bundle {result.bundle}", highlight=False)
    console.print(
        f"median of {result.repeats}, taken in turns, after {result.warm_up} frames of warm-up; CPU is user + system",
        highlight=False,
    )
    table = Table("", "frames", "fps", "slowest to fastest", "ms/frame", "CPU-ms/frame", "× plain", "× limit")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in result.rows:
        table.add_row(
            _name(row),
            str(row.frames),
            f"{row.fps:.0f}" if row.fps >= 10 else f"{row.fps:.1f}",
            f"{row.fps_range[0]:.0f} to {row.fps_range[1]:.0f}",
            f"{1000 / row.fps:.2f}",
            f"{row.cpu_ms:.2f}",
            "" if row.times_plain is None else f"{row.times_plain:.2f}",
            "" if row.times_limit is None else f"{row.times_limit:.2f}",
        )
    console.print(table)
    for line in _shares(result):
        console.print(line, highlight=False)
    if (latency := result.latency) is not None:
        stages = ", ".join(f"{name} {ms:.1f}" for name, ms in latency.stages_ms.items())
        console.print(
            f"live, {result.latency_precision}: p50 {latency.p50_ms:.1f} ms, p99 {latency.p99_ms:.1f} ms, "
            f"max {latency.max_ms:.1f} ms from arrival to the subscriber; {latency.judged} of {latency.frames} "
            f"frames judged (medians: {stages} ms)",
            highlight=False,
        )
    if (triggers := result.triggers) is not None:
        console.print(
            f"on command, {result.latency_precision}: p50 {triggers.p50_ms:.1f} ms, p99 {triggers.p99_ms:.1f} ms, "
            f"max {triggers.max_ms:.1f} ms from a trigger at any moment to its verdict; {triggers.judged} of "
            f"{triggers.triggers} judged (an uncompressed frame every {triggers.interval_ms:.1f} ms, "
            f"engine {triggers.engine_ms:.1f} ms)",
            highlight=False,
        )
    for reason in result.skipped:
        console.print(f"skipped {reason}", highlight=False, style="yellow")


def _name(row: Row) -> str:
    return row.what if row.precision is None else f"{row.what} {row.precision}"


def _shares(result: BenchResult) -> list[str]:
    """Where the daemon's CPU time goes, by the parts measured alone."""
    decode, crop = result.row("decode"), result.row("crop")
    lines = []
    for row in result.rows:
        engine = result.row("engine", row.precision)
        if row.what == "daemon" and decode and crop and engine and row.cpu_ms:
            parts = {"decode": decode.cpu_ms, "crop": crop.cpu_ms, "engine": engine.cpu_ms}
            parts["all else"] = row.cpu_ms - sum(parts.values())
            shares = ", ".join(f"{name} {ms / row.cpu_ms:.0%}" for name, ms in parts.items())
            lines.append(f"{_name(row)}, its CPU time by the parts alone: {shares}")
    return lines
