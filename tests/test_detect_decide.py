"""A detector's verdicts: what may pass, which boxes are told, and where in the frame they lie."""

from __future__ import annotations

import json
import math
import socket

import numpy as np
import pytest
from daemon_process import DaemonProcess, Subscriber
from hypothesis import given
from hypothesis import strategies as st
from media import write_clip
from properties import examples
from square_bundle import BLUE, RED, square_bundle

from inspectd.commission import probe_models
from inspectd.config import DecisionConfig, EngineConfig, load_settings
from inspectd.engine import select
from inspectd.engine.base import Slot
from inspectd.engine.select import make_engine
from inspectd.errors import BundleError, ConfigError
from inspectd.frame import Box
from inspectd.model.bundle import load_bundle
from inspectd.model.manifest import ClassSpec, DetectorSpec, Manifest, Thresholds
from inspectd.model.preprocess import PreprocessSpec
from inspectd.verdict.decide import MAX_BOXES, Decider, Decision
from inspectd.verdict.schema import FrameInfo, Latency, Verdict

WIDTH, HEIGHT, ROWS = 64, 32, 60
AREA = Box(100, 50, 320, 96)  # five times as wide, three times as high as the network's input


def manifest(rows: int = ROWS, **thresholds: object) -> Manifest:
    """good, and the defects dent and stain."""
    return Manifest(
        format_version=1,
        task="detect",
        architecture="fasterrcnn_resnet18_fpn",
        classes=(
            ClassSpec(name="good", role="ok"),
            ClassSpec(name="dent", role="defect"),
            ClassSpec(name="stain", role="defect"),
        ),
        preprocess=PreprocessSpec(width=WIDTH, height=HEIGHT),
        detector=DetectorSpec(
            strides=(8,), anchor_sizes=((16.0,),), aspect_ratios=(1.0,), max_detections=rows, score_floor=0.02
        ),
        thresholds=Thresholds(**thresholds),
        files={},
    )


def rows_of(*boxes: tuple[float, ...], rows: int = ROWS) -> np.ndarray:
    """Detections of (left, top, right, bottom, score, label), padded."""
    detections = np.zeros((rows, 6), np.float32)
    detections[:, 5] = -1
    for index, box in enumerate(boxes):
        detections[index] = box
    return detections


def decide(*boxes: tuple[float, ...], area: Box | None = AREA, rows: int = ROWS, **thresholds: object) -> Decision:
    return Decider(manifest(rows, **thresholds), DecisionConfig()).decide(rows_of(*boxes, rows=rows), area)


def box(score: float, label: int = 1) -> tuple[float, ...]:
    return (8, 4, 16, 12, score, label)


def test_a_box_at_its_threshold_fails_and_the_worst_is_named() -> None:
    decision = decide(box(0.4, 1), box(0.7, 2), box(0.9, 1), fail={"dent": 0.95, "stain": 0.6})
    assert (decision.verdict, decision.label) == ("fail", "stain")
    assert decision.score == pytest.approx(0.7)
    assert decision.scores == pytest.approx({"good": 0.1, "dent": 0.9, "stain": 0.7})


def test_no_box_passes_as_good() -> None:
    """The score is what the strongest defect leaves of 1."""
    assert decide() == Decision("pass", None, "good", 1.0, {"good": 1.0, "dent": 0.0, "stain": 0.0})
    weak = decide(box(0.15))
    assert (weak.verdict, weak.label, weak.boxes) == ("pass", "good", ())
    assert weak.score == weak.scores["good"] == pytest.approx(0.85)


def test_a_box_between_the_thresholds_is_uncertain_and_shown() -> None:
    decision = decide(box(0.3, 2), pass_min=0.8, fail_default=0.5)
    assert (decision.verdict, decision.reason, decision.label) == ("no_result", "uncertain", "stain")
    assert [found.label for found in decision.boxes] == ["stain"]


