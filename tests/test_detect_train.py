"""A detector from drawn pictures to the daemon's engine and a report: every step is the real one."""

from __future__ import annotations

import json
import shutil
from contextlib import closing

import numpy as np
import pytest
import torch
from drawn_boxes import write_coco, write_pictures, write_voc
from other_processor import widest_weight
from safetensors.torch import load_file

from inspectd.config import EngineConfig
from inspectd.engine.base import Slot
from inspectd.engine.select import make_engine
from inspectd.errors import DataError, UsageError
from inspectd.model.bundle import load_bundle, write_manifest
from inspectd.model.manifest import DetectorSpec
from inspectd.model.network import build_resnet18, load_weights, save_weights
from inspectd.model.runtime import import_openvino
from inspectd.workshop.detect import evaluate as evaluation
from inspectd.workshop.detect.anchors import USUAL, choose_anchors
from inspectd.workshop.detect.augment import BoxAugmenter
from inspectd.workshop.detect.convert import convert_detector, openvino_detections
from inspectd.workshop.detect.data import BoxedPictures, load_boxes, open_boxes
from inspectd.workshop.detect.evaluate import evaluate_detector
from inspectd.workshop.detect.gate import agreement, judge_detector_copy
from inspectd.workshop.detect.network import Detector, build_detector, load_body
from inspectd.workshop.detect.operating import choose_detector_thresholds, picture_figures
from inspectd.workshop.detect.precision import average_precision
from inspectd.workshop.detect.task import predict
from inspectd.workshop.detect.train import train_detector
from inspectd.workshop.evaluation import latency
from inspectd.workshop.evaluation.evaluate import EvaluateOptions
from inspectd.workshop.export import export_copy
from inspectd.workshop.options import TrainOptions

QUICK = TrainOptions(task="detect", size=64, epochs=4, batch_size=6, threads=1, augment="none", ema_decay=0.9)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_coco(root / "annotations.json", write_pictures(root / "pictures", 30, good=6))
    return root


@pytest.fixture(scope="module")
def rows():
    return []


@pytest.fixture(scope="module")
def bundle(data, rows, tmp_path_factory):
    return train_detector(data, tmp_path_factory.mktemp("out") / "bundle", QUICK, on_epoch=rows.append)


@pytest.fixture(scope="module")
def val(bundle, data):
    return load_boxes(open_boxes(data).splits["val"], bundle.manifest.preprocess)


@pytest.fixture(scope="module")
def network(bundle):
    network = build_detector(bundle.manifest)
    load_weights(network, bundle.path / "model.safetensors")
    return network.eval()


@pytest.fixture(scope="module")
def eager(bundle, network, val):
    return predict(network, val.pixels, bundle.manifest.preprocess, bundle.manifest.detector, torch.device("cpu"))


def test_it_learns_and_says_how_well(bundle, rows, data):
    """From nothing: most boxes are found, no defect passes on validation, and the manifest has it all."""
    manifest = bundle.manifest
    assert [(c.name, c.role) for c in manifest.classes] == [("good", "ok"), ("disc", "defect"), ("square", "defect")]
    assert manifest.metrics["eager"]["map_50"] >= 0.25
    assert manifest.metrics["eager"]["operating_point"]["escapes"] == 0
    assert len(rows) == QUICK.epochs
    assert rows[-1]["mAP@0.5"] > rows[0]["mAP@0.5"]
    assert manifest.training["data_sha256"] == open_boxes(data).fingerprint
    assert {"chosen", "usual"} == set(manifest.training["anchors"])
    assert not bundle.path.with_name("bundle.run").exists()


@pytest.mark.soak
def test_the_exact_copy_finds_what_torch_finds(bundle, network, val, eager):
    """In float32, weights not shortened: every strong box, within half a pixel; and hardly any in an even picture."""
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = import_openvino().Core().compile_model(convert_detector(network, bundle.manifest), "CPU", settings)
    alike = agreement(eager, np.concatenate([compiled(val.pixels[i : i + 1])[0].copy() for i in range(len(val))]))
    assert alike["found"] == 1.0
    assert alike["edge_difference"] <= 0.5
    assert alike["score_difference"] <= 0.01
    blank = np.full((1, 64, 64, 3), 128, np.uint8)
    assert (compiled(blank)[0][0, :, 4] < 0.5).all()


