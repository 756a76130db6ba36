"""`inspectd evaluate`: what it counts, what it refuses, and the page that somebody signs."""

import json
import os
import re
import resource
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch
from colour_bundle import COLOURS, colour_bundle
from threadpoolctl import threadpool_limits

from inspectd import cli
from inspectd.config import EngineConfig
from inspectd.engine.openvino import OpenVinoEngine
from inspectd.errors import BundleError, DataError, EngineError, InspectdError, UsageError
from inspectd.model.bundle import WEIGHTS, write_manifest
from inspectd.model.calibrate import choose_thresholds, fit_temperature, operating_point, softmax
from inspectd.model.data import load_pictures, open_dataset, role_of
from inspectd.model.export import (
    eager_logits,
    export_int8,
    export_openvino,
    normalise,
    settle_batch_norm,
)
from inspectd.model.manifest import ClassSpec, Manifest
from inspectd.model.network import build_network, load_weights, save_weights
from inspectd.model.preprocess import PreprocessSpec
from inspectd.workshop.evaluation.admit import admit
from inspectd.workshop.evaluation.cam import class_activation
from inspectd.workshop.evaluation.evaluate import EvaluateOptions, evaluate
from inspectd.workshop.evaluation.figures import Report
from inspectd.workshop.evaluation.judged import engine_scores
from inspectd.workshop.evaluation.statistics import upper_bound
from inspectd.workshop.evaluation.validation import find_validation
from inspectd.workshop.evaluation.written import write_report
from inspectd.workshop.provenance import RECORD, read_provenance, write_provenance

QUICK = EvaluateOptions(threads=1, latency_s=0.1)
SIZE = 64
GREY = (120, 120, 120)  # near to no colour of the colour bundle: uncertain


# -- pictures and bundles -----------------------------------------------------------------------------


def write_pictures(root, counts, seed=0, side=80):
    """Noisy grey under light of its own; `stain` has a red blot, `empty` is dark."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            light = cv2.resize(rng.normal(0, 18, (5, 5, 1)), (side, side), interpolation=cv2.INTER_CUBIC)
            picture = rng.normal(40 if name == "empty" else 150, 12, (side, side, 3)) + light[:, :, np.newaxis]
            if name == "stain":
                x, y = rng.integers(4, side - 34, 2)
                picture[y : y + 30, x : x + 30] = (30, 30, 220)
            cv2.imwrite(str(root / name / f"{index:03}.png"), picture.clip(0, 255).astype(np.uint8))
    return root


def write_colours(root, **colours):
    """`name=[RGB, …]`: pictures of one colour each, with a little noise so that no two are equal."""
    rng = np.random.default_rng(0)
    for name, values in colours.items():
        (root / name).mkdir(parents=True)
        for index, rgb in enumerate(values):
            picture = np.array(rgb[::-1]) + rng.normal(0, 3, (32, 32, 3))
            cv2.imwrite(str(root / name / f"{index:03}.png"), picture.clip(0, 255).astype(np.uint8))
    return root


def fitted_bundle(path, data):
    """A network with random features whose last layer is fitted in closed form; with the record of its pictures."""
    dataset, spec = open_dataset(data), PreprocessSpec(width=SIZE, height=SIZE)
    pictures = {split: load_pictures(dataset.splits[split], spec) for split in ("train", "val")}
    manifest = Manifest(
        format_version=1,
        architecture="resnet18",
        classes=dataset.classes,
        preprocess=spec,
        files={},
        training={"data_sha256": dataset.fingerprint},
    )
    train = pictures["train"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(manifest)
    settle_batch_norm(network, [normalise(torch.from_numpy(train.pixels), spec)])
    features = np.concatenate([class_features(network, train.pixels, spec), np.ones((len(train), 1))], 1)
    target = 8 * np.eye(len(dataset.classes))[train.labels]
    solved = np.linalg.solve(features.T @ features + 0.1 * np.eye(features.shape[1]), features.T @ target)
    with torch.no_grad():
        network.fc.weight.copy_(torch.from_numpy(solved[:-1].T))
        network.fc.bias.copy_(torch.from_numpy(solved[-1]))
    path.mkdir()
    save_weights(network, path / WEIGHTS)
    export_openvino(network, manifest, path)
    export_int8(network, manifest, path, train.pixels[::3])
    logits = eager_logits(network, pictures["val"].pixels, spec)
    temperature = fit_temperature(logits, pictures["val"].labels)
    thresholds = choose_thresholds(softmax(logits, temperature), pictures["val"].labels, dataset.classes)
    write_provenance(
        path,
        [
            (split, sample, pixels)
            for split, found in pictures.items()
            for sample, pixels in zip(dataset.splits[split], found.pixels, strict=True)
        ],
    )
    return write_manifest(path, manifest.model_copy(update={"temperature": temperature, "thresholds": thresholds}))


def class_features(network, pixels, spec):
    """Pooled features before the last layer, float64 [N, 512]."""
    seen = []
    hook = network.fc.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    eager_logits(network, pixels, spec)
    hook.remove()
    return torch.cat(seen).double().numpy()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for seed, (split, count) in enumerate((("train", 16), ("val", 8), ("test", 9))):
        write_pictures(root / split, {"good": count, "stain": count, "empty": count}, seed)
    return root


@pytest.fixture(scope="module")
def bundle(data, tmp_path_factory):
    return fitted_bundle(tmp_path_factory.mktemp("made") / "bundle", data)


@pytest.fixture(scope="module")
def evaluated(bundle, data, tmp_path_factory):
    """The report of the fitted bundle on test/, and the folder it lies in."""
    output = tmp_path_factory.mktemp("evaluated") / "report"
    told = []
    report = evaluate(bundle.path, data, output, QUICK, lambda *args: told.append(args[0]))
    assert {"reading pictures", "judging: torch", "judging: openvino-int8"} <= set(told)
    return report, output


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return colour_bundle(tmp_path_factory.mktemp("colours") / "bundle")


class Page(HTMLParser):
    """What a page loads, and its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.loads, self.words = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "data", "srcset", "action")]

    def handle_data(self, data):
        self.words.append(data)


