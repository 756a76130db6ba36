"""Curves as SVG for a page: no display, no script, colours of the page (light, dark, or on paper)."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from inspectd.workshop.evaluation.figures import (
    CalibrationFigures,
    ClassFigures,
    Curve,
    Curves,
    OperatingPoint,
    Share,
    TradeOff,
)

# Colours that stand for the variables of the page; no other is ever drawn.
INK, MUTED, GRID, BLUE, RED, AMBER, GREEN = (f"#0a0b{n:02x}" for n in range(1, 8))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", BLUE: "blue", RED: "red", AMBER: "amber", GREEN: "green"}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "inspectd",
    "text.parse_math": False,  # class names are text
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}
_SIZE = (5.2, 4.0)  # inches; a figure fills a phone's width, two of them a desktop's
_NAMED_CURVES = 5


def curve_plot(
    name: str, bad: Curve, per_class: Mapping[str, Curves], kind: str, labels: tuple[str, str], area: str
) -> Markup:
    """A ROC or precision-recall curve of bad against good, with each class against the rest behind it.

    Args:
        name: an id of the figure, unique in the page.
        kind: the attribute of `Curves`, "roc" or "precision_recall".
        labels: of x and y.
        area: what the area under the curve is called.
    """
    with rc_context(_STYLE):
        figure, axes = _axes(*labels)
        found = {cls: getattr(both, kind) for cls, both in per_class.items()}
        drawn = {cls: curve for cls, curve in found.items() if curve.x}
        worst = sorted(drawn, key=lambda cls: drawn[cls].area or 0)[:_NAMED_CURVES]
        for cls, curve in drawn.items():
            style = _LINES[worst.index(cls)] if cls in worst else "-"
            label = f"{cls}  {curve.area:.3f}" if cls in worst else None
            _step(axes, curve, kind, color=MUTED, linewidth=1.0, linestyle=style, label=label)
        if bad.x:
            _step(axes, bad, kind, color=BLUE, linewidth=2.4, label=f"bad parts  {bad.area:.3f}")
        if bad.x or drawn:
            title = f"{area}, the lowest {_NAMED_CURVES} classes" if len(drawn) > _NAMED_CURVES else area
            figure.legend(title=title, loc="outside lower left", alignment="left", ncols=2)
        _unit_square(axes)
        return _svg(figure, name)


_LINES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))


def trade_off_plot(
    name: str,
    points: Sequence[TradeOff],
    bad: int,
    good: int,
    own: Share,
    escaped: Share,
    point: OperatingPoint,
    copy: str,
) -> Markup:
    """Bad parts that are stopped against good parts that are, as `pass_min` moves.

    Args:
        bad, good: pictures of each.
        own, escaped: false rejects and escapes at the bundle's own thresholds.
        copy: whose figures these are.
    """
    with rc_context(_STYLE):
        figure, axes = _axes("good pictures that do not pass, %", "bad pictures that do not pass, %")
        rejected = [100 * p.false_rejects / good for p in points]
        stopped = [100 * (1 - p.escapes / bad) for p in points]
        axes.plot(rejected, stopped, color=BLUE, drawstyle="steps-post")
        if own.share is not None and escaped.share is not None:
            axes.plot(100 * own.share, 100 * (1 - escaped.share), "o", color=RED, ms=8, label="the bundle's thresholds")
        if (
            (chosen := point.here.get(copy))
            and chosen.escapes.share is not None
            and chosen.false_rejects.share is not None
        ):
            at = (100 * chosen.false_rejects.share, 100 * (1 - chosen.escapes.share))
            axes.plot(*at, "D", color=AMBER, ms=8, mfc="none", mew=2, label="chosen on validation")
        axes.set_xlim(-2, 102)
        low = min([*stopped, 90.0])
        axes.set_ylim(low - 0.04 * (100 - low) - 0.5, 100 + 0.04 * (100 - low) + 0.5)
        figure.legend(loc="outside lower left", ncols=2)
        return _svg(figure, name)


def reliability_plot(name: str, figures: CalibrationFigures, title: str) -> Markup:
    """Share of right ones against score, with 95 % intervals; below it how many pictures there are."""
    with rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
        above.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--")
        scores = [b.score for b in figures.bins]
        right = [b.right.share or 0.0 for b in figures.bins]
        spread = _whiskers([b.right for b in figures.bins])
        above.errorbar(scores, right, yerr=spread, fmt="o", color=BLUE, ms=5, elinewidth=1.2, capsize=0)
        above.set_ylabel("share that is right")
        above.set_ylim(-0.03, 1.03)
        above.set_title(f"{title}: ECE {figures.ece:.3f}")
        widths = [b.high - b.low for b in figures.bins]
        below.bar([b.low for b in figures.bins], [b.pictures for b in figures.bins], widths, align="edge", color=MUTED)
        below.set_ylabel("pictures")
        below.set_xlabel("score of the top class")
        below.set_xlim(0, 1)
        below.grid(visible=False, axis="x")
        return _svg(figure, name)


def share_plot(name: str, classes: Sequence[ClassFigures]) -> Markup:
    """Recall and precision of each class with 95 % intervals, one row per class."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(_SIZE[0], 1.0 + 0.34 * len(classes)), layout="constrained")
        axes = figure.subplots()
        rows = np.arange(len(classes))
        for attribute, colour, marker, shift in (("recall", BLUE, "o", -0.14), ("precision", AMBER, "D", 0.14)):
            shares = [getattr(c, attribute) for c in classes]
            known = [i for i, s in enumerate(shares) if s.share is not None]
            values = [shares[i].share for i in known]
            spread = _whiskers([shares[i] for i in known])
            axes.errorbar(
                values,
                rows[known] + shift,
                xerr=spread,
                fmt=marker,
                color=colour,
                ms=5,
                elinewidth=1.4,
                label=attribute,
            )
        axes.set_yticks(rows, [c.name for c in classes])
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside lower right", ncols=2)
        return _svg(figure, name)


def _axes(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _unit_square(axes: Any) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)


def _step(axes: Any, curve: Curve, kind: str, **style: Any) -> None:
    # Precision between two thresholds is that of the lower one; a straight line would promise more.
    axes.plot(curve.x, curve.y, drawstyle="default" if kind == "roc" else "steps-post", **style)


def _whiskers(shares: Sequence[Share]) -> list[list[float]]:
    below = [max(0.0, (s.share or 0.0) - (s.low or 0.0)) for s in shares]
    above = [max(0.0, (s.high or 0.0) - (s.share or 0.0)) for s in shares]
    return [below, above]


def _svg(figure: Figure, name: str) -> Markup:
    """The figure as an <svg> element: its ids begin with `name`, its colours are variables of the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", text, count=1)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return Markup(text)  # noqa: S704 - matplotlib escapes what it writes as text
