"""Bundles that are wrong on purpose: each is refused in one line, none blocks, none is served."""

import json
import os
import shutil

import pytest
from colour_bundle import colour_bundle

from inspectd.errors import BundleError
from inspectd.model.bundle import load_bundle

pytestmark = pytest.mark.timeout(30)  # a reader that waits on a pipe would wait for ever


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    colour_bundle(path)
    return path


@pytest.fixture
def bundle(original, tmp_path):
    return shutil.copytree(original, tmp_path / "bundle")


def refusal(path):
    with pytest.raises(BundleError) as caught:
        load_bundle(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(bundle, section, **changes):
    data = json.loads((bundle / "bundle.json").read_text())
    data[section].update(changes)
    (bundle / "bundle.json").write_text(json.dumps(data))


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
    edit(bundle, "preprocess", **{key: value})
    assert f"preprocess.{key}" in refusal(bundle)


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "a\x1b[2Jb"])
def test_a_file_name_with_control_characters_is_refused(bundle, name):
    """It neither ends the loader with another error nor writes into the log."""
    edit(bundle, "files", **{name: "0" * 64})
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