def test_a_full_list_that_may_hide_a_failing_box_never_passes() -> None:
    """Three weak stains fill the list; a dent just below them would fail, and cannot be seen."""
    full = [box(0.15, 2)] * 3
    assert decide(*full, rows=3, fail={"dent": 0.1, "stain": 0.9}).reason == "uncertain"
    assert decide(*full, rows=3, fail={"dent": 0.16, "stain": 0.9}).verdict == "pass"
    assert decide(*full, rows=4, fail={"dent": 0.1, "stain": 0.9}).verdict == "pass"


@pytest.mark.parametrize(
    "row",
    [
        (8, 4, 16, 12, 1.5, 1),
        (8, 4, 16, 12, -0.5, 1),
        (8, 4, 16, 12, 0.1, 0),
        (8, 4, 16, 12, 0.1, 3),
        (8, 4, 16, 12, 0.1, 1.5),
        (8, 4, 16, 12, 0.1, -2),
        (8, 4, 16, 12, 0.1, -1),
        (16, 4, 8, 12, 0.1, 1),
        (8, 12, 16, 4, 0.1, 1),
        (math.nan, 4, 16, 12, 0.1, 1),
        (8, 4, math.inf, 12, 0.1, 1),
        (8, 4, 16, 12, math.nan, 1),
        (8, 4, 16, 12, 0.1, math.nan),
    ],
)
def test_a_row_that_makes_no_sense_decides_nothing(row: tuple[float, ...]) -> None:
    """Also beside a sound one that would fail."""
    assert decide(row) == decide(box(0.9), row) == Decision("no_result", "engine_error")


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 5), (ROWS - 1, 6), (1, ROWS, 6), (0, 6), ()])
def test_the_wrong_shape_decides_nothing(shape: tuple[int, ...]) -> None:
    decision = Decider(manifest(), DecisionConfig()).decide(np.full(shape, -1, np.float32), AREA)
    assert decision == Decision("no_result", "engine_error")


def test_boxes_are_told_in_frame_pixels_of_a_roi_anywhere() -> None:
    """The ROI lies at (100, 50) and is stretched by 5 across and 3 down; what leaves it is cut at its edge."""
    decision = decide((8, 4, 16, 12, 0.9, 1), (60, -3, 70, 40, 0.8, 2))
    assert [(found.label, found.box) for found in decision.boxes] == [
        ("dent", (140.0, 62.0, 40.0, 24.0)),
        ("stain", (400.0, 50.0, 20.0, 96.0)),
    ]


def test_without_a_place_boxes_are_in_network_pixels() -> None:
    """For evaluation, which has no frame."""
    assert decide((8, 4, 16, 12, 0.9, 1), area=None).boxes[0].box == (8.0, 4.0, 8.0, 8.0)


def test_boxes_are_strongest_first_and_not_too_many() -> None:
    """Doubtful ones make room for those that failed the part, also when these are weaker."""
    doubtful = [box(0.30 + index / 1000, 2) for index in range(55)]
    decision = decide(*doubtful, box(0.25, 1), fail={"dent": 0.25, "stain": 0.9})
    told = [found.score for found in decision.boxes]
    assert told == sorted(told, reverse=True)
    assert len(told) == MAX_BOXES
    assert decision.boxes[-1].label == "dent"
    assert told[0] == pytest.approx(0.354)


def test_weak_boxes_are_told_only_where_they_decide() -> None:
    """Below the display floor: the strongest of those that kept it from passing, and every one that failed it."""
    weak = [box(0.05 + index / 1000, 2) for index in range(10)]
    uncertain = decide(*weak, pass_min=0.97)
    assert (uncertain.reason, [found.score for found in uncertain.boxes]) == ("uncertain", [pytest.approx(0.059)])
    failed = decide(*weak, pass_min=0.97, fail={"stain": 0.0575})
    assert [found.score for found in failed.boxes] == pytest.approx([0.059, 0.058])
    shown = decide(*weak, box(0.3, 2), pass_min=0.97)
    assert [found.score for found in shown.boxes] == [pytest.approx(0.3)]


def test_every_box_that_failed_the_part_is_told() -> None:
    """However many they are."""
    assert len(decide(*[box(0.9)] * 58).boxes) == 58


coordinate = st.floats(-20, 90, width=32)
extent = st.floats(0, 60, width=32)
row = st.tuples(coordinate, coordinate, extent, extent, st.floats(0, 1, width=32), st.integers(1, 2)).map(
    lambda r: (r[0], r[1], r[0] + r[2], r[1] + r[3], r[4], r[5])
)


