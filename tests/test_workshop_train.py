"""From a folder to a bundle: small and quick, but the whole way, and what is refused on it."""

import contextlib
import io
import re
import shutil
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from made_once import made_once
from other_processor import answers, widest_weight

from inspectd.cli import main
from inspectd.errors import BundleError, DataError, InspectdError, UsageError
from inspectd.model.bundle import WEIGHTS, load_bundle, write_manifest
from inspectd.model.calibrate import fit_temperature, operating_point, softmax
from inspectd.model.data import load_pictures, open_dataset
from inspectd.model.export import eager_logits, openvino_logits
from inspectd.model.network import build_network, load_weights
from inspectd.workshop import copies, gate
from inspectd.workshop.checkpoint import RunFolder
from inspectd.workshop.distributed import World
from inspectd.workshop.export import export_copy
from inspectd.workshop.options import TrainOptions
from inspectd.workshop.train import train
from inspectd.workshop.training import refuse_uneven

QUICK = TrainOptions(size=32, epochs=6, batch_size=16, learning_rate=2e-3, threads=1)


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


def quick_bundle(tmp_path_factory):
    """The folder of pictures and the bundle that QUICK trained on them, made once for all files of tests."""

    def make(folder):
        write_pictures(folder / "data", {"good": 60, "stain": 60, "empty": 60})
        train(folder / "data", folder / "bundle", QUICK)

    made = made_once(tmp_path_factory, "quick-bundle", make)
    return made / "data", load_bundle(made / "bundle")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return quick_bundle(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return quick_bundle(tmp_path_factory)[1]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """For what does not depend on how well was learned: three steps are an epoch."""
    return write_pictures(tmp_path_factory.mktemp("few"), {"good": 20, "stain": 20, "empty": 20})


@pytest.fixture
def _hasty_int8(monkeypatch):
    """Ranges from a few pictures, where it is not the INT8 copy that is tested."""
    monkeypatch.setattr(copies, "CALIBRATION_PICTURES", 24)


def test_it_learns_and_says_how_well(bundle, data):
    """Every class is told apart on pictures that were not trained on; the manifest has figures and origin."""
    manifest = bundle.manifest
    assert [(c.name, c.role) for c in manifest.classes] == [("empty", "empty"), ("good", "ok"), ("stain", "defect")]
    assert manifest.metrics["eager"]["accuracy"] >= 0.95
    assert manifest.metrics["openvino"]["operating_point"]["escapes"] == 0
    assert manifest.training["data_sha256"] == open_dataset(data).fingerprint
    assert sum(manifest.training["pictures"]["val"].values()) == manifest.metrics["eager"]["pictures"]


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["f32", "bf16", "fp16"])
def test_a_gpu_learns_as_well_as_the_processor(data, tmp_path, precision):
    """Same pictures and options on CUDA, in each precision (fp16 scales its gradients): as good, in its copies too."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    options = replace(QUICK, device="cuda", precision=precision, int8=False)
    metrics = train(data, tmp_path / "bundle", options).manifest.metrics
    assert metrics["eager"]["accuracy"] >= 0.95
    assert metrics["openvino"]["operating_point"]["escapes"] == 0


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


@pytest.mark.soak
def test_the_same_seed_gives_the_same_weights(few, tmp_path):
    """Same pictures, options and machine: the same file, byte for byte. What it does is told on the way."""
    options, told = TrainOptions(size=32, epochs=1, batch_size=16, threads=1, int8=False), set()
    first = train(few, tmp_path / "a", options, lambda stage, *_: told.add(stage)).manifest.files["model.safetensors"]
    assert told == {"reading pictures", "training", "writing the bundle"}
    assert train(few, tmp_path / "b", options).manifest.files["model.safetensors"] == first


@pytest.mark.soak
def test_the_time_budget_ends_training_early(few, tmp_path):
    """Ten thousand epochs in two seconds: the schedule is shortened, and a bundle comes out."""
    options = TrainOptions(size=32, epochs=10_000, batch_size=16, time_budget_s=2, int8=False, threads=1)
    made = train(few, tmp_path / "bundle", options)
    assert made.manifest.training["seconds"] < 30


def test_a_bundle_is_replaced_but_nothing_else_is(few, tmp_path, monkeypatch):
    """An old bundle gives way to the new one, unless no copy of that passes its gate; a folder with other things, or
    a file, is left alone."""
    options = TrainOptions(size=32, epochs=1, batch_size=16, int8=False, threads=1)
    first = train(few, tmp_path / "bundle", options)
    second = train(few, tmp_path / "bundle", replace(options, seed=5))
    assert load_bundle(tmp_path / "bundle").sha256 == second.sha256 != first.sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle"]
    monkeypatch.setitem(gate.TOLERANCE, "openvino", 1e-9)
    with pytest.raises(InspectdError, match="no copy of the new model passed its gate") as caught:
        train(few, tmp_path / "bundle", options)
    assert caught.value.exit_code == 1
    assert load_bundle(tmp_path / "bundle").sha256 == second.sha256
    assert RunFolder.beside(tmp_path / "bundle", {}).exists
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds something that is no bundle"):
        train(few, tmp_path / "thesis", options)
    assert (tmp_path / "thesis" / "chapter1.txt").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        train(few, tmp_path / "file", options)
    with pytest.raises(UsageError, match="lies among the pictures"):
        train(few, few / "bundle", options)


def test_an_unfinished_run_is_only_touched_when_told(few, tmp_path):
    """Neither silently continued nor silently thrown away; and what is not there cannot be resumed."""
    options = TrainOptions(size=32, epochs=4, batch_size=16, threads=1, int8=False)

    class StopHereError(Exception):
        pass

    def stop(row):
        if row["epoch"] == 2:
            with pytest.raises(UsageError, match="another training is at work"):
                train(few, tmp_path / "bundle", options, restart=True)
            raise StopHereError

    with pytest.raises(StopHereError):
        train(few, tmp_path / "bundle", options, on_epoch=stop)
    with pytest.raises(UsageError, match=r"--resume.*--restart"):
        train(few, tmp_path / "bundle", options)
    with pytest.raises(DataError, match="had epochs 4, now it is 5"):
        train(few, tmp_path / "bundle", replace(options, epochs=5), resume=True)
    with pytest.raises(DataError, match='had stages "auto", now it is "head"'):
        train(few, tmp_path / "bundle", replace(options, stages="head"), resume=True)
    rows = []
    train(few, tmp_path / "bundle", options, resume=True, on_epoch=rows.append)
    assert [row["epoch"] for row in rows] == [3, 4]
    with pytest.raises(UsageError, match="no unfinished run"):
        train(few, tmp_path / "bundle", options, resume=True)


def test_from_given_weights_the_head_learns_first(bundle, data, tmp_path):
    """Head only, on features computed once: nothing but the last layer differs, and it judges as well."""
    from safetensors.torch import load_file

    start = bundle.path / "model.safetensors"
    stages = set()
    options = TrainOptions(weights=start, stages="head", size=32, batch_size=16, threads=1, int8=False)
    made = train(data, tmp_path / "head", options, lambda stage, *_: stages.add(stage))
    before, after = load_file(start), load_file(made.path / "model.safetensors")
    changed = {name for name in before if not (before[name] == after[name]).all()}
    assert changed == {"fc.weight", "fc.bias"}
    assert {"backbone features", "training the head"} <= stages
    assert made.manifest.metrics["eager"]["accuracy"] >= 0.95


def test_a_tampered_bundle_is_refused_by_every_command(bundle, data, tmp_path):
    """One changed byte in any file: run, evaluate and export all say so, with exit code 2, and write nothing."""
    changed = tmp_path / "changed"
    shutil.copytree(bundle.path, changed)
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    (tmp_path / "c.toml").write_text(
        '[model]\nbundle = "changed"\n[[cameras]]\nname = "a"\nsource = "conveyor:"\n'
        '[[cameras.rois]]\nname = "r"\nbox = [0, 0, 64, 64]\n'
    )
    for arguments in (
        ["run", "-c", tmp_path / "c.toml"],
        ["evaluate", changed, data, "-o", tmp_path / "report"],
        ["export", changed, "--to", "onnx", "--data", data],
    ):
        code, errors = command(*arguments)
        assert code == 2, arguments
        assert "SHA-256" in errors, arguments
        assert errors.count("\n") == 1, errors
    assert not (tmp_path / "report").exists()


def test_int8_judges_to_the_bit_alike_with_and_without_vnni(bundle, data, tmp_path):
    """No pair of products overflows 16 bits: what its gate saw here holds on a line's older processor."""
    model = bundle.copy_path("openvino-int8")
    assert 0 < widest_weight(model) <= 64, "2 * 255 * 64 is within 16 bits"
    pixels = load_pictures(open_dataset(data).splits["val"], bundle.manifest.preprocess).pixels[:12]
    everything = answers(model, pixels, tmp_path, None)
    for older in ("AVX2", "AVX512_CORE"):
        np.testing.assert_array_equal(answers(model, pixels, tmp_path, older), everything)


