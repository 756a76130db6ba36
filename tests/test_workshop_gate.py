"""What a copy must not do, what unequal classes get, what makes an epoch the best, and how a bundle takes its place."""

import contextlib

import numpy as np
import pytest
import torch

from inspectd.errors import DataError
from inspectd.model.bundle import MANIFEST
from inspectd.model.manifest import ClassSpec, Thresholds
from inspectd.workshop.gate import TOLERANCE, judge_copy
from inspectd.workshop.imbalance import plan_for
from inspectd.workshop.metric import score, worst_recall
from inspectd.workshop.place import refuse_other_things, replacing

CLASSES = (
    ClassSpec(name="good", role="ok"),
    ClassSpec(name="dent", role="defect"),
    ClassSpec(name="empty", role="empty"),
)
LABELS = np.repeat([0, 1, 2], [100, 100, 20])


def clear_logits(strength=8.0):
    """float32 [220, 3]: every picture right, with a little noise."""
    rng = np.random.default_rng(0)
    return (rng.normal(0, 0.3, (220, 3)) + strength * np.eye(3)[LABELS]).astype(np.float32)


def judged(given, copy="openvino-int8", eager=None):
    eager = clear_logits() if eager is None else eager
    return judge_copy(copy, eager, given, LABELS, CLASSES, 1.0, Thresholds())


# -- the gate -----------------------------------------------------------------------------------------


def test_an_equal_copy_passes():
    report = judged(clear_logits())
    assert report.passed
    assert (report.logit_error, report.agreement, report.escapes) == (0, 1, 0)


def test_one_defect_that_is_called_something_else_is_half_a_point_too_much():
    """Of a hundred pictures one is a whole point; the report says by how much."""
    given = clear_logits()
    given[100] = [0.0, 2.9, 3.0]
    report = judged(given)
    assert not report.passed
    assert report.problems == ("dent loses 1.0 points of recall, 0.5 are allowed",)


def test_a_good_part_that_is_lost_is_no_reason_to_refuse():
    """A false reject costs money, and it shows in the figures; the gate is about defects."""
    given = clear_logits()
    given[0] = [3.0, 3.1, 0.0]
    report = judged(given)
    assert report.passed
    assert report.recall_change["good"] == -0.01


def test_one_more_escape_is_refused_even_where_recall_is_unchanged():
    """An empty station that passes: no defect class lost anything, and yet something wrong would pass."""
    given = clear_logits()
    given[200] = [9.0, 0.0, 0.0]
    report = judged(given)
    assert report.problems == ("1 pictures would wrongly pass, 0 with torch",)


def test_logits_that_are_far_off_are_refused():
    """Even if every class is still right: so far off, other pictures would not be."""
    for copy, tolerance in TOLERANCE.items():
        noise = np.random.default_rng(1).normal(0, 1, (220, 3)).astype(np.float32)
        spread = clear_logits().std()
        assert judged(clear_logits() + 0.8 * tolerance * spread * noise, copy).passed
        report = judged(clear_logits() + 1.3 * tolerance * spread * noise, copy)
        assert "logits are off" in report.problems[-1], copy


def test_scores_that_are_no_numbers_are_refused():
    given = clear_logits()
    given[7, 1] = np.nan
    assert judged(given).problems == ("1 pictures score no numbers",)


# -- unequal classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("counts", "kind"), [((50, 40), "none"), ((90, 30), "weights"), ((500, 12), "balanced")])
def test_what_is_done_about_unequal_classes(counts, kind):
    """And why, with the classes' names."""
    plan = plan_for(np.repeat([0, 1], counts), ["good", "dent"], "auto")
    assert plan.kind == kind
    assert f"good has {counts[0]} pictures, dent {counts[1]}" in plan.why


def test_weights_favour_the_rare_and_keep_the_mean():
    labels = np.repeat([0, 1], [90, 10])
    plan = plan_for(labels, ["good", "dent"], "weights")
    assert plan.weights[1] / plan.weights[0] == pytest.approx(3.0)  # the root of nine
    assert np.mean(np.array(plan.weights)[labels]) == pytest.approx(1.0)