@examples(150)
@given(st.lists(row, max_size=8), st.floats(0.03, 1), st.floats(0.03, 1), st.floats(0.51, 0.98))
def test_whatever_the_boxes_the_rule_holds(boxes: list, dent: float, stain: float, pass_min: float) -> None:
    """Failing boxes fail and are told, a pass has none that doubts it, and every decision can be published."""
    limits = {1: dent, 2: stain}
    decision = decide(*boxes, fail={"dent": dent, "stain": stain}, pass_min=pass_min)
    failing = [b for b in boxes if b[4] >= limits[b[5]] + 1e-6]
    if failing:
        assert decision.verdict == "fail"
        assert len([b for b in decision.boxes if b.score >= limits[1 + (b.label == "stain")] - 1e-6]) >= len(failing)
    if decision.verdict == "pass":
        assert all(b[4] < limits[b[5]] and b[4] < 1 - pass_min + 1e-9 for b in boxes)
    for found in decision.boxes:
        x, y, width, height = found.box
        assert AREA.x - 0.01 <= x <= x + width <= AREA.x + AREA.width + 0.02
        assert AREA.y - 0.01 <= y <= y + height <= AREA.y + AREA.height + 0.02
    Verdict(
        boot_id="b",
        seq=1,
        camera="c",
        roi="r",
        verdict=decision.verdict,
        reason=decision.reason,
        label=decision.label,
        score=decision.score,
        scores=decision.scores,
        boxes=decision.boxes,
        frame=FrameInfo(index=0, pts=None, clock="arrival"),
        captured_at=None,
        published_at="2026-01-31T12:00:00.000000Z",
        latency_ms=Latency(decode=0, queue=0, engine=0, total=0),
        model="m",
        config="c",
    )


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"pass_min": 0.99}, "pass_min: 0.99"),
        ({"fail_default": 0.01}, "fail_default: 0.01"),
        ({"fail": {"dent": 0.01}}, "fail.dent: 0.01"),
        ({"fail": {"good": 0.5}}, "fail.good: no defect class"),
    ],
)
def test_a_threshold_that_nobody_could_keep_is_refused(overrides: dict, key: str) -> None:
    """Boxes below the detector's floor are never seen, so nothing may hang on them."""
    with pytest.raises(ConfigError, match=rf"decision\.{key}"):
        Decider(manifest(), DecisionConfig(**overrides))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detector": None}, "needs architecture"),
        ({"task": "classify"}, "those of a detector"),
        ({"classes": [{"name": "dent", "role": "defect"}, {"name": "good", "role": "ok"}]}, "first class"),
        ({"thresholds": {"pass_min": 0.99}}, "not given out"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Manifest.model_validate(manifest().model_dump() | change)


def test_a_classifier_manifest_says_nothing_of_detectors(tmp_path) -> None:
    """So that an inspectd from before there were any still reads it; a detector's is read back whole."""
    from colour_bundle import colour_bundle

    colour_bundle(tmp_path / "classifier")
    assert "detector" not in json.loads((tmp_path / "classifier" / "bundle.json").read_text())
    detector = square_bundle(tmp_path / "detector")
    assert load_bundle(tmp_path / "detector").manifest == detector.manifest


def test_the_engine_gives_each_picture_its_own_boxes(tmp_path) -> None:
    """Four pictures in flight, float32 [4, 4, 6]."""
    engine = make_engine(square_bundle(tmp_path), EngineConfig(precision="f32", threads=2))
    memory = engine.allocate(4)
    engine.warm_up()
    for index in range(4):
        memory[index, 10 : 20 + index, 5:15] = RED
    engine.submit([Slot(index, memory[index]) for index in range(4)], lambda slots: None)
    detections = engine.collect()
    engine.close()
    assert detections.shape == (4, 4, 6)
    np.testing.assert_allclose(
        detections[:, 0], [[5, 10, 15, 20 + index, 0.9, 1] for index in range(4)], rtol=0, atol=1e-6
    )
    assert (detections[:, 1:, 5] == -1).all()


def test_a_detector_of_another_length_is_refused(tmp_path) -> None:
    bundle = square_bundle(tmp_path)
    text = (tmp_path / "bundle.json").read_text().replace('"max_detections": 4', '"max_detections": 5')
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=r"lists 5 detections of 6 values: f32 \[1, 5, 6\]"):
        make_engine(load_bundle(bundle.path), EngineConfig(device="cpu"))


