"""The bundle: what it refuses, and that it names the file and what to do."""

import hashlib
import json
import os
import shutil

import pytest
from colour_bundle import CLASSES, colour_bundle
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from inspectd.errors import BundleError
from inspectd.model.bundle import FORMAT_VERSION, load_bundle, write_manifest
from inspectd.model.manifest import ClassSpec, Manifest, Thresholds
from inspectd.model.preprocess import PreprocessSpec

pytestmark = pytest.mark.timeout(30)  # a reader that waits on a pipe would wait for ever


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    colour_bundle(path)
    return path


@pytest.fixture
def bundle(original, tmp_path):
    """A fresh copy, to be spoilt."""
    return shutil.copytree(original, tmp_path / "bundle")


def refusal(path):
    with pytest.raises(BundleError) as caught:
        load_bundle(path)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(bundle, **changes):
    manifest = bundle / "bundle.json"
    data = json.loads(manifest.read_text())
    data.update(changes)
    manifest.write_text(json.dumps(data))


def edit_section(bundle, section, **changes):
    data = json.loads((bundle / "bundle.json").read_text())
    edit(bundle, **{section: {**data[section], **changes}})


def test_a_whole_bundle_loads(bundle):
    """Its copies, classes and hash are known; the hash is that of the manifest."""
    loaded = load_bundle(bundle)
    assert loaded.copies == ("openvino",)
    assert loaded.manifest.classes == CLASSES
    assert loaded.sha256 == hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    assert loaded.copy_path("openvino") == bundle / "openvino" / "model.xml"


def test_a_bound_bundle_is_the_very_one_or_refused(bundle):
    """One bit of a threshold leaves a valid manifest; the refusal names both hashes."""
    bound = load_bundle(bundle).sha256
    assert load_bundle(bundle, bound).sha256 == bound
    raw = (bundle / "bundle.json").read_bytes()
    (bundle / "bundle.json").write_bytes(raw.replace(b'"pass_min": 0.8', b'"pass_min": 0.9'))
    other = load_bundle(bundle).sha256
    with pytest.raises(BundleError, match=f"bundle.json: SHA-256 is {other}, the configuration binds it to {bound}"):
        load_bundle(bundle, bound)


def test_of_a_bundle_that_is_not_the_one_meant_nothing_is_parsed(bundle):
    """Who exchanged it decides nothing, not even what the error says."""
    bound = load_bundle(bundle).sha256
    (bundle / "bundle.json").write_text("not even JSON")
    with pytest.raises(BundleError, match="the configuration binds it to"):
        load_bundle(bundle, bound)


def test_a_copy_that_it_lacks_is_refused_by_name(bundle):
    with pytest.raises(BundleError, match="has no openvino-int8 copy"):
        load_bundle(bundle).copy_path("openvino-int8")


@pytest.mark.parametrize("name", ["openvino/model.bin", "openvino/model.xml"])
def test_a_changed_file_is_refused(bundle, name):
    """One bit of any listed file."""
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    assert f"{name}: SHA-256 is" in refusal(bundle)


def test_a_truncated_file_is_refused(bundle):
    """As a copy that was cut short."""
    path = bundle / "openvino" / "model.bin"
    os.truncate(path, path.stat().st_size // 2)
    assert "model.bin: SHA-256 is" in refusal(bundle)


def test_a_missing_file_is_refused(bundle):
    (bundle / "openvino" / "model.bin").unlink()
    assert "model.bin: missing, though bundle.json lists it" in refusal(bundle)


def test_a_newer_format_is_refused(bundle):
    edit(bundle, format_version=FORMAT_VERSION + 1)
    assert f"has format {FORMAT_VERSION + 1}, this inspectd reads up to {FORMAT_VERSION}; upgrade" in refusal(bundle)


@pytest.mark.parametrize("version", [0, -1, "1", None, 1.5, True])
def test_an_odd_format_is_refused(bundle, version):
    edit(bundle, format_version=version)
    assert "format_version" in refusal(bundle)


@pytest.mark.parametrize("name", ["model.pt", "weights.pth", "openvino/extra.pkl", "deep/er/x.joblib", "MODEL.PT"])
def test_a_pickle_lying_about_is_refused(bundle, name):
    """Listed or not."""
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_bytes(b"\x80\x04.")
    assert "pickled weights are never loaded" in refusal(bundle)


def test_a_listed_pickle_is_refused(bundle):
    (bundle / "model.pt").write_bytes(b"\x80\x04.")
    files = json.loads((bundle / "bundle.json").read_text())["files"]
    edit(bundle, files=files | {"model.pt": hashlib.sha256(b"\x80\x04.").hexdigest()})
    assert "pickled weights are never loaded" in refusal(bundle)


def test_an_unlisted_file_beside_a_model_is_refused(bundle):
    """It could be loaded by its name, without a hash."""
    (bundle / "openvino" / "model_cache.blob").write_bytes(b"x")
    assert "is not listed in bundle.json" in refusal(bundle)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "openvino/../../outside", ""])
def test_a_path_out_of_the_bundle_is_refused(bundle, name):
    (bundle.parent / "outside").write_bytes(b"x")
    files = json.loads((bundle / "bundle.json").read_text())["files"]
    edit(bundle, files=files | {name: hashlib.sha256(b"x").hexdigest()})
    assert "lies outside the bundle" in refusal(bundle)