def test_balanced_drawing_shows_each_class_equally_often():
    labels = np.repeat([0, 1], [990, 10])
    order = plan_for(labels, ["good", "dent"], "balanced").order(labels, torch.Generator().manual_seed(0))
    assert len(order) == 1000
    assert 0.45 < float((order >= 990).float().mean()) < 0.55
    plain = plan_for(labels, ["good", "dent"], "none").order(labels, torch.Generator().manual_seed(0))
    assert sorted(plain.tolist()) == list(range(1000))


def test_focal_loss_forgets_what_is_sure():
    """By the factor (1 - p)^2 against cross entropy, here without weights."""
    labels = torch.tensor([0, 0])
    logits = torch.tensor([[4.0, 0.0], [0.0, 0.0]])
    equal = np.repeat([0, 1], 10)
    focal = plan_for(equal, ["a", "b"], "focal").loss(logits, labels, 0.0)
    p = torch.softmax(logits, 1)[:, 0]
    assert float(focal) == pytest.approx(float((-torch.log(p) * (1 - p) ** 2).mean()), rel=1e-5)


# -- the best epoch -----------------------------------------------------------------------------------


def test_the_worst_class_counts():
    """At the threshold that gives up a tenth of the good ones; of two defect classes the one that passes more."""
    classes = (*CLASSES[:2], ClassSpec(name="scratch", role="defect"))
    labels = np.repeat([0, 1, 2], [10, 4, 4])
    ok = np.array([0.5, *np.linspace(0.6, 0.9, 9), 0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.55, 0.8])
    probabilities = np.column_stack([ok, (1 - ok) / 2, (1 - ok) / 2])
    # One good one of ten may go, so that the threshold is 0.6: one of the four scratches reaches it.
    assert worst_recall(probabilities, labels, classes, 0.1) == 0.75
    assert worst_recall(probabilities, labels, classes, 0.0) == 0.5


def test_without_good_parts_the_worst_recall_of_any_class_counts():
    classes = (ClassSpec(name="a", role="defect"), ClassSpec(name="b", role="defect"))
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert worst_recall(probabilities, labels, classes, 0.1) == 0.5


@pytest.mark.parametrize("metric", ["worst-recall", "macro-recall", "accuracy", "auc", "loss"])
def test_every_metric_prefers_the_better_network(metric):
    """Fewer confusions score higher, by whatever they are counted; the table names what was chosen."""
    good = score(clear_logits(), LABELS, CLASSES, metric, 0.1)
    rng = np.random.default_rng(3)
    poor = score(clear_logits(1.0) + rng.normal(0, 2, (220, 3)), LABELS, CLASSES, metric, 0.1)
    assert good.key > poor.key
    assert metric == "loss" or metric in good.columns


# -- taking its place ---------------------------------------------------------------------------------


def fill(work, text):
    (work / MANIFEST).write_text(text)


def test_a_finished_bundle_takes_the_place_of_the_old_one(tmp_path):
    """And nothing is left beside it."""
    for text in ("first", "second"):
        with replacing(tmp_path / "bundle") as work:
            assert not list(work.iterdir())
            fill(work, text)
        assert (tmp_path / "bundle" / MANIFEST).read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_fails_half_way_changes_nothing(tmp_path):
    """Neither an error nor a bundle without a manifest takes the place of what was there."""
    with replacing(tmp_path / "bundle") as work:
        fill(work, "old")
    with contextlib.suppress(ZeroDivisionError), replacing(tmp_path / "bundle") as work:
        fill(work, "new")
        raise ZeroDivisionError
    with replacing(tmp_path / "bundle") as work:
        (work / "model.safetensors").write_text("x")
    assert (tmp_path / "bundle" / MANIFEST).read_text() == "old"
    with pytest.raises(DataError, match="No space left"), replacing(tmp_path / "bundle") as work:
        raise OSError(28, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_empty_folder_is_filled_and_other_things_are_left_alone(tmp_path):
    (tmp_path / "bundle").mkdir()
    refuse_other_things(tmp_path / "bundle")
    with replacing(tmp_path / "bundle") as work:
        fill(work, "new")
    assert (tmp_path / "bundle" / MANIFEST).read_text() == "new"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds something that is no bundle"):
        refuse_other_things(tmp_path / "thesis")