@pytest.mark.usefixtures("_hasty_int8")
def test_every_copy_can_be_exported_and_is_gated(bundle, data, tmp_path, capsys):
    """INT8 and ONNX into a bundle, plain weights into a file; bundle.json records what the gate found."""
    place = tmp_path / "bundle"
    shutil.copytree(bundle.path, place)
    code, _ = command("export", place, "--to", "onnx", "--data", data)
    assert code == 0
    made = load_bundle(place)
    assert "onnx" in made.copies
    assert made.manifest.metrics["gate"]["onnx"]["logit_error"] < 1e-3
    judged = sum(bundle.manifest.training["pictures"]["val"].values())
    assert f"passed its gate on {judged} validation pictures" in capsys.readouterr().out
    assert made.manifest.thresholds == bundle.manifest.thresholds

    code, _ = command("export", place, "--to", "openvino-int8", "--data", data, "-o", tmp_path / "other")
    assert code == 0
    assert "openvino-int8" in load_bundle(tmp_path / "other").copies

    code, _ = command("export", place, "--to", "torch", "--data", data, "-o", tmp_path / "plain.safetensors")
    assert code == 0
    from safetensors.torch import load_file
    from torchvision.models import resnet18

    resnet18(weights=None, num_classes=3).load_state_dict(load_file(tmp_path / "plain.safetensors"))