def test_every_copy_that_ships_was_held_against_torch(bundle, val, eager):
    """Its mAP is at most a point lower, and no picture more passes."""
    assert "openvino" in bundle.copies
    for copy in bundle.copies:
        found = openvino_detections(bundle.copy_path(copy), val.pixels)
        assert judge_detector_copy(copy, eager, found, bundle.manifest, val).problems == ()
        assert bundle.manifest.metrics["gate"][copy]["passed"]


def test_a_copy_that_finds_less_is_refused(bundle, val, eager):
    """Without its strongest boxes it lets defects pass, and says how many; without numbers it says that."""
    weak = eager.copy()
    weak[:, :, 4] *= 0.1
    weak[weak[:, :, 5] < 0, 4] = 0
    problems = judge_detector_copy("openvino", eager, weak, bundle.manifest, val).problems
    assert any("would wrongly pass, 0 with torch" in problem for problem in problems)
    weak[0, 0, 0] = np.nan
    assert judge_detector_copy("openvino", eager, weak, bundle.manifest, val).problems == (
        "some detections are no numbers",
    )


def test_the_engine_of_the_daemon_gives_the_boxes_of_the_copy(bundle, val):
    """Several pictures in flight, each with its own boxes, the same as when it runs alone."""
    copy = "openvino-int8" if "openvino-int8" in bundle.copies else "openvino"
    alone = openvino_detections(bundle.copy_path(copy), val.pixels[:4])
    with closing(make_engine(bundle, EngineConfig(device="cpu", threads=2))) as engine:
        memory = engine.allocate(4)
        engine.warm_up()
        memory[:] = val.pixels[:4]
        engine.submit([Slot(index, memory[index]) for index in range(4)], lambda slots: None)
        np.testing.assert_allclose(engine.collect(), alone, atol=1e-3)


def test_int8_leaves_room_for_sums_on_processors_without_vnni(bundle):
    """As a classifier's copy does."""
    assert 0 < widest_weight(bundle.copy_path("openvino-int8")) <= 64


def test_a_bundle_is_evaluated_into_a_page_and_figures(bundle, tmp_path, capsys, monkeypatch):
    """On pictures that it never saw; the page needs nothing from elsewhere."""
    monkeypatch.setattr(latency, "_LEAST", 5)
    write_voc(tmp_path / "data" / "annotations", write_pictures(tmp_path / "data" / "p", 12, good=6, seed=7))
    report = evaluate_detector(
        bundle, tmp_path / "data", tmp_path / "out", EvaluateOptions(threads=1, latency_s=0.1), lambda *args: None
    )
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["copies"][0]["map50"] == report.copies[0].map50 >= 0.2
    assert [copy.name for copy in report.copies] == ["torch", *bundle.copies]
    assert sum(sum(row.values()) for row in report.headline.verdicts.by_class.values()) == report.data.pictures
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/jpeg") == 2 * len(report.worst) > 0
    assert 'src="http' not in page
    assert "pictures with a defect passed" in capsys.readouterr().out


def test_pictures_that_made_it_do_not_judge_it(bundle, data, tmp_path, monkeypatch):
    """Refused by name; `val` may be looked at, and the report says what it is."""
    with pytest.raises(UsageError, match=r"36 of 36 pictures made this bundle: .*\.png \((trained|chose its thresh)"):
        evaluate_detector(bundle, data, tmp_path / "out", EvaluateOptions(), lambda *args: None)
    monkeypatch.setattr(evaluation, "_latencies", lambda *args: ())  # slow, and of no interest here
    options = EvaluateOptions(split="val", threads=1)
    report = evaluate_detector(bundle, data, tmp_path / "out", options, lambda *args: None)
    assert report.data.pictures == 7
    assert report.concerns[0].text.startswith("Validation data: not a test")


def test_a_run_that_was_killed_goes_on_with_the_same_steps(tmp_path):
    """Interrupted after its first epoch it refuses to start over unasked; resumed it ends as an unbroken run does."""
    write_coco(tmp_path / "data" / "annotations.json", write_pictures(tmp_path / "data" / "p", 10, seed=2))
    options = TrainOptions(task="detect", size=32, epochs=2, batch_size=4, threads=1, int8=False)

    def stop_after(epoch):
        def on_epoch(row):
            if row["epoch"] == epoch:
                raise KeyboardInterrupt

        return on_epoch

    def train(name, epoch, **keys):
        with pytest.raises(KeyboardInterrupt):
            train_detector(tmp_path / "data", tmp_path / name, options, on_epoch=stop_after(epoch), **keys)
        return load_file(tmp_path / f"{name}.run" / "last.safetensors")

    train("broken", 1)
    assert not (tmp_path / "broken").exists()
    with pytest.raises(UsageError, match="--resume"):
        train_detector(tmp_path / "data", tmp_path / "broken", options)
    broken, whole = train("broken", 2, resume=True), train("whole", 2)
    assert broken.keys() == whole.keys()
    assert all(torch.equal(broken[name], whole[name]) for name in whole)