def unwatched(done, total):
    pass


# -- what is counted ----------------------------------------------------------------------------------


def test_the_figures_are_what_one_counts_by_hand(colours, tmp_path):
    """Colours with known verdicts: escapes, false rejects, caught and uncertain, per class and together."""
    good, scratch, stain, empty = (COLOURS[name] for name in ("good", "scratch", "stain", "empty"))
    root = write_colours(
        tmp_path / "data",
        good=[good] * 5 + [scratch] + [GREY],
        scratch=[scratch] * 4 + [good, good],
        stain=[stain] * 2 + [GREY],
        empty=[empty, empty, good],
    )
    report = evaluate(colours.path, root, tmp_path / "report", QUICK)
    figures = report.headline.verdicts
    assert (figures.escapes.count, figures.escapes.of) == (3, 12)
    assert figures.escapes_below == upper_bound(3, 12)
    assert (figures.false_rejects.count, figures.false_rejects.of) == (2, 7)
    assert (figures.caught.count, figures.caught.of) == (6, 9)
    assert figures.uncertain.count == 2
    assert figures.by_class["empty"] == {"pass": 1, "fail": 0, "uncertain": 0, "empty": 2, "engine_error": 0}
    assert [picture.kind for picture in report.worst[:5]] == ["escape"] * 3 + ["false_reject"] * 2
    assert {picture.truth for picture in report.worst[:3]} == {"scratch", "empty"}
    assert "3 of 12 bad pictures passed" in Page(tmp_path / "report" / "report.html").text


