"""The outcome of an evaluation on a terminal: a few lines, and where the page is."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inspectd.workshop.evaluation.figures import Report
from inspectd.workshop.evaluation.sections import answer
from inspectd.workshop.evaluation.words import count, percent
from inspectd.workshop.evaluation.written import REPORT_HTML


def print_outcome(report: Report, output: Path, console: Console) -> None:
    """What speaks against the figures, the figures of each copy, the answer, and the path of the page."""
    for concern in report.concerns:
        console.print(escape(concern.text), style="red" if concern.grave else "yellow", highlight=False, soft_wrap=True)
    table = Table(
        "copy", "accuracy", "escapes", "false rejects", "caught", "uncertain", "p50 ms", box=None, padding=(0, 1, 0, 0)
    )
    for column in table.columns[1:]:
        column.justify = "right"
    p50 = {one.copy_name: f"{one.p50_ms:.1f}" for one in report.latency}
    for copy in report.copies:
        v = copy.verdicts
        name = f"{copy.name} *" if copy.name == report.deployed else copy.name
        figures = map(count, (v.escapes, v.false_rejects, v.caught, v.uncertain))
        accuracy = "" if copy.accuracy.share is None else percent(copy.accuracy.share)
        table.add_row(name, accuracy, *figures, p50.get(copy.name, ""))
    console.print(table, highlight=False)
    console.print(f"* would run here. {answer(report)}", highlight=False, markup=False, soft_wrap=True)
    console.print(_point(report), highlight=False, markup=False, soft_wrap=True)
    console.print(str(output / REPORT_HTML), highlight=False, markup=False, soft_wrap=True)


def _point(report: Report) -> str:
    """The operating point in a sentence; where it does not hold here, that too."""
    point = report.operating_point
    if point.pass_min is None:
        return f"pass_min for at most {100 * point.max_escapes:g}\u00a0% escapes {point.problem}."
    here = point.here[report.deployed]
    words = (
        f"pass_min = {point.pass_min:.6g} for at most {100 * point.max_escapes:g}\u00a0% escapes "
        f"(chosen on {point.chosen_on}): here {count(here.escapes)} pass, "
        f"and {count(here.false_rejects)} good ones do not."
    )
    if here.escapes.share is not None and here.escapes.share > point.max_escapes:
        words += " That is more than was asked for."
    return words