def test_a_head_alone_makes_no_detector(data, tmp_path):
    with pytest.raises(UsageError, match="--stages head is for classifiers"):
        train_detector(data, tmp_path / "bundle", TrainOptions(task="detect", stages="head"))


def test_a_classifier_lends_its_body(tmp_path):
    """Every tensor of the ResNet but the head comes over; another network's weights are refused."""
    donor = build_resnet18(5)
    save_weights(donor, tmp_path / "model.safetensors")
    detector = Detector(DetectorSpec(strides=(16, 32), anchor_sizes=((64.0,), (128.0,)), aspect_ratios=(1.0,)), 3)
    load_body(detector, tmp_path / "model.safetensors")
    body = detector.backbone.body.state_dict()
    assert all(torch.equal(body[name], tensor) for name, tensor in donor.state_dict().items() if name[:3] != "fc.")
    save_weights(torch.nn.Linear(2, 2), tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="not the weights of a ResNet18"):
        load_body(detector, tmp_path / "other.safetensors")


def boxes_like(sizes, ratios, side=224, seed=0):
    """Boxes [N, 4] of these sizes and ratios with some spread, anywhere in the picture."""
    rng = np.random.default_rng(seed)
    size, ratio = (rng.choice(values, 400) * rng.lognormal(0, 0.05, 400) for values in (sizes, ratios))
    width, height = size / np.sqrt(ratio), size * np.sqrt(ratio)
    left, top = rng.uniform(0, side - width), rng.uniform(0, side - height)
    return np.stack([left, top, left + width, top + height], axis=1)


def test_anchors_look_like_the_boxes():
    """Long scratches and small dents: the chosen ones overlap far better than the usual ones, also on other boxes."""
    shapes = ([14.0, 60.0], [0.25, 4.0])
    anchors = choose_anchors(boxes_like(*shapes))
    own, usual = (a.fit(boxes_like(*shapes, seed=1), 224, 224) for a in (anchors, USUAL))
    assert own["recall_at_0.5"] > usual["recall_at_0.5"] + 0.3
    assert own["mean_best_iou"] > 0.6
    assert anchors.strides[0] == 4
    assert choose_anchors(boxes_like([90.0], [1.0])).strides == (8, 16, 32)
    assert choose_anchors(np.array([[10.0, 10.0, 40.0, 40.0]])).ratios == (1.0,)  # a single box
    assert min(map(min, choose_anchors(boxes_like([0.01], [1.0])).sizes)) >= 1  # of next to nothing


@pytest.mark.parametrize("preset", ["industrial", "texture"])
def test_boxes_move_with_what_they_are_around(preset):
    """In every augmented picture the bright patch lies where its box says; the same seed does the same."""
    pixels = np.full((40, 48, 64, 3), 40, np.uint8)
    pixels[:, 10:22, 30:54] = 220
    edges, labels = [np.array([[30, 10, 54, 22]], np.float32)] * 40, [np.array([2], np.int64)] * 40
    results = [
        BoxAugmenter(preset)(pixels, list(edges), list(labels), torch.Generator().manual_seed(3)) for _ in range(2)
    ]
    moved, found, names = results[0]
    np.testing.assert_array_equal(moved, results[1][0])
    assert sum(len(own) for own in found) >= 30
    assert len({own.tobytes() for own in found}) > 30
    for picture, own, label in zip(moved, found, names, strict=True):
        assert len(own) == len(label)
        for left, top, right, bottom in own:
            ys, xs = np.nonzero(picture[:, :, 0] > 130)
            seen = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert np.abs(np.subtract(seen, [left, top, right, bottom])).max() <= 1.5


@pytest.mark.parametrize("width", [0.5, 2.0, 2.9])
def test_a_narrow_box_is_learnt(width):
    """A scratch of two pixels keeps its box in every crop that has all of it; background it is never."""
    edges, labels = np.array([[110, 60, 110 + width, 160]], np.float32), np.array([1])
    pixels = np.zeros((100, 224, 224, 3), np.uint8)
    _, found, _ = BoxAugmenter("industrial")(pixels, [edges] * 100, [labels] * 100, torch.Generator().manual_seed(0))
    assert [len(own) for own in found] == [1] * 100
    assert min(float(own[0, 2] - own[0, 0]) for own in found) >= width * 0.99