def test_it_counts_as_training_counts(evaluated, bundle, data):
    """The verdicts of torch are those of `operating_point` on the same logits, and of the deployed copies alike."""
    report, _ = evaluated
    manifest = bundle.manifest
    pictures = load_pictures(open_dataset(data).splits["test"], manifest.preprocess)
    network = build_network(manifest)
    load_weights(network, bundle.path / WEIGHTS)
    logits = eager_logits(network, pictures.pixels, manifest.preprocess)
    probabilities = softmax(logits, manifest.temperature)
    point = operating_point(probabilities, pictures.labels, manifest.classes, manifest.thresholds)
    eager, *others = report.copies
    verdicts = eager.verdicts
    assert (verdicts.escapes.count, verdicts.false_rejects.count) == (point["escapes"], point["false_rejects"])
    assert (verdicts.caught.count, verdicts.caught.of) == (point["caught"], point["defects"])
    assert eager.accuracy.count == (logits.argmax(1) == pictures.labels).sum() > 20
    assert [copy.name for copy in others] == ["openvino", "openvino-int8"]
    for copy in others:
        assert copy.same_top_class.share > 0.9, copy.name
        assert 0 < copy.largest_logit_difference < 0.3 * np.abs(logits).max(), copy.name
    assert report.deployed == "openvino-int8"
    assert {one.copy_name for one in report.latency} == {"openvino", "openvino-int8"}
    assert all(0 < one.p50_ms <= one.p99_ms <= one.max_ms and one.threads == 1 for one in report.latency)


def test_the_operating_point_is_chosen_beside_the_test(evaluated, data):
    """On val/, where nothing passes at it; what it does to test/ is stated for every copy."""
    point = evaluated[0].operating_point
    assert str(data / "val") in point.chosen_on
    assert point.validation.escapes.count == 0
    assert point.validation.thresholds.pass_min == point.pass_min
    assert set(point.here) == {"torch", "openvino", "openvino-int8"}
    assert point.here["torch"].escapes.of == 18


def test_an_engine_that_fails_is_no_verdict(colours):
    """The batch is NaN, and those after it are right, each in its row."""

    class Failing(OpenVinoEngine):
        collected = 0

        def collect(self):
            self.collected += 1
            logits = super().collect()
            if self.collected == 2:
                raise EngineError("once")
            return logits

    pixels = np.zeros((11, 32, 32, 3), np.uint8) + np.arange(11, dtype=np.uint8)[:, None, None, None] * 20
    engine = Failing(colours, EngineConfig(device="cpu", threads=1, max_batch_size=2), "test")
    size = engine.max_batch_size
    scores = engine_scores(engine, pixels, (4,), unwatched)
    engine.close()
    assert np.isnan(scores[size : 2 * size]).all()
    whole = OpenVinoEngine(colours, EngineConfig(device="cpu", threads=1), "test")
    expected = engine_scores(whole, pixels, (4,), unwatched)
    whole.close()
    rest = np.r_[0:size, 2 * size : 11]
    assert np.array_equal(scores[rest], expected[rest])
    assert len(np.unique(expected[:, 0])) == 11


def test_an_activation_map_adds_up_to_the_logit(bundle, data):
    """Mean over the places plus bias is the logit of each class, exactly but for rounding."""
    network = build_network(bundle.manifest)
    load_weights(network, bundle.path / WEIGHTS)
    pixels = load_pictures(open_dataset(data).splits["test"][:6], bundle.manifest.preprocess).pixels
    maps = class_activation(network, pixels, bundle.manifest.preprocess)
    assert maps.shape == (6, 3, 2, 2)
    logits = maps.mean((2, 3)) + network.fc.bias.detach().numpy()
    assert logits == pytest.approx(eager_logits(network, pixels, bundle.manifest.preprocess), abs=1e-4)
    assert maps.std((2, 3)).min() > 0


# -- what may judge -----------------------------------------------------------------------------------


def test_pictures_that_trained_the_bundle_are_refused(bundle, data, tmp_path):
    """By their file, and by their pixels where they were saved anew; named, with what to do; exit code 2."""
    with pytest.raises(UsageError, match=r"48 of 48 pictures made this bundle: .*train/.*other pictures") as caught:
        evaluate(bundle.path, data / "train", tmp_path / "report", QUICK)
    assert caught.value.exit_code == 2
    root = write_pictures(tmp_path / "anew", {"good": 2, "stain": 2}, seed=9)
    again = cv2.imread(str(data / "val" / "stain" / "003.png"))
    cv2.imwrite(str(root / "stain" / "innocent.bmp"), again)
    with pytest.raises(UsageError, match=r"stain/innocent\.bmp \(chose its thresholds, as val/stain/003\.png\)"):
        evaluate(bundle.path, root, tmp_path / "report", QUICK)
    assert not (tmp_path / "report").exists()


