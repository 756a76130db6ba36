"""From a folder to a bundle: small and quick, but the whole way, and what is refused on it."""

import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from inspectd.errors import BundleError, DataError, UsageError
from inspectd.model.bundle import load_bundle
from inspectd.model.calibrate import operating_point, softmax
from inspectd.model.data import load_pictures, open_dataset
from inspectd.model.export import eager_logits, openvino_logits
from inspectd.model.network import build_network, load_weights
from inspectd.model.train import TrainOptions, train

QUICK = TrainOptions(size=32, epochs=6, batch_size=16, learning_rate=2e-3, threads=2)


def write_pictures(root, counts, seed=0, side=48):
    """Noisy grey; `stain` has a red blot, `empty` is dark."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            level = 40 if name == "empty" else 150
            picture = rng.normal(level, 12, (side, side, 3))
            if name == "stain":
                x, y = rng.integers(4, side - 24, 2)
                picture[y : y + 20, x : x + 20] = (30, 30, 220)
            cv2.imwrite(str(root / name / f"{index:03}.png"), picture.clip(0, 255).astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data"), {"good": 60, "stain": 60, "empty": 60})


@pytest.fixture(scope="module")
def bundle(data, tmp_path_factory):
    told = []
    made = train(data, tmp_path_factory.mktemp("out") / "bundle", QUICK, lambda *args: told.append(args))
    assert {stage for stage, *_ in told} == {"reading pictures", "training", "writing the bundle"}
    return made


def test_it_learns_and_says_how_well(bundle, data):
    """Every class is told apart on pictures that were not trained on; the manifest has figures and origin."""
    manifest = bundle.manifest
    assert [(c.name, c.role) for c in manifest.classes] == [("empty", "empty"), ("good", "ok"), ("stain", "defect")]
    assert manifest.metrics["eager"]["accuracy"] >= 0.95
    assert manifest.metrics["openvino"]["operating_point"]["escapes"] == 0
    assert manifest.training["data_sha256"] == open_dataset(data).fingerprint
    assert sum(manifest.training["pictures"]["val"].values()) == manifest.metrics["eager"]["pictures"]


def test_every_copy_gives_what_torch_gives(bundle, data):
    """f32 within a hundredth of the largest logit; INT8 and the processor's own precision by their top class."""
    network = build_network(bundle.manifest)
    load_weights(network, bundle.path / "model.safetensors")
    pictures = load_pictures(open_dataset(data).splits["val"], bundle.manifest.preprocess)
    eager = eager_logits(network, pictures.pixels, bundle.manifest.preprocess)
    exact = openvino_logits(bundle.copy_path("openvino"), pictures.pixels, "f32")
    assert np.abs(exact - eager).max() < 0.01 * np.abs(eager).max()
    for copy in bundle.copies:
        deployed = openvino_logits(bundle.copy_path(copy), pictures.pixels)
        assert (deployed.argmax(1) == eager.argmax(1)).mean() >= 0.95, copy


def test_the_files_can_be_read_by_another_user(bundle):
    """The daemon runs as a user of its own."""
    for name in bundle.manifest.files:
        assert (bundle.path / name).stat().st_mode & 0o044 == 0o044, name


def test_the_same_seed_gives_the_same_weights(data, tmp_path):
    """Same pictures, options and machine: the same file, byte for byte."""
    options = TrainOptions(size=32, epochs=1, batch_size=16, threads=1, int8=False)
    first = train(data, tmp_path / "a", options).manifest.files["model.safetensors"]
    assert train(data, tmp_path / "b", options).manifest.files["model.safetensors"] == first


def test_the_time_budget_ends_training_early(data, tmp_path):
    """Ten thousand epochs in two seconds: the schedule is shortened, and a bundle comes out."""
    options = TrainOptions(size=32, epochs=10_000, batch_size=16, time_budget_s=2, int8=False)
    made = train(data, tmp_path / "bundle", options)
    assert made.manifest.training["seconds"] < 30


