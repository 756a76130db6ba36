"""Faults that show in the picture alone: the lens covered, the light wrong, out of focus; against what was learnt."""

import cv2
import numpy as np
import pytest
from colour_bundle import COLOURS, colour_bundle
from media import access_units, write_clip
from numbered import published
from plant import Plant
from row import fault
from rtsp_server import RtspServer, missing
from test_daemon import run_cli, unbalanced, write_config

GROUP = "Stream and picture"
FPS, COUNT, SIZE = 20, 60, (192, 128)
PART = (16, 16, 160, 96)
KEYS = 'quality = "line.quality.json"'
SETTINGS = "`quality` = a file, learnt by `inspectd check --learn`"

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def good(index):
    """A good part, green with a finer and a coarser pattern, on the move, under a sensor's noise."""
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    pattern = 30 * ((x + 2 * index) // 12 % 2) + 30 * (y // 12 % 2) - 30
    noise = np.random.default_rng(index).normal(0, 2, (SIZE[1], SIZE[0], 1))
    return np.clip(COLOURS["good"] + pattern[:, :, None] + noise, 0, 255).astype(np.uint8)


def covered(index):
    """Something before the lens takes 40 % of the light."""
    return (good(index) * 0.6).astype(np.uint8)


def overexposed(index):
    """Green is white; what is not reached by that keeps its shape."""
    return np.clip(good(index).astype(np.int16) + 90, 0, 255).astype(np.uint8)


def out_of_focus(index):
    return cv2.GaussianBlur(good(index), (0, 0), 3)


def clip(folder, scene):
    path = folder / f"{scene.__name__}.mp4"
    return write_clip(path, COUNT, size=SIZE, fps=FPS, gop=10, picture=scene, barcode=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    colour_bundle(folder / "bundle")
    return folder


@pytest.fixture(scope="module")
def line(folder):
    """A daemon that has learnt from its camera what pictures are like, as an engineer has it learn."""
    scenes = {scene.__name__: access_units(clip(folder, scene)) for scene in (covered, overexposed, out_of_focus)}
    with RtspServer(clip(folder, good), scenes=scenes) as server:
        config = write_config(folder, "line", [("line", server.url, KEYS, {"part": PART})])
        learnt = run_cli("check", "-c", config, "--learn", "--frames", 40)
        assert learnt.returncode == 0, learnt.stderr
        with Plant(config, truth=lambda _: "good") as plant:
            plant.server = server
            yield plant


def refused_until_good_again(line, watch, scene, reason):
    """From the first spoilt picture on nothing is judged, until it has been good again for two seconds."""
    line.judgement("pass")
    began = line.server.show(scene)
    watch.injected()
    line.subscriber.until(lambda m: m["topic"] == "status/line/" and m["reason"] == reason)
    watch.detected()
    assert not line.ready
    until = line.server.show()
    watch.over()
    line.subscriber.until(lambda m: m.get("verdict") == "pass" and published(m) > until)
    watch.recovered()
    # A picture that was sent before the change is published within `max_age_ms`, half a second.
    assert [m for m in line.judged if began + 0.5 < published(m) < until + 1] == []
    between = {m["reason"] for m in line.fresh if began + 0.5 < published(m) < until + 1}
    assert between == {"bad_image"}
    assert unbalanced(line.daemon.scrape()) == []


def image_row(name, injected, reason):
    """What the three rows have in common."""
    return fault(
        GROUP,
        name,
        injected=injected,
        does=f"`bad_image` from the first such picture on; after a second camera `fault: {reason}`; goes on when the "
        "picture has been good for two seconds. The model would have passed it",
        protection="limits of each region, learnt at commissioning",
        detect_s=3,
        recover_s=5,
        settings=SETTINGS,
    )


@image_row("Lens covered, lamp dim", "the pictures have 60 % of their light", "dark")
def test_a_covered_lens_is_dark(line, watch):
    refused_until_good_again(line, watch, "covered", "dark")


@pytest.mark.soak
@image_row("Over-exposed", "90 of 255 levels brighter, what is above is white", "bright")
def test_an_over_exposed_picture_is_bright(line, watch):
    refused_until_good_again(line, watch, "overexposed", "bright")


@pytest.mark.soak
@image_row("Out of focus", "blurred by 3 pixels (sigma)", "blurred")
def test_a_picture_out_of_focus_is_blurred(line, watch):
    refused_until_good_again(line, watch, "out_of_focus", "blurred")