@pytest.mark.usefixtures("_hasty_int8")
def test_a_copy_that_judges_otherwise_is_refused(bundle, data, tmp_path, monkeypatch, capsys):
    """Exit 1, by how much, and the bundle is as it was."""
    place = tmp_path / "bundle"
    shutil.copytree(bundle.path, place)
    monkeypatch.setitem(gate.TOLERANCE, "openvino-int8", 1e-9)
    code, _ = command("export", place, "--to", "openvino-int8", "--data", data)
    assert code == 1
    assert "refused by its gate: logits are off by" in capsys.readouterr().out
    assert load_bundle(place).sha256 == bundle.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.soak
def test_a_copy_that_bf16_spoils_runs_with_float32(bundle, data, tmp_path, monkeypatch):
    """The second try; bundle.json says so, and the engine obeys. Without bf16 in the processor there is no first."""
    from inspectd.config import EngineConfig
    from inspectd.engine.openvino import OpenVinoEngine

    place = tmp_path / "bundle"
    shutil.copytree(bundle.path, place)
    error = bundle.manifest.metrics["gate"]["openvino"]["logit_error"]
    monkeypatch.setitem(gate.TOLERANCE, "openvino", error / 2)
    code, _ = command("export", place, "--to", "openvino", "--data", data)
    assert code == 0
    made = load_bundle(place)
    assert made.manifest.float32 == ("openvino",)
    assert made.manifest.metrics["gate"]["openvino"]["logit_error"] < error / 2
    shutil.rmtree(place / "openvino-int8")
    made = write_manifest(place, made.manifest)
    engine = OpenVinoEngine(made, EngineConfig(precision="auto"), "")
    assert engine.info.precision == "f32"
    engine.close()


