"""What the evaluation of a detector found, as data: the content of its `report.json`."""

from __future__ import annotations

from typing import Literal

from inspectd.verdict.schema import BoxScore
from inspectd.workshop.evaluation.figures import (
    BundleFigures,
    Concern,
    Curves,
    Figures,
    Latency,
    Share,
    SimilarPair,
    VerdictFigures,
)

ErrorKind = Literal["escape", "false_reject", "missed", "wrong_boxes", "right"]
"""`wrong_boxes`: the verdict is right, but a defect has no box, or a box has no defect."""


class BoxFigures(Figures):
    """How well the boxes of one class are found; null where there are none to find."""

    name: str
    boxes: int
    ap50: float | None
    """Average precision at an overlap (IoU) of 0.5."""
    ap: float | None
    """Mean over overlaps of 0.5, 0.55 … 0.95."""
    hit: Share
    """Boxes that a published box of this class overlaps by half."""


class Agreement(Figures):
    """How alike this copy's boxes are to those of the first, from a score of 0.3 on."""

    found: float
    """Share of the first one's boxes that this one has, too, with an overlap of half."""
    edge_difference: float
    """Largest difference of an edge, network-input pixels."""
    score_difference: float


class DetectorCopyFigures(Figures):
    """One copy of the model on all pictures."""

    name: str
    runs: str
    map50: float | None
    """Mean of `ap50` over the classes."""
    map: float | None
    classes: tuple[BoxFigures, ...]
    verdicts: VerdictFigures
    same_verdict: Share | None
    """Pictures with the same verdict as the first copy gives; null for the first itself."""
    agreement: Agreement | None


class JudgedPicture(Figures):
    """One picture of the gallery; boxes in network-input pixels."""

    name: str
    kind: ErrorKind
    truth: tuple[BoxScore, ...]
    """What is labelled, with a score of 1."""
    verdict: str
    label: str | None
    score: float | None
    boxes: tuple[BoxScore, ...]
    """What the daemon would publish."""


class BoxedDataFigures(Figures):
    folder: str
    split: Literal["test", "val", "all"]
    fingerprint: str
    pictures: int
    counts: dict[str, int]
    """Class -> boxes; the good class -> pictures without any."""
    similar: tuple[SimilarPair, ...]
    similar_kept: bool
    record: bool
    """Whether the bundle records which pictures made it, so that these could be compared with them."""


class DetectorReport(Figures):
    """Everything that `inspectd evaluate` found of a detector."""

    schema_name: Literal["inspectd.detector-evaluation/1"] = "inspectd.detector-evaluation/1"
    created_at: str
    versions: dict[str, str]
    machine: str
    bundle: BundleFigures
    data: BoxedDataFigures
    concerns: tuple[Concern, ...]
    deployed: str
    """The copy that the daemon would run on this machine; the headline figures are its."""
    copies: tuple[DetectorCopyFigures, ...]
    bad: Curves
    """Pictures with a defect (positive) against good ones, by their strongest box."""
    per_class: dict[str, Curves]
    """Boxes of each class: precision and recall at an overlap of 0.5."""
    worst: tuple[JudgedPicture, ...]
    latency: tuple[Latency, ...]

    @property
    def headline(self) -> DetectorCopyFigures:
        return next((copy for copy in self.copies if copy.name == self.deployed), self.copies[0])