def test_a_bundle_is_replaced_but_nothing_else_is(data, tmp_path):
    """An old bundle gives way to the new one; a folder with other things, or a file, is left alone."""
    options = TrainOptions(size=32, epochs=1, batch_size=16, int8=False)
    first = train(data, tmp_path / "bundle", options)
    second = train(data, tmp_path / "bundle", TrainOptions(size=32, epochs=1, batch_size=16, seed=5, int8=False))
    assert load_bundle(tmp_path / "bundle").sha256 == second.sha256 != first.sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds something that is no bundle"):
        train(data, tmp_path / "thesis", options)
    assert (tmp_path / "thesis" / "chapter1.txt").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        train(data, tmp_path / "file", options)


def test_a_kill_at_any_moment_leaves_no_half_made_bundle(data, tmp_path):
    """SIGKILL at several moments: what is at the path loads, or nothing is there."""
    code = (
        "import sys; from pathlib import Path; from inspectd.model.train import *;"
        "train(Path(sys.argv[1]), Path(sys.argv[2]), TrainOptions(size=32, epochs=1, batch_size=16))"
    )
    for wait_s in (3, 5, 7, 9):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(data), str(tmp_path / "bundle")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        if (tmp_path / "bundle").exists():
            load_bundle(tmp_path / "bundle")


def test_thresholds_let_no_validation_defect_pass():
    """On separable scores the operating point has neither escapes nor false rejects."""
    from inspectd.model.bundle import ClassSpec
    from inspectd.model.calibrate import choose_thresholds

    classes = [ClassSpec(name="good", role="ok"), ClassSpec(name="dent", role="defect")]
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    logits = rng.normal(0, 0.5, (200, 2)) + 6 * np.eye(2)[labels]
    probabilities = softmax(logits)
    point = operating_point(probabilities, labels, classes, choose_thresholds(probabilities, labels, classes))
    assert point == {"good": 100, "false_rejects": 0, "defects": 100, "caught": 100, "escapes": 0}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, "no"),
        ({"good": 10}, "the only class"),
        ({"good": 10, "ok": 10}, "defect"),
        ({"good": 10, "dent": 0}, "dent"),
    ],
)
def test_a_folder_that_cannot_be_learnt_from_is_refused(tmp_path, counts, expected):
    """In one line, exit code 2, before anything is trained."""
    write_pictures(tmp_path / "data", counts)
    (tmp_path / "data").mkdir(exist_ok=True)
    with pytest.raises(DataError) as caught:
        train(tmp_path / "data", tmp_path / "bundle", QUICK)
    assert caught.value.exit_code == 2
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_unreadable_pictures_are_named(tmp_path):
    write_pictures(tmp_path / "data", {"good": 8, "stain": 8})
    (tmp_path / "data" / "stain" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    with pytest.raises(DataError, match=r"broken\.png"):
        train(tmp_path / "data", tmp_path / "bundle", QUICK)


def test_options_that_make_no_sense_are_refused():
    for wrong in ({"epochs": 0}, {"learning_rate": 2.0}, {"size": 31}, {"batch_size": 1}):
        with pytest.raises(UsageError):
            TrainOptions(**wrong)


def test_weights_of_another_network_are_refused(bundle, tmp_path):
    """Strictly by name and shape."""
    from safetensors.torch import save_file

    wrong = tmp_path / "wrong.safetensors"
    import torch

    save_file({"conv1.weight": torch.zeros(1)}, wrong)
    with pytest.raises(BundleError, match="does not fit the network"):
        load_weights(build_network(bundle.manifest), wrong)


def test_train_from_the_command_line(data, tmp_path):
    """Exit 0 and the figures of each copy; a missing folder is one line and exit 2."""
    arguments = ["--weights", "none", "--size", "32", "--epochs", "2", "--batch-size", "16"]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "inspectd", "train", str(data), "-o", str(tmp_path / "bundle"), *arguments],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert "validation pictures, accuracy" in done.stdout
    assert load_bundle(tmp_path / "bundle").short_hash in done.stdout
    assert time.monotonic() - started < 110
    missing = subprocess.run(
        [sys.executable, "-m", "inspectd", "train", str(tmp_path / "none"), "-o", str(tmp_path / "b2"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert missing.returncode == 2
    assert missing.stderr.splitlines()[-1].startswith("inspectd: ")