@pytest.mark.parametrize("native", [True, False])
def test_what_its_gate_did_not_see_in_bf16_runs_with_float32(bundle, data, tmp_path, monkeypatch, native):
    """A processor without bf16 says nothing about one that has it."""
    monkeypatch.setattr(copies, "native_bf16", lambda: native)
    network = build_network(bundle.manifest)
    load_weights(network, bundle.path / WEIGHTS)
    val = open_dataset(data, spec=bundle.manifest.preprocess).pictures["val"]
    manifest = bundle.manifest
    judged = copies.make_copy(
        "openvino", network.eval(), manifest, tmp_path, val.pixels, val.pixels, val.labels, manifest.thresholds, 1.0
    )
    assert judged.report.passed
    assert judged.float32 is not native


def test_a_bundle_that_is_exchanged_during_an_export_stays_as_it_is(bundle, data, tmp_path):
    """A training ended meanwhile: its bundle is neither mixed with what was read before nor displaced."""
    place, later = tmp_path / "bundle", tmp_path / "later"
    shutil.copytree(bundle.path, place)
    shutil.copytree(bundle.path, later)
    new = write_manifest(later, bundle.manifest.model_copy(update={"temperature": 3.0}))

    def exchange(stage, done, total, message=""):
        if stage == "exporting" and not done:
            place.rename(tmp_path / "old")
            later.rename(place)

    with pytest.raises(BundleError, match="was exchanged or changed meanwhile; run it again"):
        export_copy(place, "openvino", data, None, exchange)
    assert load_bundle(place).sha256 == new.sha256
    with pytest.raises(UsageError, match="lies among the pictures"):
        export_copy(place, "openvino", data, data / "bundle", exchange)


def test_export_wants_the_pictures_that_trained_the_bundle(bundle, tmp_path):
    """Others would calibrate and judge something else."""
    others = write_pictures(tmp_path / "others", {"good": 10, "stain": 10, "empty": 10}, seed=77)
    code, errors = command("export", bundle.path, "--to", "onnx", "--data", others)
    assert code == 2
    assert "pictures that made" in errors
    code, errors = command("export", bundle.path, "--to", "onnx")
    assert code == 2
    assert "--data" in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "x", "-o", "y", "--task", "nonsense"], "'nonsense' is not one of 'classify', 'detect'"),
        (["train", "x", "-o", "y", "--epochs", "0"], "'--epochs'"),
        (["train", "x"], "'--output'"),
        (["train", "x", "-o", "y", "--epoch", "3"], "No such option: --epoch"),
        (["train", "x", "-o", "y", "--seed", "99999999999999999999"], "seed 99999999999999999999 is not between"),
        (["train", "x", "-o", ".", "--weights", "none"], "by its name"),
        (["evaluate", "x", "y", "-o", "z", "--threads", "500"], "--threads 500"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, said):
    code, errors = command(*arguments)
    assert code == 2
    assert said in errors
    assert errors.startswith("inspectd: ")
    assert errors.count("\n") == 1


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(data, tmp_path, capsys):
    code, _ = command(
        "train", data, "-o", tmp_path / "b", "--weights", "none", "--size", 32, "--threads", 1, "--dry-run"
    )
    said = capsys.readouterr().out
    assert code == 0
    assert re.search(r"train: empty \d+, good \d+, stain \d+", said)
    assert "learning: all with muon" in said
    assert re.search(r"time: 20 epochs of \d+ s", said)
    assert not list(tmp_path.iterdir())


def test_a_preview_is_a_picture(data, tmp_path):
    sheet = tmp_path / "p.png"
    code, _ = command("train", data, "-o", tmp_path / "b", "--weights", "none", "--size", 32, "--preview", sheet)
    assert code == 0
    assert cv2.imread(str(sheet)).shape[0] > 3 * 32
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_the_figures_of_each_epoch_go_to_tensorboard(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from inspectd.workshop.tensorboard import TensorBoard

    board = TensorBoard(tmp_path / "tb", QUICK)
    for epoch in (1, 2):
        board({"epoch": epoch, "val loss": 1.0 / epoch})
    board.close()
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("val_loss")] == [(1, 1.0), (2, 0.5)]


