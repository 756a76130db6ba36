"""What an evaluation found, as data: `Report` is the content of `report.json`, and its schema the documentation."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from inspectd.model.bundle import Bundle
from inspectd.model.manifest import Role, Thresholds
from inspectd.workshop.provenance import printable

Verdict = Literal["pass", "fail", "uncertain", "empty", "engine_error"]
"""What the daemon would publish: `pass`, `fail`, or `no_result` with its reason; `empty` is one without a reason."""
VERDICTS: tuple[Verdict, ...] = ("pass", "fail", "uncertain", "empty", "engine_error")

ErrorKind = Literal["escape", "false_reject", "missed", "wrong_class", "least_sure"]


class Figures(BaseModel):
    """Frozen and strict; the sentence below an attribute is its description in the schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Share(Figures):
    """`count` of `of`; `low` and `high` are the 95 % Wilson interval. Without any picture they are null."""

    count: int
    of: int
    share: float | None
    low: float | None
    high: float | None


class VerdictFigures(Figures):
    """What thresholds do to the pictures, by the daemon's rule."""

    thresholds: Thresholds
    escapes: Share
    """Bad pictures (defects and empty stations) that pass."""
    escapes_below: float | None
    """One-sided 95 % upper bound on the share of bad pictures that pass (Clopper-Pearson, exact)."""
    false_rejects: Share
    """Good pictures that do not pass."""
    caught: Share
    """Defects that fail, and are not merely held back as uncertain."""
    uncertain: Share
    """Pictures of any kind without a verdict, because nothing is sure enough."""
    by_class: dict[str, dict[Verdict, int]]
    """True class -> verdict -> pictures."""


class ClassFigures(Figures):
    name: str
    role: Role
    recall: Share
    """Pictures of this class whose top class it is."""
    precision: Share
    """Pictures with this top class that are of this class."""


class CopyFigures(Figures):
    """One copy of the model on all pictures."""

    name: str
    runs: str
    """The engine, its precision, and why that one."""
    accuracy: Share
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    """[true class][top class], in the order of `classes`."""
    verdicts: VerdictFigures
    same_top_class: Share | None
    """Pictures with the same top class as the first copy; null for the first itself."""
    same_verdict: Share | None
    largest_logit_difference: float | None
    """Largest difference of a logit from the first copy's."""


class Curve(Figures):
    """Points of a curve and the area below it; `problem` says why there is none."""

    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    threshold: tuple[float | None, ...] = ()
    area: float | None = None
    """ROC: area under the curve. Precision and recall: average precision."""
    problem: str | None = None


class Curves(Figures):
    """One question: is it this (or bad)? ROC: x false positive rate, y recall. PR: x recall, y precision."""

    roc: Curve
    precision_recall: Curve


class Bin(Figures):
    """Pictures whose score of the top class lies in a range."""

    low: float
    high: float
    pictures: int
    score: float
    """Their mean score."""
    right: Share
    """How many have the right top class."""


class CalibrationFigures(Figures):
    ece: float
    """Expected calibration error: mean distance between score and share of right ones, over the bins."""
    nll: float
    """Mean negative log-likelihood of the true class, natural logarithm."""
    brier: float
    """Mean squared distance between scores and truth, summed over the classes (0 to 2)."""
    bins: tuple[Bin, ...]


class Calibration(Figures):
    temperature: float
    """From the bundle; the daemon divides the logits by it."""
    before: CalibrationFigures
    after: CalibrationFigures


class TradeOff(Figures):
    """What another `pass_min` would do to these pictures, all other thresholds as they are."""

    pass_min: float
    escapes: int
    false_rejects: int


class OperatingPoint(Figures):
    """`pass_min` chosen on validation pictures so that at most `max_escapes` of the bad ones pass."""

    max_escapes: float
    """Share of bad pictures that may pass, as asked for."""
    chosen_on: str | None
    """The validation pictures; null where there are none."""
    pass_min: float | None
    problem: str | None
    """Why there is none."""
    validation: VerdictFigures | None = None
    """What it does there, on the copy that is worst off."""
    here: dict[str, VerdictFigures] = Field(default_factory=dict)
    """Copy -> what it does to the pictures of this report."""


class WorstPicture(Figures):
    name: str
    kind: ErrorKind
    truth: str
    verdict: Verdict
    label: str | None
    """Top class, or on `fail` the defect that failed it."""
    score: float | None
    scores: dict[str, float]


class Latency(Figures):
    """One picture at a time: from handing a filled slot to the engine until its logits are there."""

    copy_name: str
    runs: str
    pictures: int
    warm_up: int
    threads: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class SimilarPair(Figures):
    """A picture that is nearly one that made the model."""

    name: str
    trained_on: str


class Concern(Figures):
    """Something that speaks against trusting the figures; a grave one stands above them."""

    text: str
    grave: bool = False


class DataFigures(Figures):
    folder: str
    split: Literal["test", "val", "all"]
    fingerprint: str
    """SHA-256 over names and contents of the judged pictures."""
    pictures: int
    counts: dict[str, int]
    """Class -> pictures, of every class of the bundle."""
    unreadable: tuple[str, ...]
    """Left out: what is wrong with each file."""
    similar: tuple[SimilarPair, ...]
    """Pictures that are nearly ones the model was made from."""
    similar_kept: bool
    twice: tuple[str, ...]
    """Pictures that are there more than once."""
    record: bool
    """Whether the bundle records which pictures made it, so that these could be compared with them."""


class BundleFigures(Figures):
    path: str
    sha256: str
    architecture: str
    created_at: str
    created_by: str
    width: int
    height: int
    data_sha256: str | None
    """Fingerprint of the data it was trained on."""

    @classmethod
    def of(cls, bundle: Bundle) -> BundleFigures:
        manifest = bundle.manifest
        trained_on = manifest.training.get("data_sha256")
        return cls(
            path=printable(str(bundle.path)),
            sha256=bundle.sha256,
            architecture=manifest.architecture,
            created_at=manifest.created_at,
            created_by=manifest.created_by,
            width=manifest.preprocess.width,
            height=manifest.preprocess.height,
            data_sha256=trained_on if isinstance(trained_on, str) else None,
        )


class Report(Figures):
    """Everything that `inspectd evaluate` found."""

    schema_name: Literal["inspectd.evaluation/1"] = "inspectd.evaluation/1"
    created_at: str
    versions: dict[str, str]
    machine: str
    bundle: BundleFigures
    data: DataFigures
    concerns: tuple[Concern, ...]
    """What speaks against trusting the figures."""
    deployed: str
    """The copy that the daemon would run on this machine; the headline figures are its."""
    copies: tuple[CopyFigures, ...]
    bad: Curves
    """Bad (positive) against good by the daemon's score, the probability of the ok classes together."""
    per_class: dict[str, Curves]
    calibration: Calibration | None
    trade_off: tuple[TradeOff, ...]
    operating_point: OperatingPoint
    worst: tuple[WorstPicture, ...]
    latency: tuple[Latency, ...]

    @property
    def headline(self) -> CopyFigures:
        """The figures of the copy that the daemon would run."""
        return next(copy for copy in self.copies if copy.name == self.deployed)
