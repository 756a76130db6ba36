"""Files that the configuration names, exchanged behind the daemon's back: bound bundles, and what is no file."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from colour_bundle import COLOURS, colour_bundle
from faulty_camera import FaultyCamera
from line import Line, running_daemon

from inspectd.capture.quality_file import load_limits
from inspectd.challenge import MAX_PICTURE_BYTES, read_golden
from inspectd.config import load_settings
from inspectd.errors import ConfigError
from inspectd.model.bundle import load_bundle

CONFIG = """
[model]
bundle = "bundle"
sha256 = "{bundle}"
[publish]
bind = "tcp://127.0.0.1:*"
[control]
bind = "tcp://127.0.0.1:*"
[http]
bind = "127.0.0.1:0"
[[cameras]]
name = "line1"
source = "usb:0"
[[cameras.rois]]
name = "part"
box = [0, 0, 80, 80]
[recipes.lid]
bundle = "lid"
sha256 = "{lid}"
[recipes.again]
"""
GREEN = np.full((80, 160, 3), COLOURS["good"], np.uint8)


@pytest.fixture
def folder(tmp_path):
    hashes = {name: colour_bundle(tmp_path / name, size).sha256 for name, size in (("bundle", 32), ("lid", 16))}
    (tmp_path / "line.toml").write_text(CONFIG.format(**hashes))
    return tmp_path


def flip_a_bit(bundle):
    """Of a threshold: 0.8 becomes 0.9, and less is passed or more; the manifest stays as valid as it was."""
    raw = bytearray((bundle / "bundle.json").read_bytes())
    raw[raw.index(b'"pass_min": 0.8') + len('"pass_min": 0.')] ^= 1
    (bundle / "bundle.json").write_bytes(raw)
    return load_bundle(bundle).sha256


def exchange(bundle):
    """Another whole bundle in its place."""
    bundle.rename(bundle.with_name(f"{bundle.name}-old"))
    return colour_bundle(bundle, 24).sha256


def inspectd(*arguments):
    command = [sys.executable, "-m", "inspectd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_an_edited_bundle_that_is_bound_is_refused_at_the_start(folder):
    """One line that names both hashes, exit code 2; also a bundle that only a recipe names."""
    for name in ("bundle", "lid"):
        raw = (folder / name / "bundle.json").read_bytes()
        bound, other = load_bundle(folder / name).sha256, flip_a_bit(folder / name)
        ended = inspectd("run", "-c", folder / "line.toml")
        lines = [line for line in ended.stderr.splitlines() if "SHA-256" in line]
        assert (ended.returncode, len(lines)) == (2, 1), ended.stderr
        assert f"SHA-256 is {other}, the configuration binds it to {bound}" in lines[0]
        (folder / name / "bundle.json").write_bytes(raw)


def test_check_prints_what_to_bind_each_bundle_to(folder):
    """The value of a bundle can be copied from there, and it says which are not bound."""
    text = (folder / "line.toml").read_text()
    lid, bundle = (load_bundle(folder / name).sha256 for name in ("lid", "bundle"))
    (folder / "line.toml").write_text(text.replace(f'sha256 = "{lid}"\n', ""))
    told = inspectd("check", "-c", folder / "line.toml").stdout
    assert f'model {folder}/bundle: sha256 = "{bundle}" (bound)\n' in told
    assert f'model {folder}/lid: sha256 = "{lid}" (not bound)\n' in told


@pytest.mark.parametrize("change", [flip_a_bit, exchange])
def test_a_bound_bundle_that_was_changed_while_the_line_runs_is_taken_by_no_reload_and_no_recipe(
    folder, monkeypatch, change
):
    """The old one goes on, with the hash that verdicts carry; the right hash in the file lets the new one in."""
    bound = {name: load_bundle(folder / name).sha256 for name in ("bundle", "lid")}
    camera = FaultyCamera(fps=50, scene=lambda moment: "good")
    with running_daemon(monkeypatch, folder / "line.toml", camera) as daemon, Line(daemon) as line:
        line.state("ready")
        now = {name: change(folder / name) for name in bound}
        for op, name, fields in (
            ("reload", "bundle", {}),
            ("recipe", "lid", {"name": "lid"}),
            ("recipe", "bundle", {"name": "again"}),
        ):
            reply = line.ask(op, **fields)
            assert (reply["ok"], reply["error"]["code"]) == (False, "refused")
            message = f"SHA-256 is {now[name]}, the configuration binds it to {bound[name]}"
            assert message in reply["error"]["message"]
        assert line.verdict()["model"] == bound["bundle"][:12]
        text = (folder / "line.toml").read_text()
        (folder / "line.toml").write_text(
            text.replace(bound["bundle"], now["bundle"]).replace(bound["lid"], now["lid"])
        )
        assert line.ask("reload")["ok"]
        line.verdict(lambda verdict: verdict["model"] == now["bundle"][:12])


# -- files that are none --------------------------------------------------------------------------------------

ODD = {"pipe": os.mkfifo, "folder": os.mkdir, "endless": lambda path: path.symlink_to("/dev/zero")}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
@pytest.mark.timeout(20)  # reading a pipe would wait for ever
def test_golden_pictures_and_learnt_limits_that_are_no_files_are_refused_at_once(folder, make):
    """A pipe would hold up the change, or the start; a device would fill the memory."""
    make(folder / "odd")
    with pytest.raises(ConfigError, match=r"odd: is (no plain file|a folder)"):
        read_golden(folder / "odd")
    text = (folder / "line.toml").read_text().replace('source = "usb:0"', 'source = "usb:0"\nquality = "odd"')
    (folder / "line.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"odd: is (no plain file|a folder)"):
        load_limits(load_settings(folder / "line.toml", {}).cameras[0])


def test_a_golden_picture_that_claims_to_be_huge_is_refused(tmp_path):
    """A terabyte that takes no place on the disk; a picture of that very length is read."""
    cv2.imwrite(str(tmp_path / "good.png"), GREEN)
    assert read_golden(tmp_path / "good.png").shape == GREEN.shape
    os.truncate(tmp_path / "good.png", 1 << 40)
    with pytest.raises(ConfigError, match=f"longer than {MAX_PICTURE_BYTES:,} bytes"):
        read_golden(tmp_path / "good.png")