def test_a_detector_runs_on_the_cpu_only(tmp_path, monkeypatch) -> None:
    """`auto` says so, `cuda` is refused by its key; whether there is a GPU makes no difference."""
    monkeypatch.setattr(select, "_NVIDIA_SIGNS", (tmp_path,))
    bundle = square_bundle(tmp_path / "bundle")
    engine = make_engine(bundle, EngineConfig(device="auto"))
    assert (engine.info.device, engine.info.name) == ("cpu", "openvino")
    assert "a detector runs on the CPU" in engine.info.why
    engine.close()
    with pytest.raises(ConfigError, match=r"engine\.device: cuda:0: bundle is a detector, which runs on the CPU only"):
        make_engine(bundle, EngineConfig(device="cuda:0"))


def test_check_probe_lets_the_detector_judge_a_picture(tmp_path) -> None:
    """`inspectd check --probe` says what would run, and that its output is whole."""
    bundle = square_bundle(tmp_path / "bundle")
    (tmp_path / "config.toml").write_text(
        """
[model]
bundle = "bundle"
[[cameras]]
name = "line"
source = "usb:0"
[[cameras.rois]]
name = "part"
box = [0, 0, 64, 48]
"""
    )
    (finding,) = probe_models(load_settings(tmp_path / "config.toml"), {bundle.path: bundle})
    assert finding.problem is None
    assert "a detector runs on the CPU" in finding.text
    assert "good (ok), dent (defect), stain (defect)" in finding.text


def truth(index: int) -> dict[str, tuple[int, int, int, int]]:
    """Boxes that frame `index` shows: at most one of each class, [x, y, width, height] in frame pixels."""
    shown = {}
    if index % 3:
        shown["dent"] = (110 + 4 * (index % 20), 70 + 2 * (index % 7), 30, 20)
    if index % 4 == 1:
        shown["stain"] = (240, 100 + index % 30, 16, 24)
    return shown


def test_the_daemon_tells_the_box_of_every_frame_where_it_is(tmp_path) -> None:
    """A recording with a ROI that is neither square nor in the corner: each verdict, and each box within 4 pixels."""
    square_bundle(tmp_path / "bundle")

    def picture(index: int) -> np.ndarray:
        rgb = np.full((240, 320, 3), 128, np.uint8)
        for name, (x, y, width, height) in truth(index).items():
            rgb[y : y + height, x : x + width] = RED if name == "dent" else BLUE
        return rgb

    write_clip(tmp_path / "clip.mp4", 120, size=(320, 240), picture=picture, barcode=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
[model]
bundle = "bundle"
[control]
bind = "tcp://127.0.0.1:*"
[publish]
bind = "tcp://127.0.0.1:{port}"
[http]
bind = "127.0.0.1:0"
[log]
format = "json"
[[cameras]]
name = "line"
source = "file:clip.mp4?realtime=1"
[[cameras.rois]]
name = "part"
box = [100, 60, 190, 96]
"""
    )
    with Subscriber(f"tcp://127.0.0.1:{port}") as subscriber, DaemonProcess(config) as daemon:
        subscriber.until(lambda m: m["topic"].startswith("heartbeat/") and m["state"] == "fault", 40)
        assert daemon.process.wait(10) == 0
    live = {m["frame"]["index"]: m for m in subscriber.verdicts if not m["replayed"]}
    assert len(live) >= 60
    for index, message in live.items():
        shown = truth(index)
        assert message["verdict"] == ("fail" if shown else "pass"), index
        assert {found["label"] for found in message["boxes"]} == set(shown)
        for found in message["boxes"]:
            assert np.abs(np.subtract(found["box"], shown[found["label"]])).max() <= 4, (index, found)