def test_a_link_out_of_the_bundle_is_refused(bundle, tmp_path):
    """Its content could change behind the bundle's back."""
    path = bundle / "openvino" / "model.bin"
    outside = tmp_path / "elsewhere.bin"
    shutil.move(path, outside)
    path.symlink_to(outside)
    assert "is a link" in refusal(bundle)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', b"[" * 100_000, b'{"format_version": 1}']
)
def test_a_broken_manifest_is_refused(bundle, raw):
    (bundle / "bundle.json").write_bytes(raw)
    assert str(bundle / "bundle.json") in refusal(bundle)


def test_what_is_no_bundle_at_all_is_refused(tmp_path):
    assert "no such bundle; make one with: inspectd train" in refusal(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    assert "is a file; a bundle is a directory" in refusal(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    assert "has no bundle.json" in refusal(tmp_path / "folder")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"classes": [{"name": "good", "role": "ok"}]}, "classes"),
        ({"classes": [{"name": "a", "role": "ok"}, {"name": "a", "role": "defect"}]}, "same name"),
        ({"classes": [{"name": "a", "role": "ok"}, {"name": "b", "role": "empty"}]}, "no class has the role 'defect'"),
        ({"thresholds": {"fail": {"rust": 0.5}}}, "'rust', which is no defect class"),
        ({"thresholds": {"pass_min": 0.4}}, "thresholds.pass_min"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": "NaN"}, "temperature"),
        ({"architecture": "vgg"}, "architecture"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(bundle, change, expected):
    """By the key, in one line."""
    edit(bundle, **change)
    assert expected in refusal(bundle)


def test_an_interrupted_rewrite_is_refused(bundle):
    """New model files under the old manifest, as after a kill between the two: not served."""
    (bundle / "openvino" / "model.bin").write_bytes(b"new weights")
    (bundle / ".bundle.json.new").write_text("half of a mani")
    assert "SHA-256" in refusal(bundle)


def test_writing_hashes_everything_and_reads_back(tmp_path):
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "model.xml").write_bytes(b"xml")
    (tmp_path / "openvino" / "model.bin").write_bytes(b"bin")
    manifest = Manifest(
        format_version=1,
        architecture="resnet18",
        classes=(ClassSpec(name="ok", role="ok"), ClassSpec(name="dent", role="defect")),
        preprocess=PreprocessSpec(),
        thresholds=Thresholds(fail={"dent": 0.25}),
        files={},
    )
    written = write_manifest(tmp_path, manifest)
    assert written.manifest.files == {
        "openvino/model.bin": hashlib.sha256(b"bin").hexdigest(),
        "openvino/model.xml": hashlib.sha256(b"xml").hexdigest(),
    }
    assert load_bundle(tmp_path).manifest.thresholds.fail == {"dent": 0.25}


@examples(150)
@given(position=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_no_changed_byte_of_the_manifest_serves_another_model(original, position, byte):
    """Whatever byte of bundle.json changes: refused, or the very same files are served."""
    raw = bytearray((original / "bundle.json").read_bytes())
    before = load_bundle(original)
    index = int(position * len(raw))
    saved = raw[index]
    raw[index] = byte
    try:
        (original / "bundle.json").write_bytes(raw)
        try:
            after = load_bundle(original)
        except BundleError:
            return
        assert after.manifest.files == before.manifest.files
    finally:
        raw[index] = saved
        (original / "bundle.json").write_bytes(raw)


# -- hostile ones: each is refused in one line, none blocks, none is served -------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("std", [0, 0, 0]),
        ("std", [-0.2, 0.2, 0.2]),
        ("std", [float("nan")] * 3),
        ("mean", [float("inf")] * 3),
        ("mean", [float("nan")] * 3),
    ],
)
def test_a_normalisation_that_makes_no_pictures_is_refused(bundle, key, value):
    """Division by zero or by nothing would reach the network as infinities."""
    edit_section(bundle, "preprocess", **{key: value})
    assert f"preprocess.{key}" in refusal(bundle)


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "a\x1b[2Jb"])
def test_a_file_name_with_control_characters_is_refused(bundle, name):
    """It neither ends the loader with another error nor writes into the log."""
    edit_section(bundle, "files", **{name: "0" * 64})
    assert "lies outside the bundle" in refusal(bundle)


@pytest.mark.parametrize("name", ["bundle.json", "openvino/model.bin"])
def test_a_pipe_in_place_of_a_file_does_not_block(bundle, name):
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    assert "is no plain file" in refusal(bundle)


@pytest.mark.parametrize("name", ["model.safetensors", "openvino/bundle.json"])
def test_an_unlisted_file_with_a_name_of_ours_is_refused(bundle, name):
    """It would be read by its name, though no hash covers it."""
    (bundle / name).write_bytes(b"{}")
    assert "is not listed in bundle.json" in refusal(bundle)


def test_a_linked_folder_is_refused(bundle, tmp_path):
    """The files below it could change behind the bundle's back."""
    shutil.move(bundle / "openvino", tmp_path / "elsewhere")
    (bundle / "openvino").symlink_to(tmp_path / "elsewhere")
    assert "is a link" in refusal(bundle)


def test_a_link_to_the_whole_bundle_is_served(bundle, tmp_path):
    """`current -> bundle-7` is how people switch models."""
    (tmp_path / "current").symlink_to(bundle)
    assert load_bundle(tmp_path / "current").sha256 == load_bundle(bundle).sha256
