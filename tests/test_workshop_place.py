"""How a finished bundle takes its place: what it may not displace, what may not happen meanwhile, and the disk."""

import os
import shutil

import pytest

from inspectd.errors import BundleError, DataError, InspectdError, UsageError
from inspectd.model.bundle import MANIFEST, load_bundle
from inspectd.workshop import place
from inspectd.workshop.checkpoint import RunFolder
from inspectd.workshop.options import TrainOptions
from inspectd.workshop.place import copy_files, refuse_exchanged, refuse_lesser, refuse_other_things, replacing


def bundle_at(path, weights=b"weights", copies=()):
    """Files as a bundle has them; nothing reads the model."""
    import hashlib
    import json

    files = {"model.safetensors": weights}
    for copy in copies:
        files |= {f"{copy}/model.xml": b"<net/>", f"{copy}/model.bin": b"bin"}
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    manifest = {
        "format_version": 1,
        "architecture": "resnet18",
        "classes": [{"name": "good", "role": "ok"}, {"name": "dent", "role": "defect"}],
        "preprocess": {"width": 32, "height": 32},
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    (path / MANIFEST).write_text(json.dumps(manifest))
    return load_bundle(path)


def test_pictures_and_bundle_do_not_lie_in_each_other(tmp_path, monkeypatch):
    """Among the pictures it would be a class at the next start; around them it would take them along."""
    data = tmp_path / "data"
    (data / "good").mkdir(parents=True)
    (tmp_path / "link").symlink_to(data)
    for inside in (data, data / "bundle", data / "good" / "bundle", tmp_path / "link" / "bundle"):
        with pytest.raises(UsageError, match="lies among the pictures"):
            refuse_other_things(inside, data)
    bundle_at(tmp_path)
    with pytest.raises(UsageError, match="holds the pictures"):
        refuse_other_things(tmp_path, data)
    refuse_other_things(tmp_path / "data.bundle", data)
    monkeypatch.chdir(data)
    with pytest.raises(UsageError, match="give another -o"):
        refuse_other_things(place.Path("."))


def test_a_bundle_without_a_copy_does_not_displace_one_that_runs(tmp_path):
    one = bundle_at(tmp_path / "one", copies=["openvino"]).path
    other = bundle_at(tmp_path / "other", copies=["openvino-int8"]).path
    bare = bundle_at(tmp_path / "bare").path
    refuse_lesser(other, one)
    refuse_lesser(bare, bare)
    refuse_lesser(bare, tmp_path / "nothing")
    with pytest.raises(InspectdError, match="no copy of the new model passed its gate") as caught:
        refuse_lesser(bare, one)
    assert caught.value.exit_code == 1


def test_a_bundle_that_is_exchanged_is_not_mixed(tmp_path):
    """Neither its files with those of another, nor what was read of it."""
    bundle = bundle_at(tmp_path / "bundle")
    refuse_exchanged(bundle)
    copy_files(bundle, tmp_path / "whole")
    assert [path.name for path in (tmp_path / "whole").iterdir()] == ["model.safetensors"]
    shutil.rmtree(bundle.path)
    bundle_at(bundle.path, weights=b"others")
    with pytest.raises(BundleError, match="was exchanged or changed meanwhile; run it again"):
        refuse_exchanged(bundle)
    with pytest.raises(BundleError, match="was exchanged or changed meanwhile"):
        copy_files(bundle, tmp_path / "mixed")
    shutil.rmtree(bundle.path)
    with pytest.raises(BundleError, match="was exchanged or changed meanwhile"):
        refuse_exchanged(bundle)


def test_a_power_cut_finds_the_whole_bundle(tmp_path, monkeypatch):
    """Each file and folder is on the disk before the exchange, and the exchange before anything else is removed."""
    done = []
    swap, flush = place._swap, place.flush
    monkeypatch.setattr(place, "_swap", lambda work, bundle: (done.append("swap"), swap(work, bundle)))
    monkeypatch.setattr(place, "flush", lambda path: (done.append(path.name), flush(path)))
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with replacing(tmp_path / "bundle") as work:
        (work / "openvino").mkdir()
        for name in (MANIFEST, "openvino/model.bin"):
            (work / name).write_text("x")
    before, after = done[: done.index("swap")], done[done.index("swap") + 1 :]
    assert sorted(before) == sorted([work.name, MANIFEST, "openvino", "model.bin"])
    assert after == [tmp_path.name]
    assert len(synced) == 5


def test_one_training_at_a_time_has_the_run_folder(tmp_path):
    """Whatever its data and options; nothing is left of the lock, and a stale file does not count."""
    first, second = (RunFolder.beside(tmp_path / "bundle", {"data": data}) for data in "ab")
    with first.held():
        with pytest.raises(UsageError, match=r"bundle\.run: another training is at work"), second.held():
            pass
        with RunFolder.beside(tmp_path / "other", {}).held():
            pass
    assert not list(tmp_path.iterdir())
    (tmp_path / ".bundle.run.lock").write_text("of a training that was killed")
    with second.held():
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be locked"), RunFolder.beside(tmp_path / "file" / "bundle", {}).held():
        pass


@pytest.mark.parametrize("wrong", [{"seed": 2**63}, {"seed": -1}, {"threads": 257}])
def test_numbers_that_no_library_takes_are_refused(wrong):
    with pytest.raises(UsageError, match="is not between 0 and"):
        TrainOptions(**wrong)