def command(*arguments):
    """Run the command line in this process; its exit code and what it wrote to stderr."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["inspectd", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), errors.getvalue()
    return 0, errors.getvalue()


def test_thresholds_let_no_validation_defect_pass():
    """On separable scores the operating point has neither escapes nor false rejects."""
    from inspectd.model.calibrate import choose_thresholds
    from inspectd.model.manifest import ClassSpec

    classes = [ClassSpec(name="good", role="ok"), ClassSpec(name="dent", role="defect")]
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    logits = rng.normal(0, 0.5, (200, 2)) + 6 * np.eye(2)[labels]
    probabilities = softmax(logits)
    point = operating_point(probabilities, labels, classes, choose_thresholds(probabilities, labels, classes))
    assert point == {"good": 100, "false_rejects": 0, "defects": 100, "caught": 100, "escapes": 0}


def test_a_temperature_makes_scores_surer_only_as_far_as_pictures_vouch_for_it():
    """Ten pictures that are all right say little, two thousand more; wrong ones say that scores are too sure."""
    few, many = ((np.tile([2.0, -2.0], (count, 1)), np.zeros(count, np.int64)) for count in (10, 2000))
    assert fit_temperature(*few) == 1.0
    vouched = fit_temperature(*many)
    assert 0.25 < vouched < 1
    assert softmax(many[0], vouched)[0, 0] == pytest.approx(1 - 2 / 2000, abs=2e-4)  # Wilks' interval of 0 in 2000
    often_wrong = (np.arange(2000) % 5 == 0).astype(np.int64)
    assert fit_temperature(many[0], often_wrong) == pytest.approx(4 / np.log(4), rel=0.02)


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
    for number in range(8):
        (tmp_path / "data" / "stain" / f"{number:03}.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    with pytest.raises(DataError, match=r"000\.png"):
        train(tmp_path / "data", tmp_path / "bundle", QUICK)


def test_options_that_make_no_sense_are_refused():
    for wrong in ({"epochs": 0}, {"learning_rate": 2.0}, {"size": 31}, {"batch_size": 1}):
        with pytest.raises(UsageError):
            TrainOptions(**wrong)


@pytest.mark.parametrize(
    ("size", "batch", "accumulate", "processes", "refused"),
    [(32, 8, 8, 1, True), (32, 8, 4, 1, False), (32, 3, 2, 1, True), (32, 8, 4, 2, True), (64, 8, 8, 1, False)],
)
def test_parts_that_leave_batch_norm_one_value_are_refused(size, batch, accumulate, processes, refused):
    options = TrainOptions(size=size, batch_size=batch, accumulate=accumulate)
    with pytest.raises(UsageError, match="--accumulate") if refused else contextlib.nullcontext():
        refuse_uneven(options, 100, World(0, processes))


def test_weights_of_another_network_are_refused(bundle, tmp_path):
    """Strictly by name and shape."""
    from safetensors.torch import save_file

    wrong = tmp_path / "wrong.safetensors"
    import torch

    save_file({"conv1.weight": torch.zeros(1)}, wrong)
    with pytest.raises(BundleError, match="does not fit the network"):
        load_weights(build_network(bundle.manifest), wrong)


def test_train_from_the_command_line(few, tmp_path, capsys):
    """Exit 0 and the figures of each copy; a missing folder is one line and exit 2."""
    arguments = ["--weights", "none", "--size", 32, "--epochs", 2, "--batch-size", 16, "--threads", 1, "--no-int8"]
    code, errors = command("train", few, "-o", tmp_path / "bundle", *arguments)
    assert code == 0, errors
    said = capsys.readouterr().out
    assert "validation pictures, accuracy" in said
    assert load_bundle(tmp_path / "bundle").short_hash in said
    code, errors = command("train", tmp_path / "none", "-o", tmp_path / "b2", *arguments)
    assert code == 2
    assert errors.splitlines()[-1].startswith("inspectd: ")