def test_pictures_that_nearly_trained_it_are_left_out(bundle, data, tmp_path):
    """A little brighter and noisier: not counted, but named; counted on request, and then in red."""
    root = write_pictures(tmp_path / "data", {"good": 4, "stain": 4}, seed=8)
    nearly = cv2.imread(str(data / "train" / "stain" / "002.png")).astype(int) + 3
    noise = np.random.default_rng(0).normal(0, 2, nearly.shape)
    cv2.imwrite(str(root / "stain" / "nearly.png"), (nearly + noise).clip(0, 255).astype(np.uint8))
    record = read_provenance(bundle)
    dropped = admit(root, bundle, record, None, unwatched)
    assert [pair.name for pair in dropped.similar] == ["stain/nearly.png"]
    assert dropped.similar[0].trained_on == "train: train/stain/002.png"
    assert len(dropped.pictures) == 8
    assert [concern.grave for concern in dropped.concerns] == [False]
    kept = admit(root, bundle, record, None, unwatched, "keep")
    assert len(kept.pictures) == 9
    assert [concern.grave for concern in kept.concerns] == [True]
    assert "--keep-similar" in kept.concerns[0].text


def test_a_folder_without_splits_is_sorted_by_the_record(bundle, data, tmp_path):
    """`--split test` takes what had no part in the bundle, `--split val` what validated it; plainly, it is refused."""
    root = tmp_path / "all"
    for split in ("train", "val", "test"):
        for picture in (data / split).rglob("*.png"):
            target = root / picture.parent.name / f"{split}-{picture.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(picture.read_bytes())
    record = read_provenance(bundle)
    with pytest.raises(UsageError, match="judge it by the 27 others with --split test"):
        admit(root, bundle, record, None, unwatched)
    test = admit(root, bundle, record, "test", unwatched)
    assert test.pictures.counts(bundle.manifest.classes) == {"empty": 9, "good": 9, "stain": 9}
    assert all("/test-" in name for name in test.pictures.names)
    val = admit(root, bundle, record, "val", unwatched)
    assert len(val.pictures) == 24
    assert all("/val-" in name for name in val.pictures.names)


def test_validation_data_is_marked_as_no_test(colours, tmp_path):
    """In red, above the figures; the operating point is said to be chosen on the very pictures."""
    pictures = {name: [rgb] * 2 for name, rgb in COLOURS.items()}
    write_colours(tmp_path / "data" / "val", **pictures)
    report = evaluate(colours.path, tmp_path / "data", tmp_path / "report", replace(QUICK, split="val"))
    assert report.concerns[0].grave
    assert report.operating_point.chosen_on == "the very pictures of this report"
    assert "Validation data: not a test" in Page(tmp_path / "report" / "report.html").text


def test_an_operating_point_is_not_tested_on_what_chose_it(bundle, data):
    """Validation pictures that are among the judged, or that trained the bundle, are refused where they were asked for.

    Where they merely lie beside the test, the report goes on without them, and says why.
    """
    record = read_provenance(bundle)
    judged = admit(data, bundle, record, "test", unwatched)
    with pytest.raises(UsageError, match="27 pictures are among the validation pictures and among those to judge by"):
        find_validation(data / "test", data, bundle, record, judged, unwatched)
    with pytest.raises(UsageError, match="48 pictures trained this bundle"):
        find_validation(data / "train", data, bundle, record, judged, unwatched)
    found = find_validation(None, data, bundle, record, judged, unwatched)
    assert len(found.pictures) == 24
    leak = replace(judged, pictures=found.pictures)
    beside = find_validation(None, data, bundle, record, leak, unwatched)
    assert beside.pictures is None
    assert "24 pictures are among the validation pictures" in beside.problem


