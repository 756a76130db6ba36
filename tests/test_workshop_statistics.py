"""Figures with their uncertainty: against published values, against plain counting, and at the edges."""

import numpy as np
import pytest

from inspectd.config import DecisionConfig
from inspectd.model.manifest import ClassSpec, Manifest, Thresholds
from inspectd.model.preprocess import PreprocessSpec
from inspectd.verdict.decide import Decider
from inspectd.workshop.evaluation.judged import pass_scores
from inspectd.workshop.evaluation.statistics import (
    PASS_FLOOR,
    calibration,
    choose_pass_min,
    class_figures,
    confusion,
    curves,
    reliability,
    share,
    top_classes,
    trade_off,
    upper_bound,
)

CLASSES = (
    ClassSpec(name="good", role="ok"),
    ClassSpec(name="dent", role="defect"),
    ClassSpec(name="empty", role="empty"),
)
MANIFEST = Manifest(
    format_version=1,
    architecture="resnet18",
    classes=CLASSES,
    preprocess=PreprocessSpec(width=32, height=32),
    temperature=1.3,
    thresholds=Thresholds(pass_min=0.8, fail={"dent": 0.35}),
    files={},
)


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_intervals_are_the_published_ones(count, of, low, high):
    """The last is from Newcombe 1998, table I; the others from the closed form."""
    found = share(count, of)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert found.share == pytest.approx(count / of, abs=1e-6)


@pytest.mark.parametrize("of", [1, 7, 40, 1000])
def test_without_escapes_the_bound_is_the_rule_of_three(of):
    """1 - 0.05 ** (1 / n) exactly, never rounded to the better; near 3 / n for many."""
    bound = upper_bound(0, of)
    exact = 1 - 0.05 ** (1 / of)
    assert exact <= bound <= exact + 2e-6
    if of >= 40:
        assert bound == pytest.approx(3 / of, rel=0.05)


def test_a_bound_grows_with_what_escaped():
    assert upper_bound(0, 40) < upper_bound(1, 40) < upper_bound(39, 40) < upper_bound(40, 40) == 1


def test_no_pictures_have_no_figures():
    """Null, not zero: nothing was tested."""
    nothing = share(0, 0)
    assert (nothing.share, nothing.low, nothing.high) == (None, None, None)
    assert upper_bound(0, 0) is None


def test_scores_that_are_no_numbers_are_of_no_class():
    """They count against recall and are in no column of the confusion."""
    logits = np.array([[3, 0, 0], [np.nan, 0, 0], [0, 3, 0]], np.float32)
    labels = np.array([0, 0, 1])
    top = top_classes(logits)
    assert top.tolist() == [0, -1, 1]
    assert confusion(top, labels, 3).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    good, dent, empty = class_figures(top, labels, CLASSES)
    assert (good.recall.count, good.recall.of) == (1, 2)
    assert (dent.precision.count, dent.precision.of) == (1, 1)
    assert empty.recall.share is None


@pytest.mark.parametrize(("positive", "missing"), [([True, True], "good pictures"), ([False, False], "bad pictures")])
def test_a_curve_of_one_kind_says_why_there_is_none(positive, missing):
    found = curves(np.array(positive), np.array([0.1, 0.9]), "bad pictures", "good pictures")
    assert found.roc.problem == found.precision_recall.problem == f"cannot be computed: no {missing}"
    assert found.roc.area is None
    assert not found.roc.x


def test_the_area_is_the_share_of_pairs_in_order():
    """The area under a ROC curve is the probability that a bad picture scores above a good one; ties count half."""
    rng = np.random.default_rng(0)
    positive, score = rng.random(60) < 0.4, rng.integers(0, 8, 60) / 8
    bad, good = score[positive], score[~positive]
    pairs = (bad[:, None] > good).mean() + (bad[:, None] == good).mean() / 2
    found = curves(positive, score, "bad", "good")
    assert found.roc.area == pytest.approx(pairs, abs=1e-6)
    assert all(value is None or np.isfinite(value) for value in found.roc.threshold)


