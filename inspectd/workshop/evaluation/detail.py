"""The later sections of a classifier's report: classes, curves, calibration, copies, latency, and its ground."""

from __future__ import annotations

from collections.abc import Iterator

from inspectd.workshop.evaluation.figures import ClassFigures, CopyFigures, Report, Share
from inspectd.workshop.evaluation.plots import curve_plot, reliability_plot, share_plot
from inspectd.workshop.evaluation.report import Cell, Items, Mood, Part, Plot, Plots, Table, Text
from inspectd.workshop.evaluation.words import (
    agreement,
    count,
    count_percent,
    four_digits,
    interval,
    percent,
    share_only,
)


def classes(report: Report) -> Iterator[Part]:
    """Recall and precision by the top class, and what is taken for what."""
    copy = report.headline
    yield Text(
        f"By the top class alone, whatever its score ({copy.name}): {count(copy.accuracy)} are right "
        f"({interval(copy.accuracy)}). Recall is the share of a class that is recognised, precision the share of "
        "what is called so that is so."
    )
    rows = []
    for c in copy.classes:
        both = report.per_class[c.name]
        rows.append(
            [
                c.name,
                c.role,
                *_interval_cells(c.recall),
                *_interval_cells(c.precision),
                four_digits(both.roc.area),
                four_digits(both.precision_recall.area),
            ]
        )
    header = ("class", "role", "recall", "95\u00a0%", "", "precision", "95\u00a0%", "", "ROC AUC", "average precision")
    yield Table(header, rows, words=2)
    yield Plots((Plot(share_plot("shares", copy.classes), "Recall and precision with their 95 % intervals."),))
    yield _confusion(copy)


def _interval_cells(share: Share) -> tuple[str, str, str]:
    if share.share is None:
        return "no pictures", "", ""
    return percent(share.share), f"{100 * (share.low or 0):.1f} to {100 * (share.high or 0):.1f}", count(share)


def _confusion(copy: CopyFigures) -> Table:
    names = [c.name for c in copy.classes]
    rows = []
    for i, (spec, counts) in enumerate(zip(copy.classes, copy.confusion, strict=True)):
        cells = [_confusion_cell(count, spec, copy.classes[j], i == j) for j, count in enumerate(counts)]
        rows.append([spec.name, str(spec.recall.of), *cells])
    caption = "Confusion: rows are the truth, columns the top class. Red: a bad part whose top class is a good one."
    return Table(("truth", "pictures", *names), rows, caption=caption)


def _confusion_cell(count: int, truth: ClassFigures, top: ClassFigures, same: bool) -> Cell | str:
    if not count:
        return "·"
    mood: Mood = "good" if same else "bad" if top.role == "ok" and truth.role != "ok" else "unsure"
    return Cell(str(count), max(0.12, count / max(1, truth.recall.of)), mood)


def curves(report: Report) -> Iterator[Part]:
    """ROC and precision-recall, of bad against good and of each class."""
    roc, pr = report.bad.roc, report.bad.precision_recall
    if roc.problem is not None:
        yield Text(f"Bad against good {roc.problem}.")
    else:
        yield Text(
            "Bad against good by the score that the daemon passes parts with, the probability of the ok classes "
            f"together ({report.deployed}): area under the ROC curve {four_digits(roc.area)}, average precision "
            f"{four_digits(pr.area)}. Thin lines are each class against all others."
        )
    if impossible := [name for name, both in report.per_class.items() if both.roc.problem is not None]:
        yield Text(f"No curve for {', '.join(impossible)}: {report.per_class[impossible[0]].roc.problem}.")
    if roc.problem is not None and len(impossible) == len(report.per_class):
        return
    yield Plots(
        (
            Plot(
                curve_plot(
                    "roc", roc, report.per_class, "roc", ("false positive rate", "recall"), "area under the curve"
                ),
                "ROC: what share of the bad is found, for what share of the good that is stopped with it.",
            ),
            Plot(
                curve_plot(
                    "pr", pr, report.per_class, "precision_recall", ("recall", "precision"), "average precision"
                ),
                "Precision and recall: how much of what is stopped is bad. It depends on how many bad ones there are.",
            ),
        )
    )


def calibration(report: Report) -> Iterator[Part]:
    """Whether scores mean what they say, before and after temperature scaling."""
    if (found := report.calibration) is None:
        yield Text("Cannot be computed: no picture has scores.")
        return
    yield Text(
        f"Is a score of 0.9 right nine times in ten? The bundle divides its logits by {found.temperature:.3g} "
        f"(temperature scaling, Guo et al. 2017), which changes no top class ({report.deployed})."
    )
    rows = [
        [words, f"{f.ece:.4f}", f"{f.nll:.4f}", f"{f.brier:.4f}"]
        for words, f in (("before scaling", found.before), ("after scaling", found.after))
    ]
    yield Table(("", "expected calibration error", "negative log-likelihood", "Brier score"), rows)
    yield Plots(
        tuple(
            Plot(reliability_plot(f"reliability-{name}", f, f"{name} scaling"), caption)
            for name, f, caption in (
                (
                    "before",
                    found.before,
                    "On the dashed line scores can be taken at their word; below it they promise too much.",
                ),
                ("after", found.after, "Bars are 95 % intervals. Below: pictures with such a score."),
            )
        )
    )