def test_a_bundle_without_a_record_says_so(tmp_path):
    """In red; and where its fingerprint is that of the folder as a whole, the folder is refused."""
    pictures = write_colours(tmp_path / "data", **{name: [rgb] * 3 for name, rgb in COLOURS.items()})
    made = colour_bundle(tmp_path / "bundle")
    report = evaluate(made.path, pictures, tmp_path / "report", QUICK)
    assert not report.data.record
    assert report.concerns[0].grave
    assert "does not record which pictures made it" in Page(tmp_path / "report" / "report.html").text
    training = {"data_sha256": open_dataset(pictures).fingerprint}
    write_manifest(made.path, made.manifest.model_copy(update={"training": training}))
    with pytest.raises(UsageError, match="the very folder that this bundle was trained on"):
        evaluate(made.path, pictures, tmp_path / "report", QUICK)


def test_the_record_is_part_of_what_the_manifest_vouches_for(bundle, tmp_path, data):
    """One that was slipped in is refused, so is one that was changed; what was written is read back."""
    seen = read_provenance(bundle).pictures
    assert {(one.split, one.name) for one in seen} >= {("train", "train/good/000.png"), ("val", "val/stain/007.png")}
    made = colour_bundle(tmp_path / "bundle")
    assert read_provenance(made) is None
    (made.path / RECORD).write_bytes((bundle.path / RECORD).read_bytes())
    with pytest.raises(BundleError, match="is not listed"):
        evaluate(made.path, data, tmp_path / "report", QUICK)
    (made.path / RECORD).write_text('{"format": 1, "pictures": [{"split": "test"}]}')
    listed = write_manifest(made.path, made.manifest)
    with pytest.raises(BundleError, match=r"trained-on\.json: pictures\.0"):
        read_provenance(listed)


# -- what is refused ----------------------------------------------------------------------------------


def run(monkeypatch, capsys, *arguments):
    """The command line in this process: exit code, standard output, standard error."""
    monkeypatch.setattr("sys.argv", ["inspectd", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code or 0, *capsys.readouterr()


def test_from_the_command_line(colours, tmp_path, monkeypatch, capsys):
    """Exit 0 even where bad parts pass: a few lines with the answer, and where the page is."""
    root = write_colours(tmp_path / "data", good=[COLOURS["good"]] * 3, scratch=[COLOURS["good"]] * 2)
    code, out, _ = run(monkeypatch, capsys, colours.path, root, "-o", tmp_path / "report", "--threads", 1)
    assert code == 0
    assert "2 of 2 bad pictures passed: all of them." in out
    assert out.splitlines()[-1] == str(tmp_path / "report" / "report.html")
    assert len(out.splitlines()) <= 10


def test_a_tampered_bundle_is_refused(colours, tmp_path, monkeypatch, capsys):
    """One line, exit 2, and no report."""
    bundle = colour_bundle(tmp_path / "bundle")
    weights = bundle.path / "openvino" / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    code, _, err = run(monkeypatch, capsys, bundle.path, tmp_path / "data", "-o", tmp_path / "report")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "the file was changed or damaged" in err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: root.write_text("x"), "is a file"),
        (lambda root: root.mkdir(), "no pictures"),
        (lambda root: (root / "good").mkdir(parents=True), "no pictures"),
        (lambda root: write_text(root / "good" / "notes.txt"), "only 1 other files"),
        (lambda root: write_text(root / "good" / "broken.png"), "none of 1 pictures can be read"),
        (lambda root: write_text(root / "rust" / "a.png"), "knows no class 'rust'"),
        (lambda root: write_text(root / "val" / "good" / "a.png"), "no test/"),
    ],
)
def test_a_folder_that_cannot_judge_is_refused(colours, tmp_path, make, expected):
    make(tmp_path / "data")
    with pytest.raises(DataError, match=expected) as caught:
        evaluate(colours.path, tmp_path / "data", tmp_path / "report", QUICK)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report").exists()