def test_calibration_of_scores_that_mean_what_they_say():
    """Labels drawn from the scores: ECE near 0 at their own temperature, far from it when they are sharpened."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (6000, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probabilities.cumsum(1) < rng.random((6000, 1))).sum(1)
    honest, bold = calibration(logits, labels, 1.0), calibration(logits, labels, 0.3)
    assert honest.ece < 0.03
    assert bold.ece > 0.1
    assert honest.nll == pytest.approx(-np.log(probabilities[np.arange(6000), labels]).mean(), abs=1e-6)
    assert honest.brier == pytest.approx(((probabilities - np.eye(3)[labels]) ** 2).sum(1).mean(), abs=1e-6)
    assert sum(b.pictures for b in honest.bins) == 6000


def test_calibration_leaves_out_what_has_no_scores():
    logits = np.array([[2.0, 0.0, 0.0], [np.nan, 0.0, 0.0]])
    assert sum(b.pictures for b in calibration(logits, np.array([0, 1]), 1.0).bins) == 1
    assert calibration(logits[1:], np.array([1]), 1.0) is None


def test_a_score_of_one_is_in_the_last_bin():
    """And one of 0 in the first: no picture falls out of the diagram."""
    bins = reliability(np.array([0.0, 1.0]), np.array([False, True]))
    assert [(b.low, b.high, b.pictures) for b in bins] == [(0.0, 0.066667, 1), (0.933333, 1.0, 1)]


def test_the_trade_off_is_what_the_daemon_would_decide():
    """For every `pass_min` on it, counted by the daemon's own rule with that in its configuration."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2.5, (120, 3)).astype(np.float32)
    labels = rng.integers(0, 3, 120)
    logits[np.arange(120), labels] += 1.5
    is_good = labels == 0
    points = trade_off(pass_scores(logits, MANIFEST), is_good)
    assert len(points) > 20
    for point in points[:: len(points) // 12]:
        decider = Decider(MANIFEST, DecisionConfig(pass_min=point.pass_min))
        passes = np.array([decider.decide(row).verdict == "pass" for row in logits])
        assert point.escapes == (passes & ~is_good).sum(), point
        assert point.false_rejects == (~passes & is_good).sum(), point
    assert len({point.escapes for point in points}) > 3


@pytest.mark.parametrize("max_escapes", [0.0, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_the_chosen_threshold_keeps_the_escape_rate(max_escapes, seed):
    """At most that share of the bad pictures it was chosen on pass, and no lower milestone would have done."""
    rng = np.random.default_rng(seed)
    good, bad = rng.beta(8, 1, 80), rng.beta(2, 2, 60)
    chosen = choose_pass_min(good, bad, max_escapes)
    assert (bad >= chosen).mean() <= max_escapes
    if chosen > PASS_FLOOR:
        # Had the next bad picture been allowed too, the threshold could lie at its score.
        allowed = int(max_escapes * 60)
        assert chosen > np.sort(bad)[::-1][allowed]
        cheaper = good[(good > np.sort(bad)[::-1][allowed]) & (good < chosen)]
        assert not len(cheaper), "the margin costs no good picture"


def test_nothing_may_pass_that_is_certain_of_being_good():
    """No threshold keeps a bad picture out that scores 1; where it may pass, one exists."""
    assert choose_pass_min(np.array([0.9]), np.array([1.0, 0.2]), 0.0) is None
    assert choose_pass_min(np.array([0.9]), np.array([1.0, 0.2]), 0.5) == pytest.approx(0.55, abs=1e-6)


def test_without_escapes_allowed_the_threshold_has_a_floor():
    """A few dozen pictures without a bad one near do not vouch for a threshold of a half."""
    assert choose_pass_min(np.array([0.6, 0.99]), np.array([0.0, 0.1]), 0.0) == PASS_FLOOR
