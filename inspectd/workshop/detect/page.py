"""The report of a detector as a page: for the engineer who made it, and for whoever signs that it may serve."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence

import cv2

from inspectd.frame import U8
from inspectd.model.manifest import Thresholds
from inspectd.workshop.detect.figures import DetectorReport, ErrorKind, JudgedPicture
from inspectd.workshop.detect.gallery import drawn, reaches
from inspectd.workshop.evaluation.figures import Curve, Share
from inspectd.workshop.evaluation.plots import curve_plot
from inspectd.workshop.evaluation.report import (
    Cell,
    Gallery,
    Items,
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
from inspectd.workshop.evaluation.words import SPLIT_WORDS, above, count, interval, percent

_KINDS: dict[ErrorKind, tuple[str, Mood]] = {
    "escape": ("Escape: it has a defect, and passes", "bad"),
    "false_reject": ("Good, and does not pass", "unsure"),
    "missed": ("Has a defect that did not fail it, but does not pass", "unsure"),
    "wrong_boxes": ("Right verdict, but boxes are missing or too many", "plain"),
    "right": ("Right, but least sure", "plain"),
}


def detector_page(report: DetectorReport, pixels: Sequence[U8]) -> Page:
    """The page of a report; `pixels` are the pictures of `report.worst`, uint8 [H, W, 3] each, in that order."""
    return Page(
        title=f"Evaluation of {report.bundle.path.rstrip('/').rpartition('/')[2] or report.bundle.path}",
        subtitle=(
            f"Detector {report.bundle.sha256[:12]} on {report.data.pictures} pictures of {report.data.folder} "
            f"({SPLIT_WORDS[report.data.split]}), {report.created_at[:16].replace('T', ' ')} UTC"
        ),
        answer=detector_answer(report),
        tiles=tuple(_tiles(report)),
        warnings=tuple((concern.text, "bad" if concern.grave else "unsure") for concern in report.concerns),
        sections=tuple(
            Section(name, title, tuple(parts))
            for name, title, parts in (
                ("boxes", "Boxes", _boxes(report)),
                ("verdicts", "Verdicts", _verdicts(report)),
                ("pictures", "Pictures to look at", _gallery(report, pixels)),
                ("copies", "Copies of the model", _copies(report)),
                ("latency", "Latency", _latency(report)),
                ("ground", "What this rests on", _ground(report)),
            )
        ),
        footer=(
            f"inspectd {report.versions['inspectd']}. Average precision as COCO defines it (faster-coco-eval "
            f"{report.versions['faster-coco-eval']}). Intervals are 95 %: Wilson for shares, Clopper-Pearson (exact, "
            "one-sided) where something stays below a bound. All figures are in report.json."
        ),
    )


def detector_answer(report: DetectorReport) -> str:
    """What the verdicts mean for the line, and how well the boxes are found."""
    figures, headline = report.headline.verdicts, report.headline
    escapes, rejects = figures.escapes, figures.false_rejects
    words = "There are no pictures with a defect, so nothing is known about escapes."
    if figures.escapes_below is not None:
        words = (
            f"{escapes.count} of {escapes.of} pictures with a defect passed; "
            f"with 95\u00a0% confidence fewer than {above(figures.escapes_below)} would."
        )
    goods = f"{rejects.count} of {rejects.of} good pictures did not pass."
    if rejects.share is None:
        goods = "There are no good pictures, so nothing is known about false rejects."
    return f"{words} {goods} The boxes reach {_ap(headline.map50)} mAP@0.5, {_ap(headline.map)} over all overlaps."


def _tiles(report: DetectorReport) -> Iterator[Tile]:
    figures = report.headline.verdicts
    bound = figures.escapes_below
    yield Tile(
        count(figures.escapes),
        "pictures with a defect passed (escapes)",
        "cannot be computed: no defects" if bound is None else f"95\u00a0% confidence: fewer than {above(bound)}",
        "plain" if bound is None else "bad" if figures.escapes.count else "good",
    )
    yield Tile(
        count(figures.false_rejects),
        "good pictures did not pass (false rejects)",
        _interval(figures.false_rejects, "good pictures"),
        "unsure" if figures.false_rejects.count else "plain",
    )
    yield Tile(
        count(figures.caught),
        "pictures with a defect failed (caught)",
        _interval(figures.caught, "pictures with a defect"),
    )
    yield Tile(_ap(report.headline.map50), "mAP at an overlap of 0.5", f"{_ap(report.headline.map)} over 0.5 to 0.95")


def _boxes(report: DetectorReport) -> Iterator[Part]:
    yield Text(
        "Average precision (AP) asks for every box of a class, the surest first, and counts what is found with an "
        "overlap (IoU) of a half, or, on average, of 0.5 to 0.95. Hit are those defects that a box which the daemon "
        "would publish overlaps by half."
    )
    rows = [
        [c.name, str(c.boxes), _ap(c.ap50), _ap(c.ap), count(c.hit), _limit(report, c.name)]
        for c in report.headline.classes
    ]
    yield Table(("class", "boxes", "AP at 0.5", "AP", "hit", "fails at"), rows)
    nothing = Curve(problem="boxes of all classes are not told together")
    plots = [
        Plot(
            curve_plot("boxes", nothing, report.per_class, "precision_recall", ("recall", "precision"), "AP at 0.5"),
            "Precision against recall of the boxes of each class, at an overlap of a half.",
        )
    ]
    if report.bad.roc.x:
        plots.append(
            Plot(
                curve_plot("bad", report.bad.roc, {}, "roc", ("good pictures stopped", "bad pictures stopped"), "area"),
                "Whole pictures, told apart by their strongest box.",
            )
        )
    yield Plots(plots)


def _limit(report: DetectorReport, name: str) -> str:
    thresholds = report.headline.verdicts.thresholds
    return f"{thresholds.fail.get(name, thresholds.fail_default):g}"


def _verdicts(report: DetectorReport) -> Iterator[Part]:
    figures = report.headline.verdicts
    yield Text(
        f"As the daemon would decide on this machine, with the {report.headline.name} copy: a part fails when a box "
        f"reaches its class's threshold, and else passes when no box reaches {1 - figures.thresholds.pass_min:.3g}. "
        "Each picture is counted for the class of its first box."
    )
    kinds = [kind for kind in ("pass", "fail", "uncertain", "engine_error") if kind != "engine_error" or any(
        row["engine_error"] for row in figures.by_class.values())]  # fmt: skip
    rows: list[list[str | Cell]] = []
    for index, (name, counts) in enumerate(figures.by_class.items()):
        wrong = "pass" if index else "fail"
        cells: list[str | Cell] = [
            Cell(str(counts[kind]), 0.5, "bad") if kind == wrong and counts[kind] else str(counts[kind])  # type: ignore[index] # the words are those of Verdict
            for kind in kinds
        ]
        rows.append([name, str(sum(counts.values())), *cells])
    yield Table(("class", "pictures", *(kind.replace("_", " ") for kind in kinds)), rows)


def _gallery(report: DetectorReport, pixels: Sequence[U8]) -> Iterator[Part]:
    yield Text(
        "Green is what is labelled, red what the daemon would publish: thin are boxes that fail nothing, but stand "
        "against a pass. The gravest errors come first."
    )
    thresholds = report.headline.verdicts.thresholds
    yield Gallery([_exhibit(picture, seen, thresholds) for picture, seen in zip(report.worst, pixels, strict=True)])


def _exhibit(picture: JudgedPicture, pixels: U8, thresholds: Thresholds) -> Picture:
    title, mood = _KINDS[picture.kind]
    firm = sum(reaches(box, thresholds) for box in picture.boxes)
    score = "" if picture.score is None else f" ({picture.label} {picture.score:.3f})"
    return Picture(
        images=(
            (_data_uri(drawn(pixels, picture.truth, None)), f"{len(picture.truth)} labelled"),
            (_data_uri(drawn(pixels, picture.boxes, thresholds)), f"{firm} found, {len(picture.boxes) - firm} unsure"),
        ),
        title=title,
        lines=(picture.name, f"verdict {picture.verdict.replace('_', ' ')}{score}"),
        mood=mood,
    )


def _copies(report: DetectorReport) -> Iterator[Part]:
    first, copies = report.copies[0], report.copies
    yield Text(
        "Every copy that the bundle carries, run by the daemon's own engine and judged by its own rule. "
        + (f"Agreement is with {first.name}, of boxes from a score of 0.3 on." if len(copies) > 1 else "There is one.")
    )
    rows: list[list[str | Cell]] = [
        ["runs", *(c.runs for c in copies)],
        ["mAP at 0.5", *(_ap(c.map50) for c in copies)],
        ["mAP", *(_ap(c.map) for c in copies)],
        ["escapes", *(_worse(c.verdicts.escapes, first.verdicts.escapes) for c in copies)],
        ["false rejects", *(count(c.verdicts.false_rejects) for c in copies)],
        ["caught", *(count(c.verdicts.caught) for c in copies)],
        ["same verdict", *("" if c.same_verdict is None else count(c.same_verdict) for c in copies)],
        ["same boxes", *("" if c.agreement is None else percent(c.agreement.found) for c in copies)],
        [
            "largest difference of an edge",
            *("" if c.agreement is None else f"{c.agreement.edge_difference:.2f} px" for c in copies),
        ],
        [
            "largest difference of a score",
            *("" if c.agreement is None else f"{c.agreement.score_difference:.3f}" for c in copies),
        ],
    ]
    header = [f"{c.name} (would run here)" if c.name == report.deployed else c.name for c in copies]
    yield Table(("", *header), rows, words=1 + len(copies))


def _latency(report: DetectorReport) -> Iterator[Part]:
    if not report.latency:
        yield Text("The bundle has no copy that the daemon could run here.")
        return
    yield Text(
        f"One picture at a time, from the filled slot to its boxes, in the daemon's engine. {report.machine}. "
        f"Threads: {report.latency[0].threads}. Nothing else was kept from running meanwhile."
    )
    rows = [
        [one.copy_name, one.runs, str(one.pictures), *(f"{ms:.2f} ms" for ms in (one.p50_ms, one.p99_ms, one.max_ms))]
        for one in report.latency
    ]
    yield Table(("copy", "engine", "pictures", "p50", "p99", "slowest"), rows, words=2)


def _ground(report: DetectorReport) -> Iterator[Part]:
    data, bundle = report.data, report.bundle
    counts = [[name, str(number)] for name, number in data.counts.items()]
    yield Table(("class", "boxes"), counts, caption=f"Boxes in {data.folder}; of the first class, pictures without any")
    compared = "recorded in the bundle, and compared with these pictures: by file, by pixels, and by likeness"
    rows = [
        ["pictures judged", f"{data.pictures}, fingerprint {data.fingerprint}"],
        ["what made the bundle", compared if data.record else "not recorded in the bundle"],
        ["bundle", f"{bundle.path}, SHA-256 {bundle.sha256}"],
        ["architecture", f"{bundle.architecture}, input {bundle.width} × {bundle.height}"],
        ["made", f"{bundle.created_at or 'unknown'} {f'by {bundle.created_by}' if bundle.created_by else ''}"],
        ["trained on", f"fingerprint {bundle.data_sha256}" if bundle.data_sha256 else "unknown"],
        ["evaluated", report.created_at],
        ["versions", ", ".join(f"{name} {number}" for name, number in report.versions.items())],
        ["machine", report.machine],
    ]
    yield Table(("", ""), rows, words=2)
    if data.similar:
        pairs = [f"{pair.name} ≈ {pair.trained_on}" for pair in data.similar]
        what = "counted" if data.similar_kept else "left out"
        yield Items(f"{len(pairs)} pictures that nearly equal ones that made the bundle, {what}", pairs)


def _worse(share: Share, than: Share) -> str | Cell:
    return Cell(count(share), 0.4, "bad") if share.count > than.count else count(share)


def _ap(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _interval(share: Share, what: str) -> str:
    return interval(share) if share.of else f"cannot be computed: no {what}"


def _data_uri(rgb: U8) -> str:
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode('ascii')}"
