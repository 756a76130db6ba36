"""A detector's operating point, what of it is told to people, and what its evaluation refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from square_bundle import CLASSES, DETECTOR, square_bundle

from inspectd.cli_workshop import _report_training
from inspectd.errors import UsageError
from inspectd.model.manifest import Manifest
from inspectd.model.preprocess import PreprocessSpec
from inspectd.workshop.detect.data import BoxedPictures
from inspectd.workshop.detect.operating import choose_detector_thresholds, picture_figures
from inspectd.workshop.detect.train import _calibrated
from inspectd.workshop.evaluation.evaluate import EvaluateOptions, evaluate

MANIFEST = Manifest(
    format_version=1,
    task="detect",
    architecture="fasterrcnn_resnet18_fpn",
    classes=CLASSES,
    preprocess=PreprocessSpec(width=32, height=32),
    detector=DETECTOR,
    files={},
)
BOX = (4.0, 4.0, 20.0, 20.0)


def pictures(good, bad):
    """`good` pictures without boxes and `bad` ones with a dent."""
    edges = [np.zeros((0, 4), np.float32)] * good + [np.array([BOX], np.float32)] * bad
    labels = [np.zeros(0, np.int64)] * good + [np.array([1])] * bad
    return BoxedPictures(np.zeros((good + bad, 32, 32, 3), np.uint8), tuple(edges), tuple(labels))


def found(*scores):
    """One dent of this score in each picture, none where it is 0; float32 [N, 4, 6]."""
    detections = np.zeros((len(scores), DETECTOR.max_detections, 6), np.float32)
    detections[:, :, 5] = -1
    for row, score in enumerate(scores):
        if score:
            detections[row, 0] = (*BOX, score, 1)
    return detections


def test_good_pictures_are_given_up_so_that_no_defect_passes():
    """One of ten at 0.1: the good one that looks worse than the weakest defect, not none."""
    truth = pictures(10, 10)
    detections = found(0.10, *[0.03] * 9, 0.05, *[0.9] * 9)
    chosen = choose_detector_thresholds(MANIFEST, detections, truth.labels, 0.1)
    assert chosen.pass_min == pytest.approx(0.96, abs=1e-5)
    figures = picture_figures(MANIFEST.model_copy(update={"thresholds": chosen}), detections, truth)
    assert (figures["escapes"], figures["false_rejects"]) == (0, 1)
    fewer = choose_detector_thresholds(MANIFEST, detections, truth.labels, 0.09)
    assert fewer.pass_min == pytest.approx(0.9, abs=1e-5)  # nine of a hundred of ten are none


@pytest.mark.parametrize(
    ("scores", "advice"),
    [
        ((0.0, 0.0, 0.0, 0.0), "2 validation pictures wrongly pass as no box is found in them; give more pictures, m"),
        ((0.15, 0.15, 0.1, 0.9), "1 validation pictures wrongly pass where 0% of the good ones may be given up; give"),
        ((0.0, 0.0, 0.5, 0.9), None),
    ],
)
def test_wrong_passes_that_are_known_are_told(scores, advice, capsys):
    """When the bundle is made, with what helps; nothing is said where there are none."""
    final = _calibrated(MANIFEST, found(*scores), [], pictures(2, 2), 0.0)
    said = capsys.readouterr().out
    assert ("bad_pictures_pass" in said) == (advice is not None)
    assert advice is None or advice in said
    assert (final.metrics["eager"]["operating_point"]["escapes"] > 0) == (advice is not None)


def test_the_operating_point_is_printed_at_the_end(capsys):
    """Beside the mAP, which says nothing about parts."""
    point = {"escapes": 3, "false_rejects": 1, "good": 8}
    metrics = {"openvino": {"pictures": 20, "map_50": 0.5, "operating_point": point}}
    bundle = SimpleNamespace(
        manifest=MANIFEST.model_copy(update={"metrics": metrics}), copies=("openvino",), path=Path("b"), short_hash="x"
    )
    _report_training(bundle)
    assert "mAP@0.5 50.0%; 3 wrongly passed, 1 of 8 good ones not passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (EvaluateOptions(validation=Path("/does/not/exist")), "--validation"),
        (EvaluateOptions(max_escapes=0.1), "--max"),
    ],
)
def test_what_a_detector_has_not_is_refused_and_not_left_out(options, named, tmp_path):
    """Before anything is read or written."""
    bundle = square_bundle(tmp_path / "bundle")
    with pytest.raises(UsageError, match=f"evaluate: {named}.* is for classifiers") as caught:
        evaluate(bundle.path, tmp_path / "data", tmp_path / "out", options)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()