def write_text(path):
    path.parent.mkdir(parents=True)
    path.write_text("no picture")


def test_the_same_picture_in_two_classes_is_refused(colours, tmp_path):
    """Whatever the bundle says, one of the two would be wrong."""
    root = write_colours(tmp_path / "data", good=[COLOURS["good"]] * 2, scratch=[COLOURS["scratch"]])
    (root / "scratch" / "x.png").write_bytes((root / "good" / "000.png").read_bytes())
    with pytest.raises(DataError, match=r"good/000\.png and scratch/x\.png are the same picture in two classes"):
        evaluate(colours.path, root, tmp_path / "report", QUICK)


def test_a_report_goes_nowhere_it_would_do_harm(colours, tmp_path):
    """Not into the bundle, not among the pictures, not over a file; beside other things it is welcome."""
    root = write_colours(tmp_path / "data", good=[COLOURS["good"]] * 2, scratch=[COLOURS["scratch"]])
    (tmp_path / "file").write_text("x")
    for wrong in (colours.path / "report", root, root / "report", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="give another -o"):
            evaluate(colours.path, root, wrong, QUICK)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    evaluate(colours.path, root, tmp_path / "thesis", QUICK)
    assert sorted(p.name for p in (tmp_path / "thesis").iterdir()) == ["chapter1.txt", "report.html", "report.json"]


def test_a_full_disk_leaves_the_old_report(tmp_path):
    """One line and exit 1; neither file is replaced, and nothing temporary is left."""
    write_report(tmp_path, {"report.json": "old", "report.html": "old"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InspectdError, match="the report cannot be written") as caught:
            write_report(tmp_path, {"report.json": "new", "report.html": "n" * 5000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.exit_code == 1
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report.json": "old", "report.html": "old"}


def test_a_bundle_that_is_exchanged_meanwhile_is_not_judged_as_one(tmp_path):
    """A training ends while pictures are read, or while they are judged: one line, and no report."""
    bundle = colour_bundle(tmp_path / "bundle")
    root = write_colours(tmp_path / "data", good=[COLOURS["good"]] * 2, scratch=[COLOURS["scratch"]])
    for stage, temperature in (("reading pictures", 2.0), ("latency: openvino", 3.0)):

        def exchange(told, done, total, message="", stage=stage, temperature=temperature):
            if told.startswith(stage) and done == total:
                write_manifest(bundle.path, bundle.manifest.model_copy(update={"temperature": temperature}))

        with pytest.raises(BundleError, match="was exchanged or changed meanwhile; run it again"):
            evaluate(bundle.path, root, tmp_path / "report", QUICK, exchange)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("wrong", [{"max_escapes": 1.0}, {"max_escapes": -0.1}, {"threads": -1}, {"threads": 257}])
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UsageError):
        EvaluateOptions(**wrong)


# -- the page -----------------------------------------------------------------------------------------


def test_the_page_needs_nothing_but_itself(evaluated):
    """No script, no address: only pictures in the file and links within it, each of which leads somewhere."""
    report, output = evaluated
    page = Page(output / "report.html")
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(load.startswith(("data:image/", "#")) for load in page.loads)
    raw = (output / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import", re.sub(r"data:image/[^\"]*", "", raw))
    assert re.search(r"url\((?!#)", raw) is None
    ids = re.findall(r'\bid="([^"]+)"', raw)
    assert len(ids) == len(set(ids))
    assert {load[1:] for load in page.loads if load.startswith("#")} <= set(ids)
    assert page.tags.count("svg") == 6
    assert report.bundle.sha256 in page.text
    assert report.data.fingerprint in page.text


def test_every_figure_is_in_the_json(evaluated):
    """It reads back as what was returned, is strict JSON, and its schema describes it."""
    report, output = evaluated
    text = (output / "report.json").read_text(encoding="utf-8")
    assert Report.model_validate_json(text) == report
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    described = Report.model_json_schema()["$defs"]["VerdictFigures"]["properties"]["escapes_below"]["description"]
    assert "Clopper-Pearson" in described


def test_hostile_names_are_only_text(colours, tmp_path):
    """Markup and bytes that are no text, in the names of pictures and of the folder."""
    root = write_colours(tmp_path / "<b>data", good=[COLOURS["good"]] * 2, scratch=[COLOURS["scratch"]])
    wrong = cv2.imencode(".png", np.full((32, 32, 3), 200, np.uint8))[1].tobytes()
    (root / "good" / "<img src=x onerror=alert(1)>&amp;.png").write_bytes(wrong)
    with open(os.fsencode(root / "good") + b"/\xff\n\x1b[31m.png", "wb") as file:  # noqa: PTH123 - no text, no Path
        file.write(wrong[:-60])
    report = evaluate(colours.path, root, tmp_path / "report", QUICK)
    assert len(report.data.unreadable) == 1
    assert r"\xff\n\x1b[31m.png" in report.data.unreadable[0]
    raw = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in raw
    assert "<b>data" not in raw
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;amp;.png" in raw


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        ({"good": ["good"] * 3}, ["no bad pictures", "nothing is known about escapes"]),
        ({"scratch": ["scratch"] * 2, "empty": ["empty"]}, ["no good pictures", "0 of 3 bad pictures passed"]),
        ({"scratch": ["good"] * 3}, ["no good pictures", "3 of 3 bad pictures passed: all of them"]),
        ({"good": ["good"]}, ["1 of 1", "nothing is known about escapes"]),
        ({"good": ["good"], "stain": ["stain"]}, ["0 of 1 bad pictures passed", "0 of 1 good pictures did not pass"]),
        ({"empty": ["empty"] * 2}, ["no good pictures", "no defects"]),
    ],
    ids=["only good", "only bad", "only bad, all wrong", "one picture", "two pictures", "only empty"],
)
def test_the_page_comes_out_whatever_is_missing(colours, tmp_path, pictures, said):
    """What cannot be computed is said, not shown as zero."""
    root = write_colours(tmp_path / "data", **{name: [COLOURS[c] for c in cs] for name, cs in pictures.items()})
    evaluate(colours.path, root, tmp_path / "report", QUICK)
    page = Page(tmp_path / "report" / "report.html")
    for words in said:
        assert words in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()


