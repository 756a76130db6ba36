"""The report of a classifier as a page: for the engineer who made it, and for whoever signs that it may serve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from inspectd.workshop.evaluation import detail
from inspectd.workshop.evaluation.figures import (
    VERDICTS,
    ErrorKind,
    Report,
    Verdict,
    VerdictFigures,
    WorstPicture,
)
from inspectd.workshop.evaluation.plots import trade_off_plot
from inspectd.workshop.evaluation.report import (
    Cell,
    Code,
    Gallery,
    Mood,
    Page,
    Part,
    Picture,
    Plot,
    Plots,
    Section,
    Table,
    Text,
    Tile,
)
from inspectd.workshop.evaluation.words import SPLIT_WORDS, above, count, count_percent, interval, percent
from inspectd.workshop.evaluation.worst import Exhibit

_KINDS: dict[ErrorKind, tuple[str, Mood]] = {
    "escape": ("Escape: it must not pass, and passes", "bad"),
    "false_reject": ("Good, and does not pass", "unsure"),
    "missed": ("Not recognised, but does not pass", "unsure"),
    "wrong_class": ("Right verdict, wrong class", "plain"),
    "least_sure": ("Right, but least sure", "plain"),
}
_VERDICTS: dict[Verdict, str] = {
    "pass": "pass",
    "fail": "fail",
    "uncertain": "uncertain",
    "empty": "no part",
    "engine_error": "engine error",
}


def classifier_page(report: Report, exhibits: Sequence[Exhibit]) -> Page:
    """The page of a report; `exhibits` are the pictures of `report.worst`, in that order."""
    figures = report.headline.verdicts
    name = report.bundle.path.rstrip("/").rpartition("/")[2] or report.bundle.path
    return Page(
        title=f"Evaluation of {name}",
        subtitle=(
            f"Bundle {report.bundle.sha256[:12]} on {report.data.pictures} pictures of {report.data.folder} "
            f"({SPLIT_WORDS[report.data.split]}), {report.created_at[:16].replace('T', ' ')} UTC"
        ),
        answer=answer(report),
        tiles=tuple(_tiles(figures)),
        warnings=tuple((concern.text, "bad" if concern.grave else "unsure") for concern in report.concerns),
        sections=tuple(section for section in _sections(report, exhibits) if section.parts),
        footer=(
            f"inspectd {report.versions['inspectd']}. Intervals are 95 %: Wilson for shares, Clopper-Pearson "
            "(exact, one-sided) where something stays below a bound. All figures are in report.json."
        ),
    )


def answer(report: Report) -> str:
    """What the verdicts mean for the line, in two sentences."""
    figures = report.headline.verdicts
    escapes, rejects = figures.escapes, figures.false_rejects
    if figures.escapes_below is None:
        bad = "There are no bad pictures, so nothing is known about escapes."
    elif escapes.count == escapes.of:
        bad = f"{escapes.count} of {escapes.of} bad pictures passed: all of them."
    else:
        bad = (
            f"{escapes.count} of {escapes.of} bad pictures passed; "
            f"with 95\u00a0% confidence fewer than {above(figures.escapes_below)} would."
        )
    if rejects.share is None:
        return f"{bad} There are no good pictures, so nothing is known about false rejects."
    return f"{bad} {rejects.count} of {rejects.of} good pictures did not pass ({interval(rejects)})."


def _tiles(figures: VerdictFigures) -> Iterator[Tile]:
    escapes, rejects, caught, uncertain = figures.escapes, figures.false_rejects, figures.caught, figures.uncertain
    yield Tile(
        count(escapes),
        "bad pictures passed (escapes)",
        _bound(figures),
        "plain" if not escapes.of else "bad" if escapes.count else "good",
    )
    yield Tile(
        count(rejects),
        "good pictures did not pass (false rejects)",
        "cannot be computed: no good pictures" if rejects.share is None else interval(rejects),
        "unsure" if rejects.count else "plain",
    )
    yield Tile(
        count(caught),
        "defects failed (caught)",
        "cannot be computed: no defects" if caught.share is None else interval(caught),
    )
    yield Tile(count(uncertain), "pictures held back as uncertain", "no verdict: good, bad or empty, nothing was sure")


def _bound(figures: VerdictFigures) -> str:
    if figures.escapes_below is None:
        return "cannot be computed: no bad pictures"
    if figures.escapes.count == figures.escapes.of:
        return "all of them"
    return f"95\u00a0% confidence: fewer than {above(figures.escapes_below)}"


def _sections(report: Report, exhibits: Sequence[Exhibit]) -> Iterator[Section]:
    yield Section("verdicts", "Verdicts", tuple(_verdicts(report)))
    yield Section("operating-point", "Operating point", tuple(_operating_point(report)))
    yield Section("errors", "Pictures to look at", tuple(_gallery(report, exhibits)))
    yield Section("classes", "Classes", tuple(detail.classes(report)))
    yield Section("curves", "Curves", tuple(detail.curves(report)))
    yield Section("calibration", "Calibration", tuple(detail.calibration(report)))
    yield Section("copies", "Copies of the model", tuple(detail.copies(report)))
    yield Section("latency", "Latency", tuple(detail.latency(report)))
    yield Section("ground", "What this rests on", tuple(detail.ground(report)))


def _verdicts(report: Report) -> Iterator[Part]:
    copy = report.headline
    roles = {c.name: c.role for c in copy.classes}
    shown = [v for v in VERDICTS if v != "engine_error" or any(row[v] for row in copy.verdicts.by_class.values())]
    rows = []
    for name, counts in copy.verdicts.by_class.items():
        of = sum(counts.values())
        cells = [_verdict_cell(roles[name], verdict, counts[verdict], of) for verdict in shown]
        rows.append([name, roles[name], _fails_at(name, roles[name], copy.verdicts), str(of), *cells])
    yield Text(
        f"As the daemon would decide on this machine, with the {copy.name} copy and the thresholds of the bundle: "
        "a part fails when any defect reaches its threshold, and else passes when the ok classes together reach "
        f"{copy.verdicts.thresholds.pass_min:.6g}. A red number is parts that must not pass and do."
    )
    yield Table(("true class", "role", "fails at", "pictures", *(_VERDICTS[v] for v in shown)), rows, words=2)


def _verdict_cell(role: str, verdict: Verdict, count: int, of: int) -> Cell | str:
    if not count:
        return "0"
    wanted = {"ok": "pass", "defect": "fail", "empty": "empty"}[role]
    escape = verdict == "pass" and role != "ok"
    mood: Mood = "bad" if escape else "good" if verdict == wanted else "unsure"
    return Cell(str(count), max(0.35 if escape else 0.08, count / of), mood)


def _operating_point(report: Report) -> Iterator[Part]:
    point, own = report.operating_point, report.headline.verdicts
    asked = f"At most {100 * point.max_escapes:g}\u00a0% of the bad pictures may pass."
    if point.problem is not None:
        yield Text(f"{asked} A threshold for that {point.problem}.")
    elif point.validation is not None and point.pass_min is not None:
        there = point.validation
        yield Text(
            f"{asked} Chosen on {point.chosen_on}, for the copy that is worst off: pass_min = {point.pass_min:.6g}. "
            f"There {there.escapes.count} of {there.escapes.of} bad pictures pass, and {there.false_rejects.count} of "
            f"{there.false_rejects.of} good ones do not. Below, what it does to the pictures of this report."
        )
    rows = [["the bundle's own", f"{own.thresholds.pass_min:.6g}", *_point_cells(own)]]
    chosen = point.here.get(report.deployed)
    if chosen is not None:
        rows.append(["chosen", f"{chosen.thresholds.pass_min:.6g}", *_point_cells(chosen)])
    yield Table(("thresholds", "pass_min", "escapes", "fewer than", "false rejects", "caught", "uncertain"), rows)
    if chosen is not None and chosen.escapes.share is not None and chosen.escapes.share > point.max_escapes:
        yield Text(
            f"Here more pass than was asked for: {chosen.escapes.count} of {chosen.escapes.of}. "
            "The validation pictures did not show what these show."
        )
    if chosen is not None:
        yield Text("To run it so, whatever the bundle says, put into the configuration:")
        yield Code(f"[decision]\npass_min = {chosen.thresholds.pass_min:.6f}")
    bad, good = own.escapes.of, own.false_rejects.of
    if not bad or not good:
        yield Text(f"The trade-off cannot be computed: no {'good' if bad else 'bad'} pictures.")
        return
    plot = trade_off_plot("trade", report.trade_off, bad, good, own.false_rejects, own.escapes, point, report.deployed)
    caption = (
        f"What another pass_min would do to these pictures ({report.deployed}). The higher it is, the further up and "
        "right: more bad parts are stopped, and more good ones with them. It begins where the other thresholds decide."
    )
    yield Plots((Plot(plot, caption),))
    yield Table(
        ("bad pictures that pass", "lowest pass_min", "good ones that do not pass"),
        _milestones(report, bad, good),
        caption="Read off these pictures. To choose by it would be to test on what was chosen on.",
    )


def _milestones(report: Report, bad: int, good: int) -> list[list[str]]:
    """For each few escapes the cheapest threshold."""
    rows = []
    for escapes in sorted({p.escapes for p in report.trade_off})[:6]:
        p = next(p for p in report.trade_off if p.escapes == escapes)
        rows.append(
            [
                f"{escapes} of {bad} ({percent(escapes / bad)})",
                f"{p.pass_min:.6f}",
                f"{p.false_rejects} of {good} ({percent(p.false_rejects / good)})",
            ]
        )
    return rows


def _point_cells(figures: VerdictFigures) -> list[str]:
    bound = figures.escapes_below
    return [
        count(figures.escapes),
        "" if bound is None or bound == 1 else above(bound),
        count_percent(figures.false_rejects),
        count_percent(figures.caught),
        count(figures.uncertain),
    ]


def _gallery(report: Report, exhibits: Sequence[Exhibit]) -> Iterator[Part]:
    if not exhibits:
        return
    if any(exhibit.evidence for exhibit in exhibits):
        yield Text(
            "The gravest first. Beside each picture, as the network sees it, is where the evidence for a class lies: "
            "a class-activation map, exact for this network in float32. The more orange, the more evidence, in one "
            "scale for both maps of a picture."
        )
    else:
        yield Text("The gravest first, as the network sees them.")
    if not any(picture.kind != "least_sure" for picture in report.worst):
        yield Text("No picture was judged wrongly. These are the ones that the model was least sure of.")
    yield Gallery(tuple(_picture(*pair) for pair in zip(report.worst, exhibits, strict=True)))


def _picture(worst: WorstPicture, exhibit: Exhibit) -> Picture:
    title, mood = _KINDS[worst.kind]
    ranked = sorted(worst.scores.items(), key=lambda item: -item[1])[:3]
    scores = ", ".join(f"{name} {value:.3f}" for name, value in ranked) or "no scores: the engine failed"
    return Picture(
        images=((exhibit.picture, "the picture"), *((uri, f"speaks for {name}") for name, uri in exhibit.evidence)),
        title=title,
        lines=(f"Is {worst.truth}, verdict {_VERDICTS[worst.verdict]}. {scores}", worst.name),
        mood=mood,
    )


def _fails_at(name: str, role: str, figures: VerdictFigures) -> str:
    thresholds = figures.thresholds
    return f"{thresholds.fail.get(name, thresholds.fail_default):g}" if role == "defect" else ""