def truth_of(boxes, labels, side=32):
    """One picture per list of boxes."""
    count = len(boxes)
    return BoxedPictures(
        np.zeros((count, side, side, 3), np.uint8),
        tuple(np.array(own, np.float32).reshape(-1, 4) for own in boxes),
        tuple(np.array(own, np.int64) for own in labels),
    )


def found_of(*pictures, rows=4):
    detections = np.zeros((len(pictures), rows, 6), np.float32)
    detections[:, :, 5] = -1
    for index, boxes in enumerate(pictures):
        for place, box in enumerate(boxes):
            detections[index, place] = box
    return detections


def test_average_precision_is_what_the_hand_computes(bundle):
    """Two discs, one found surely, one missed, a false one between: precision 1 up to recall one half."""
    truth = truth_of([[[0, 0, 10, 10]], [[5, 5, 15, 15]], []], [[1], [1], []])
    found = found_of([(0, 0, 10, 10, 0.9, 1)], [], [(20, 20, 30, 30, 0.5, 1)])
    figures = average_precision(truth, found, bundle.manifest.classes)
    assert figures.per_class["disc"][0] == pytest.approx(51 / 101)
    assert figures.per_class["square"] == (None, None)
    assert figures.map50 == pytest.approx(51 / 101)
    nothing = average_precision(truth, found_of([], [], []), bundle.manifest.classes)
    assert (nothing.map50, nothing.map) == (0.0, 0.0)


def test_thresholds_let_no_validation_defect_pass(bundle):
    """Between the weakest defect (0.3) and the strongest box on a good part (0.1); the figures count by that."""
    truth = truth_of([[[0, 0, 10, 10]], [[0, 0, 10, 10]], [], []], [[1], [2], [], []])
    found = found_of(
        [(0, 0, 10, 10, 0.9, 1)], [(0, 0, 10, 10, 0.3, 2)], [(0, 0, 10, 10, 0.1, 1)], [(0, 0, 9, 9, 0.05, 2)]
    )
    manifest = bundle.manifest.model_copy(update={"detector": bundle.manifest.detector.model_copy(
        update={"max_detections": 4})})  # fmt: skip
    thresholds = choose_detector_thresholds(manifest, found, truth.labels, 0.0)
    assert thresholds.pass_min == pytest.approx(0.8)
    assert thresholds.fail == {"disc": 0.5, "square": pytest.approx(0.175)}
    figures = picture_figures(manifest.model_copy(update={"thresholds": thresholds}), found, truth)
    assert (figures["escapes"], figures["false_rejects"], figures["caught"]) == (0, 0, 2)
    blind = found_of([(0, 0, 10, 10, 0.9, 1)], [], [], [])
    figures = picture_figures(manifest.model_copy(update={"thresholds": thresholds}), blind, truth)
    assert (figures["escapes"], figures["escaped_by_class"]) == (1, {"disc": 0, "square": 1})


@pytest.mark.soak
def test_a_copy_is_added_later_behind_the_same_gate(bundle, data, tmp_path):
    """Into a new bundle; torch's own file too. What a detector cannot have is refused."""
    slim = tmp_path / "slim"
    shutil.copytree(bundle.path, slim, ignore=shutil.ignore_patterns("openvino*", "bundle.json"))
    write_manifest(slim, bundle.manifest)
    outcome = export_copy(slim, "openvino", data, tmp_path / "new", lambda *args: None)
    assert outcome.passed, outcome.lines
    assert load_bundle(tmp_path / "new").copies == ("openvino",)
    assert load_bundle(slim).copies == ()
    assert export_copy(slim, "torch", None, tmp_path / "w.safetensors", lambda *args: None).passed
    assert load_file(tmp_path / "w.safetensors").keys() == load_file(slim / "model.safetensors").keys()
    with pytest.raises(UsageError, match="--to onnx is for classifiers"):
        export_copy(slim, "onnx", data, None, lambda *args: None)
    write_coco(tmp_path / "other" / "annotations.json", write_pictures(tmp_path / "other", 4, seed=3))
    with pytest.raises(DataError, match=r"pictures that made .* are not there"):
        export_copy(slim, "openvino", tmp_path / "other", None, lambda *args: None)