def test_thirty_classes_fit_on_the_page(tmp_path):
    """Every class is in every table, and the curves name the five lowest."""
    names = ["good", *(f"defect {index:02}" for index in range(28)), "empty"]
    made = mean_colour_bundle(tmp_path / "bundle", names)
    root = write_pictures(tmp_path / "data", dict.fromkeys(names, 1), side=32)
    report = evaluate(made.path, root, tmp_path / "report", QUICK)
    assert len(report.headline.classes) == len(report.headline.confusion) == 30
    page = Page(tmp_path / "report" / "report.html")
    assert all(page.text.count(name) >= 4 for name in names)
    assert "the lowest 5 classes" in page.text


def mean_colour_bundle(path, names):
    """Random logits from the mean colour, for any classes; OpenVINO only."""
    import openvino as ov
    from openvino import opset13 as ops

    pixels = ops.parameter([-1, 32, 32, 3], np.uint8, name="pixels")
    mean = ops.reduce_mean(ops.convert(pixels, np.float32), ops.constant([1, 2]), keep_dims=False)
    weights = np.random.default_rng(0).normal(0, 0.02, (3, len(names))).astype(np.float32)
    logits = ops.matmul(mean, ops.constant(weights), transpose_a=False, transpose_b=False)
    (path / "openvino").mkdir(parents=True)
    ov.save_model(ov.Model([ops.result(logits)], [pixels], "mean"), path / "openvino" / "model.xml")
    manifest = Manifest(
        format_version=1,
        architecture="resnet18",
        classes=tuple(ClassSpec(name=name, role=role_of(name)) for name in names),
        preprocess=PreprocessSpec(width=32, height=32),
        files={},
    )
    return write_manifest(path, manifest)
