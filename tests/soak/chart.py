"""The picture of a soak: what was sampled over time, and the faults above it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
from records import Recorded
from schedule import QUIET

GROUPS = {"camera": "#c44e52", "consumer": "#4c72b0", "process": "#222222", "disk": "#8172b3", "line": "#55a868"}
BIN_S = 20.0


def draw(recorded: Recorded, path: Path) -> None:
    """Write the picture as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(
        {
            "font.size": 8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.titlesize": 9,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
        }
    ):
        figure, axes = plt.subplots(
            7, 1, figsize=(12, 14), sharex=True, height_ratios=[0.8, 2, 1.4, 1.6, 1.2, 1.2, 1.4], layout="constrained"
        )
        unit = 60.0
        _faults(axes[0], recorded, unit)
        _latency(axes[1], recorded, unit)
        _rates(axes[2], recorded, unit)
        _memory(axes[3], recorded, unit)
        _counts(axes[4], recorded, unit)
        _disk(axes[5], recorded, unit)
        _reasons(axes[6], recorded, unit)
        for axis in axes:
            for edge in (QUIET, 1 - QUIET):
                axis.axvline(edge * recorded.length_s / unit, color="#999999", linewidth=0.8, linestyle=":")
        axes[-1].set_xlabel("minutes")
        axes[-1].set_xlim(0, max(recorded.ran_s, 1) / unit)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _faults(axis, recorded: Recorded, unit: float) -> None:
    for row, (group, colour) in enumerate(GROUPS.items()):
        spans = [
            (f["began"] / unit, max(0.05, ((f["over"] or recorded.ran_s) - f["began"]) / unit))
            for f in recorded.faults
            if f["group"] == group
        ]
        axis.broken_barh(spans, (row - 0.4, 0.8), color=colour)
    axis.set_yticks(range(len(GROUPS)), list(GROUPS))
    axis.invert_yaxis()
    axis.grid(visible=False)
    axis.set_title(f"{len(recorded.faults)} faults")


def _latency(axis, recorded: Recorded, unit: float) -> None:
    bin_s = min(BIN_S, max(2.0, recorded.length_s / 200))
    number = (recorded.latency_at / bin_s).astype(int)
    edges = np.searchsorted(number, np.arange(number.max(initial=-1) + 2))
    times, p50, p99 = [], [], []
    for index, (begin, end) in enumerate(pairwise(edges)):
        if end - begin >= 20:
            times.append((index + 0.5) * bin_s / unit)
            p50.append(np.percentile(recorded.latency_ms[begin:end], 50))
            p99.append(np.percentile(recorded.latency_ms[begin:end], 99))
    axis.plot(times, p99, color="#c44e52", linewidth=0.9, label="p99")
    axis.plot(times, p50, color="#4c72b0", linewidth=0.9, label="p50")
    axis.set_yscale("log")
    _plain(axis)
    axis.set_title(f"latency of the belts, frame's arrival to verdict, ms (bins of {bin_s:.0f} s)")
    _legend(axis)


def _rates(axis, recorded: Recorded, unit: float) -> None:
    for name, colour in (("belt1", "#4c72b0"), ("belt2", "#64b5cd"), ("street", "#c44e52")):
        times, captured = recorded.metric("captured", name)
        if len(times) > 10:
            step = max(1, len(times) // 400)
            times, captured = times[::step], captured[::step]
            axis.plot(times[1:] / unit, np.diff(captured) / np.diff(times), color=colour, linewidth=0.8, label=name)
    axis.set_ylim(bottom=0)
    axis.set_title("frames captured a second")
    _legend(axis)


def _memory(axis, recorded: Recorded, unit: float) -> None:
    for name, label, colour in (
        ("rss_kb", "resident", "#4c72b0"),
        ("pss_kb", "proportional", "#55a868"),
        ("anon_kb", "anonymous", "#c44e52"),
    ):
        times, values = recorded.series(name, 1 / 1024)
        axis.plot(times / unit, values, color=colour, linewidth=0.9, label=label)
    axis.set_ylim(bottom=0)
    axis.set_title("memory, MB")
    _legend(axis)


def _counts(axis, recorded: Recorded, unit: float) -> None:
    for name, label, colour in (
        ("fds", "descriptors", "#4c72b0"),
        ("threads", "threads", "#c44e52"),
        ("children", "children", "#222222"),
    ):
        times, values = recorded.series(name)
        axis.plot(times / unit, values, color=colour, linewidth=0.9, label=label)
    axis.set_yscale("symlog", linthresh=10)
    _plain(axis)
    axis.set_title("descriptors, threads, children")
    _legend(axis)


def _disk(axis, recorded: Recorded, unit: float) -> None:
    for name, label, colour in (("journal_b", "journal", "#4c72b0"), ("evidence_b", "evidence", "#8172b3")):
        times, values = recorded.series(name, 2**-20)
        axis.plot(times / unit, values, color=colour, linewidth=0.9, label=label)
    axis.set_ylim(bottom=0)
    axis.set_title("on disk, MB")
    _legend(axis)


def _reasons(axis, recorded: Recorded, unit: float) -> None:
    """no_result by reason, per second, over a few seconds each."""
    if not (reasons := sorted({r for s in recorded.samples if s.get("metrics") for r in s["metrics"]["no_result"]})):
        return
    for reason in reasons:
        times, counts = recorded.metric("no_result", reason)
        if reason in ("none", "empty") or len(times) < 10 or counts[-1] == counts[0]:
            continue
        step = max(1, len(times) // 400)
        times, counts = times[::step], counts[::step]
        axis.plot(times[1:] / unit, np.diff(counts) / np.diff(times), linewidth=0.8, label=reason)
    axis.set_title("no_result a second, by reason")
    _legend(axis)


def _plain(axis) -> None:
    """Numbers as people write them on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter

    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else ""))


def _legend(axis) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