def copies(report: Report) -> Iterator[Part]:
    """Every copy beside the first, and whether they agree."""
    first, others = report.copies[0], report.copies[1:]
    yield Text(
        "Every copy that the bundle carries, run as its first row says and judged by the daemon's own rule. "
        f"{'Agreement and differences are with ' + first.name + '.' if others else 'There is but one.'}"
    )
    rows: list[list[str | Cell]] = [
        ["runs", *(c.runs for c in report.copies)],
        ["accuracy", *(count_percent(c.accuracy) for c in report.copies)],
        ["escapes", *(_escape_cell(c, first) for c in report.copies)],
        ["false rejects", *(count_percent(c.verdicts.false_rejects) for c in report.copies)],
        ["caught", *(count_percent(c.verdicts.caught) for c in report.copies)],
        ["uncertain", *(count(c.verdicts.uncertain) for c in report.copies)],
        ["same top class", *(agreement(c.same_top_class) for c in report.copies)],
        ["same verdict", *(agreement(c.same_verdict) for c in report.copies)],
        [
            "largest logit difference",
            *("" if c.largest_logit_difference is None else f"{c.largest_logit_difference:.4g}" for c in report.copies),
        ],
    ]
    rows.extend(
        [f"recall {spec.name}", *(share_only(c.classes[i].recall) for c in report.copies)]
        for i, spec in enumerate(first.classes)
    )
    yield Table(("", *(_marked(c, report) for c in report.copies)), rows, words=1 + len(report.copies))


def _escape_cell(copy: CopyFigures, first: CopyFigures) -> str | Cell:
    worse = copy.verdicts.escapes.count > first.verdicts.escapes.count
    return Cell(count(copy.verdicts.escapes), 0.4, "bad") if worse else count(copy.verdicts.escapes)


def _marked(copy: CopyFigures, report: Report) -> str:
    return f"{copy.name} (would run here)" if copy.name == report.deployed else copy.name


def latency(report: Report) -> Iterator[Part]:
    """How long one picture takes here."""
    if not report.latency:
        yield Text("The bundle has no copy that the daemon could run here.")
        return
    yield Text(
        f"One picture at a time, from the filled slot to its logits, in the daemon's engine. {report.machine}. "
        f"Threads: {report.latency[0].threads}. {report.latency[0].warm_up} pictures of warm-up, which are not "
        "counted; nothing else was kept from running meanwhile."
    )
    rows = [
        [
            one.copy_name,
            one.runs,
            str(one.pictures),
            f"{one.p50_ms:.2f} ms",
            f"{one.p99_ms:.2f} ms",
            f"{one.max_ms:.2f} ms",
        ]
        for one in report.latency
    ]
    yield Table(("copy", "engine", "pictures", "p50", "p99", "slowest"), rows, words=2)


def ground(report: Report) -> Iterator[Part]:
    """The pictures, where the bundle came from, and with what all this was measured."""
    data, bundle = report.data, report.bundle
    yield Table(
        ("class", "pictures"),
        [[name, str(count)] for name, count in data.counts.items()],
        caption=f"Pictures in {data.folder}",
    )
    record = {
        True: "recorded in the bundle, and compared with these pictures: by file, by pixels, and by likeness",
        False: "not recorded in the bundle",
    }
    rows = [
        ["pictures judged", f"{data.pictures}, fingerprint {data.fingerprint}"],
        ["what made the bundle", record[data.record]],
        ["bundle", f"{bundle.path}, SHA-256 {bundle.sha256}"],
        ["architecture", f"{bundle.architecture}, input {bundle.width} × {bundle.height}"],
        [
            "made",
            " ".join(filter(None, [bundle.created_at, f"by {bundle.created_by}" if bundle.created_by else ""]))
            or "unknown",
        ],
        ["trained on", f"fingerprint {bundle.data_sha256}" if bundle.data_sha256 else "unknown"],
        ["evaluated", report.created_at],
        ["versions", ", ".join(f"{name} {number}" for name, number in report.versions.items())],
        ["machine", report.machine],
    ]
    yield Table(("", ""), rows, words=2)
    if data.unreadable:
        yield Items(f"{len(data.unreadable)} files that cannot be read, left out", data.unreadable)
    if data.similar:
        what = "counted" if data.similar_kept else "left out"
        pairs = [f"{pair.name} ≈ {pair.trained_on}" for pair in data.similar]
        yield Items(f"{len(pairs)} pictures that nearly equal ones that made the bundle, {what}", pairs)
    if data.twice:
        yield Items(f"{len(data.twice)} pictures that are there more than once", data.twice)
