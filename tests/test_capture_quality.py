"""Covered, over-exposed, out of focus: what is measured, what is learnt, and what the gate does with it."""

import itertools
import json
import math
import os
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from colour_bundle import colour_bundle
from faulty_camera import FaultyCamera
from line import Line, running_daemon

from inspectd import cli
from inspectd.capture import learning, quality
from inspectd.capture.conveyor_line import Line as Belt
from inspectd.capture.conveyor_painter import Painter
from inspectd.capture.gate import Gate
from inspectd.capture.learning import doubts, learn, observe, widened
from inspectd.capture.quality import HOLD_S, Limits, Quality, measure
from inspectd.capture.quality_file import QualityFile, Region, load_limits, write_quality
from inspectd.capture.source import Source
from inspectd.config import CameraConfig
from inspectd.errors import CaptureError, ConfigError, InspectdError
from inspectd.frame import Box, Frame

BELT = Belt(width=640, height=360, fps=15)
LOOSE = Limits(level_min=0.2, level_max=0.9, dark_max=1, bright_max=1, contrast_min=0, sharpness_min=0)


def frame(planes, kind="yuv420p", full_range=False, arrival=0.0):
    height, width = planes[0].shape[:2]
    width *= 2 if kind == "yuyv422" else 1
    return Frame(kind, width, height, planes, "bt709", full_range, arrival, 0.0, "arrival")


def gray(luma, arrival=0.0):
    return frame((luma,), "gray", full_range=True, arrival=arrival)


def config(path=Path("q.json"), source="conveyor:", rois=(("part", (0, 0, 64, 64)),), **changes):
    regions = [{"name": name, "box": box} for name, box in rois]
    return CameraConfig(name="line1", source=source, rois=regions, quality=path, **changes)


@cache
def grain(shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def noise(luma, sigma=3.0):
    """What a sensor adds behind any lens."""
    return np.clip(luma + sigma * grain(luma.shape), 0, 255).astype(np.uint8)


# -- what is measured -----------------------------------------------------------------------------------


def scene():
    """Gray shapes with soft and hard edges, 0..255, [200, 304]."""
    picture = np.full((200, 304), 60, np.uint8)
    cv2.circle(picture, (150, 100), 70, 180, -1)
    cv2.rectangle(picture, (20, 20), (80, 60), 0, -1)
    cv2.rectangle(picture, (240, 120), (300, 180), 255, -1)
    return picture


def layouts(picture):
    """The same gray picture in every layout and range that a decoder leaves."""
    limited = np.round(16 + picture * (219 / 255)).astype(np.uint8)
    chroma = np.full((100, 152), 128, np.uint8)
    tall = np.full((200, 152), 128, np.uint8)
    quads = np.stack([limited[:, ::2], tall, limited[:, 1::2], tall], axis=2)
    padded = np.zeros((200, 320), np.uint8)
    padded[:, :304] = picture
    yield frame((picture,), "gray", full_range=True)
    yield frame((padded[:, :304],), "gray", full_range=True)
    yield frame((limited,), "gray")
    yield frame((limited, chroma, chroma))
    yield frame((picture, chroma, chroma), full_range=True)
    yield frame((limited, np.stack([chroma, chroma], axis=2)), "nv12")
    yield frame((limited, tall, tall), "yuv422p")
    yield frame((quads,), "yuyv422")
    for kind in ("bgr24", "rgb24"):
        yield frame((np.repeat(picture[:, :, None], 3, axis=2),), kind)


@pytest.mark.parametrize("box", [Box(0, 0, 304, 200), Box(11, 7, 251, 183), Box(100, 60, 8, 9)])
def test_every_layout_and_range_measures_the_same(box):
    """Limits are learnt from what the camera sends today; a picture is the same picture in any of them."""
    first, *others = [measure(each, box) for each in layouts(scene())]
    for other in others:
        assert other.level == pytest.approx(first.level, abs=0.004)
        assert other.contrast == pytest.approx(first.contrast, abs=0.004)
        assert (other.dark, other.bright) == pytest.approx((first.dark, first.bright), abs=0.004)
        assert other.sharpness == pytest.approx(first.sharpness, abs=0.02)


@pytest.mark.parametrize("size", [(8, 8), (8, 16384), (16384, 8), (17, 9000), (319, 321), (3000, 2000)])
def test_any_shape_of_region_can_be_measured(size):
    """From the smallest to the whole of a large sensor."""
    width, height = size
    seen = measure(gray(np.random.default_rng(0).integers(100, 156, (height, width), np.uint8)), Box(0, 0, *size))
    assert seen.level == pytest.approx(0.5, abs=0.05)
    assert 0.5 < seen.sharpness <= 1


def test_levels_and_clipped_shares_are_those_of_the_picture():
    """From 0 to 1 between the range's black and white, whatever lies beyond it."""
    half = np.zeros((100, 100), np.uint8)
    half[:, 50:] = 255
    seen = measure(frame((half,), "gray"), Box(0, 0, 100, 100))
    assert (seen.dark, seen.bright) == (0.5, 0.5)
    assert measure(gray(half), Box(0, 0, 100, 100)).level == pytest.approx(0.5)
    assert measure(gray(half), Box(0, 0, 40, 40)) == Quality(0, 1, 0, 0, 1)


def test_sharpness_knows_focus_and_not_light():
    """A third of the light, half of the contrast and any noise leave it; each step out of focus lowers it."""
    picture = cv2.GaussianBlur(scene(), (0, 0), 0.7)

    def sharpness(luma):
        return measure(gray(luma), Box(0, 0, 304, 200)).sharpness

    sharp = sharpness(picture)
    dim, pale = (picture * 0.33).astype(np.uint8), (100 + picture * 0.5).astype(np.uint8)
    for same in (dim, pale, noise(picture, sigma=3), noise(picture, sigma=8)):
        assert sharpness(same) == pytest.approx(sharp, rel=0.1)
    blurred = [sharpness(noise(cv2.GaussianBlur(picture, (0, 0), sigma), sigma=3)) for sigma in (1, 2, 3)]
    assert sharp * 0.65 > blurred[0] > blurred[1] > blurred[2]


# -- the line, as it runs and as it must not ----------------------------------------------------------------


@pytest.fixture(scope="module")
def belt():
    """Luma of the running conveyor: what is learnt from, and what comes later, with other parts."""
    painter = Painter(BELT)
    return [painter.paint(index)[0] for index in range(90)], [painter.paint(index)[0] for index in range(150, 210)]


@pytest.fixture(scope="module")
def limits(belt):
    return learn([measure(frame((luma,)), BELT.roi) for luma in belt[0]])


def blurred(luma):
    return noise(cv2.GaussianBlur(luma, (0, 0), 3))


def brighter(luma):
    return np.clip((luma.astype(np.int16) - 16) * 2 + 16, 0, 255).astype(np.uint8)


def darker(luma):
    """With a third of the light, by the camera's gamma."""
    return noise(16 + (luma.astype(np.float32) - 16) * 0.6, sigma=1)


def hand(luma):
    """Near the lens, far out of focus, about as bright as the line."""
    slope = np.linspace(95, 102, luma.shape[1], dtype=np.float32)
    return noise(np.broadcast_to(slope, luma.shape))


def capped(luma):
    return noise(np.full(luma.shape, 16, np.uint8), sigma=1.5)


FAULTS = {"dark": (capped, darker), "bright": (brighter,), "flat": (hand,), "blurred": (blurred,)}


def gate_of(limits, **changes):
    box = BELT.roi
    settings = config(rois=[("part", (box.x, box.y, box.width, box.height))], **changes)
    return Gate(settings, {"part": limits})


def play(gate, pictures, start=0.0, fps=15):
    """How the gate takes them, one after the other."""
    return [gate.admit(frame((y,), arrival=start + n / fps), start + n / fps) for n, y in enumerate(pictures)]


def test_parts_good_and_bad_and_the_empty_belt_pass_the_gate_that_learnt_from_others(belt, limits):
    """Four seconds with two parts that were not learnt from; nothing is refused."""
    assert set(play(gate_of(limits), belt[1])) == {"admitted"}


@pytest.mark.parametrize(("kind", "spoil"), [(kind, spoil) for kind, all_ in FAULTS.items() for spoil in all_])
def test_a_spoilt_picture_is_refused_with_its_name(belt, limits, kind, spoil):
    """Lens cap, weak lamp, over-exposure, hand, focus: from the first part in view no frame is admitted."""
    gate = gate_of(limits)
    answers = play(gate, [spoil(luma) for luma in belt[1]])
    first = answers.index("bad_image")
    assert first < 2 * BELT.fps
    assert set(answers[first:]) == {"bad_image"}
    assert gate.fault("bad_image") == kind
    assert gate.detail(gray(belt[1][0]), "bad_image").startswith("ROI 'part': ")


def test_a_live_picture_must_be_good_for_a_while_before_one_is_judged(belt, limits):
    """Half the light spares bright parts, and shows on the dark belt between them."""
    gate = gate_of(limits)
    play(gate, [capped(belt[1][0])])
    answers = play(gate, belt[1], start=0.1)
    good = answers.index("admitted")
    assert good / 15 == pytest.approx(HOLD_S, abs=0.1)
    assert set(answers[good:]) == {"admitted"}


@pytest.mark.parametrize(
    ("between", "first"),
    [
        ([], 9.0),  # a camera that is away for 7 s
        ([n / 10 for n in range(11, 90)], 9.0),  # nothing but damaged pictures for so long
        ([0.1, *(n / 10 for n in range(11, 90))], 8.5),  # as much, behind one good picture
    ],
)
def test_the_good_time_after_a_bad_picture_is_seen_and_does_not_merely_pass(between, first):
    """No good picture before 9 s but one at 0.1 s at most: the lamp may be as dim as before."""
    gate = Gate(config(frozen_after_s=0), {"part": LOOSE})
    good, black = np.full((64, 64), 128, np.uint8), np.zeros((64, 64), np.uint8)
    assert gate.admit(gray(black), 0.0) == "bad_image"
    for at in between:
        picture = gray(good, at)
        picture.corrupt = at > 1
        assert gate.admit(picture, at) in ("bad_image", "corrupt")
    gate.restart()
    times = [9 + n / 10 for n in range(40)]
    answers = [gate.admit(gray(good, at), at) for at in times]
    assert times[answers.index("admitted")] == pytest.approx(first + HOLD_S, abs=0.15)


def test_a_slow_camera_shows_several_good_pictures_before_one_is_judged():
    """One in 2.5 s, of which every second one shows the dark belt: none is judged until the lamp is mended."""
    gate = Gate(config(frozen_after_s=0), {"part": LOOSE})
    lit, belt = np.full((64, 64), 128, np.uint8), np.full((64, 64), 20, np.uint8)
    dim = [gate.admit(gray((lit, belt)[n % 2], 2.5 * n), 2.5 * n) for n in range(1, 10)]
    assert set(dim) == {"bad_image"}
    mended = [gate.admit(gray(lit, 2.5 * n), 2.5 * n) for n in range(10, 16)]
    assert mended == ["bad_image"] * 4 + ["admitted"] * 2


def test_a_change_of_recipe_does_not_end_the_wait(belt, limits):
    """The lens is the same; only the regions are others."""
    gate = gate_of(limits)
    play(gate, [capped(belt[1][0])])
    gate.adopt(config(rois=[("lid", (64, 64, 200, 200))]), {"lid": LOOSE.model_copy(update={"level_min": 0.0})})
    assert set(play(gate, belt[1][:10], start=0.5)) == {"bad_image"}
    assert gate.fault("bad_image") == "dark"


def test_a_recording_is_refused_frame_by_frame(belt, limits):
    """Its pictures come as fast as they are read: a time says nothing."""
    gate = gate_of(limits, source="file:clip.mp4")
    pictures = [belt[1][0], capped(belt[1][0]), belt[1][1]]
    assert play(gate, pictures) == ["admitted", "bad_image", "admitted"]


def test_one_bad_region_refuses_the_frame():
    """They share the lens."""
    rois = [("left", (0, 0, 32, 64)), ("right", (32, 0, 32, 64))]
    gate = Gate(config(rois=rois, frozen_after_s=0), {"left": LOOSE, "right": LOOSE})
    picture = np.full((64, 64), 128, np.uint8)
    assert gate.admit(gray(picture), 0.0) == "admitted"
    picture[:, 32:] = 0
    assert gate.admit(gray(picture, 0.1), 0.1) == "bad_image"
    assert gate.detail(gray(picture), "bad_image") == "ROI 'right': level 0.000, at least 0.200 was learnt"
    assert {name: seen.level for name, seen in gate.seen.items()} == pytest.approx(
        {"left": 0.502, "right": 0.0}, abs=1e-3
    )


def test_the_rule_comes_after_age_and_before_frost():
    """A lens cap's picture does not move either; and an old picture proves nothing."""
    gate = Gate(config(max_age_ms=500, frozen_after_s=1), {"part": LOOSE})
    black = np.zeros((64, 64), np.uint8)
    answers = [gate.admit(gray(black, n / 4), n / 4) for n in range(10)]
    assert set(answers) == {"bad_image"}
    assert gate.admit(gray(black, 3.0), 3.6) == "stale"
    assert gate.admit(frame((black[:32],), "gray", full_range=True, arrival=3.7), 3.7) == "resized"
    good = np.full((64, 64), 128, np.uint8)
    assert [gate.admit(gray(good, 10 + n / 4), 10 + n / 4) for n in range(9)] == ["bad_image"] * 8 + ["frozen"]
    assert gate.admit(gray(good + 1, 12.25), 12.25) == "admitted"


def test_a_gate_that_is_asked_for_is_never_made_without_its_limits():
    with pytest.raises(AssertionError):
        Gate(config())
    with pytest.raises(KeyError):
        Gate(config(), {"another": LOOSE})


# -- learning -----------------------------------------------------------------------------------------------


def qualities(count=200, **changes):
    """A line whose level goes up and down."""
    fixed = {"dark": 0.0, "bright": 0.0, "contrast": 0.1, "sharpness": 0.3} | changes
    return [Quality(level=0.4 + 0.1 * math.sin(n), **fixed) for n in range(count)]


def test_one_odd_picture_in_two_hundred_teaches_nothing():
    """A flash, a fly, a broken frame."""
    usual = qualities()
    odd = [*usual[1:], Quality(1.0, 0.0, 1.0, 0.0, 0.0)]
    assert learn(odd).model_dump() == pytest.approx(learn(usual).model_dump(), abs=0.002)


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (Quality(0.01, 1, 0, 0.01, 1), "it is black"),
        (Quality(0.99, 0, 1, 0.01, 1), "it is white"),
        (Quality(0.5, 0, 0, 0.001, 1), "is the lens covered"),
    ],
)
def test_nothing_is_learnt_from_a_covered_lens(seen, message):
    """Limits around black would let black through for good."""
    with pytest.raises(InspectdError, match=message):
        learn([seen] * 200)


def test_what_looks_wrong_is_said():
    def said(seen, broke_off=None):
        return " ".join(doubts(learning.Lesson({"part": seen}, broke_off)))

    assert said(qualities()) == ""
    assert "only 20 frames" in said(qualities(20))
    assert "the recording ended after 60 frames" in said(qualities(60), "the recording ended")
    assert "camera frozen" in said(qualities(1) * 200)
    assert "nothing moved" in said([Quality(0.4 + n * 1e-6, 0, 0, 0.1, 0.3) for n in range(200)])
    assert "clipped" in said(qualities(bright=0.4))


def test_widened_limits_allow_what_either_allows():
    one, other = learn(qualities()), learn([Quality(0.7, 0.1, 0.2, 0.05, 0.5), Quality(0.8, 0.1, 0.2, 0.4, 0.1)])
    both = widened(one, other)
    for seen in (*qualities(), Quality(0.7, 0.1, 0.2, 0.05, 0.5)):
        assert both.broken_by(seen) is None
    assert other.broken_by(qualities()[4])


class Scripted(Source):
    """Frames from a list, then the error."""

    def __init__(self, frames, error=None):
        self._frames, self._error, self.closed = frames, error, False

    def open(self):
        pass

    def frames(self):
        yield from self._frames
        raise self._error or CaptureError("ended", "no more")

    def interrupt(self):
        pass

    def close(self):
        self.closed = True


def test_the_second_in_which_exposure_settles_and_damaged_frames_are_not_learnt():
    """A USB camera begins black; a decoder's grey says nothing of the lens."""
    black, good = np.zeros((64, 64), np.uint8), np.full((64, 64), 128, np.uint8)
    shown = [gray(black, n / 30) for n in range(30)] + [gray(good, 1.1 + n / 30) for n in range(6)]
    shown[32].corrupt, shown[32].planes = True, (black,)
    source = Scripted(shown)
    lesson = observe(config(), 5, lambda _: source)
    assert [round(one.level, 2) for one in lesson.seen["part"]] == [0.5] * 5
    assert source.closed


def test_a_camera_that_is_lost_teaches_nothing_and_a_short_recording_what_it_has():
    shown = [gray(np.full((64, 64), 128, np.uint8), float(n)) for n in range(4)]
    with pytest.raises(CaptureError, match="no more"):
        observe(config(), 50, lambda _: Scripted(shown))
    end = CaptureError("finished", "played")
    lesson = observe(config(source="file:clip.mp4"), 50, lambda _: Scripted(shown, end))
    assert (lesson.frames, lesson.broke_off) == (4, "the recording ended")
    with pytest.raises(ConfigError, match=r"ROI 'part' \[0, 0, 65, 64\] lies outside the 64x64 frame"):
        observe(config(rois=[("part", (0, 0, 65, 64))]), 50, lambda _: Scripted(shown))


REAL = Path(os.environ.get("INSPECTD_NEU_DET", "no such folder"))


@pytest.mark.skipif(not REAL.is_dir(), reason="INSPECTD_NEU_DET is the folder of NEU-DET's pictures")
@pytest.mark.parametrize("kind", ["crazing", "patches", "rolled-in_scale"])
def test_real_steel_is_admitted_and_out_of_focus_it_is_not(kind):
    """Learnt from every other picture of one defect; blurred by a 1.5 pixels' sigma all of the rest are refused."""
    pictures = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(REAL.rglob(f"{kind}/*.jpg"))]
    box = Box(0, 0, 200, 200)
    limits = learn([measure(gray(picture), box) for picture in pictures[::2]])
    broken = [limits.broken_by(measure(gray(picture), box)) for picture in pictures[1::2]]
    assert sum(each is not None for each in broken) <= 0.01 * len(broken)
    soft = [cv2.GaussianBlur(picture, (0, 0), 1.5) for picture in pictures[1::2]]
    assert all(limits.broken_by(measure(gray(picture), box)) for picture in soft)


# -- the file -----------------------------------------------------------------------------------------------


def written(path, camera="line1", **boxes):
    regions = tuple(Region(roi=name, box=box, frames=200, limits=LOOSE) for name, box in boxes.items())
    write_quality(path, QualityFile(camera=camera, regions=regions))
    return path


def test_limits_come_back_as_they_were_written_each_for_its_region(tmp_path):
    path = written(tmp_path / "q.json", part=(0, 0, 64, 64), lid=(8, 0, 16, 16))
    assert load_limits(config(path)) == {"part": LOOSE}
    assert load_limits(config(None)) is None
    assert [each.name for each in tmp_path.iterdir()] == ["q.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: None, "no such file; `inspectd check -c FILE --learn` makes it"),
        (lambda text: text.replace("line1", "line2"), "was learnt by camera 'line2'; each camera needs its own file"),
        (
            lambda text: text.replace("64", "72"),
            r"has no limits for ROI 'part' \[0, 0, 64, 64\], only for \[0, 0, 72, 72\]",
        ),
        (lambda text: text.replace("part", "lid"), r"has no limits for ROI 'part' \[0, 0, 64, 64\]; `inspectd check"),
        (lambda text: text.replace("quality/1", "quality/2"), "knows: format: Input should be 'inspectd.quality/1'"),
        (lambda text: text.replace("0.2", "NaN"), "regions.0.limits.level_min"),
        (lambda text: text[:40], "is no file of learnt limits"),
        (lambda text: "", "is no file of learnt limits"),
        (lambda text: text + " " * 1_000_000, "is longer than 1,000,000 bytes"),
        (lambda text: "[" * 900_000, "is no file of learnt limits"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, change, message):
    """It names the key, the file and what is wrong."""
    path = written(tmp_path / "q.json", part=(0, 0, 64, 64))
    text = change(path.read_text())
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        load_limits(config(path))
    assert str(refused.value).startswith(f"cameras[line1].quality: {path}")
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = written(tmp_path / "q.json", part=(0, 0, 64, 64))
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        written(path, lid=(0, 0, 16, 16))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# -- the command --------------------------------------------------------------------------------------------

LINE = """
[model]
bundle = "bundle"
[[cameras]]
name = "line1"
source = "conveyor:?width=192&height=128&realtime=0&fps=10"
quality = "line1.quality.json"
[[cameras.rois]]
name = "part"
box = [40, 8, 112, 112]
[recipes.lid]
rois = [{ camera = "line1", name = "lid", box = [40, 8, 64, 64] }]
"""


@pytest.fixture
def inspectd(monkeypatch, capsys, tmp_path):
    """`inspectd COMMAND -c line1.toml …` in a folder of its own; (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(learning, "SETTLE_S", 0.0)
    Path("line1.toml").write_text(LINE)

    def run(command, *arguments):
        monkeypatch.setattr("sys.argv", ["inspectd", command, "-c", "line1.toml", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return run


def regions(path=Path("line1.quality.json")):
    return {region["roi"]: region for region in json.loads(path.read_text())["regions"]}


def test_learn_writes_limits_that_check_then_demands(inspectd):
    """Before them the configuration is refused; the recipe without any is a warning until it has learnt, too."""
    colour_bundle(Path("bundle"))
    code, _, err = inspectd("check")
    missing = f"cameras[line1].quality: {Path.cwd()}/line1.quality.json: no such file"
    assert (code, err) == (2, f"inspectd: {missing}; `inspectd check -c FILE --learn` makes it\n")
    code, out, _ = inspectd("check", "--learn", "--frames", "60")
    assert (code, "60 frames; part level 0." in out, "warn" in out) == (0, True, False)
    code, out, _ = inspectd("check")
    assert code == 0
    assert out.startswith("warn  recipes.lid: cameras[line1].quality: ")
    assert (
        "has no limits for ROI 'lid' [40, 8, 64, 64]; `inspectd check -c FILE --learn` learns them, with --recipe lid"
        in out
    )
    assert inspectd("check", "--learn", "--recipe", "lid", "--frames", "60")[0] == 0
    assert set(regions()) == {"part", "lid"}
    assert "warn" not in inspectd("check")[1]


def test_learnt_limits_are_replaced_or_widened_only_when_asked(inspectd):
    assert inspectd("check", "--learn", "--frames", "60")[0] == 0
    before = Path("line1.quality.json").read_text()
    code, out, _ = inspectd("check", "--learn", "--frames", "10")
    assert (code, "--force learns them anew, --widen adds what is seen now" in out) == (2, True)
    assert Path("line1.quality.json").read_text() == before
    code, out, _ = inspectd("check", "--learn", "--frames", "2", "--force")
    assert (code, "warn  camera line1: only 2 frames" in out) == (0, True)
    narrow = regions()["part"]
    assert inspectd("check", "--learn", "--frames", "60", "--widen")[0] == 0
    wide = regions()["part"]
    assert (narrow["frames"], wide["frames"]) == (2, 62)
    assert wide["limits"]["level_min"] < narrow["limits"]["level_min"]


@pytest.mark.parametrize(
    ("arguments", "change", "code", "message"),
    [
        (("--widen",), ("", ""), 2, "--force and --widen go with --learn"),
        (("--recipe", "lid"), ("", ""), 2, "--recipe goes with --learn or --probe"),
        (("--learn", "--force", "--widen"), ("", ""), 2, "choose one"),
        (("--learn", "--recipe", "cap"), ("", ""), 2, "--recipe cap: the recipes are lid"),
        (("--learn",), ('quality = "line1.quality.json"', ""), 2, "set cameras[].quality"),
        (("--learn",), ("conveyor:", "file:nothing.mp4#"), 1, "FAIL  camera line1: "),
        (("--learn",), ("[40, 8, 112, 112]", "[40, 8, 400, 112]"), 2, "lies outside the 192x128 frame"),
        (("--learn",), ("line1.quality.json", "nowhere/q.json"), 2, "cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_learnt_is_one_line(inspectd, arguments, change, code, message):
    Path("line1.toml").write_text(LINE.replace(*change).replace("mp4#?width=192&height=128&realtime=0&fps=10", "mp4"))
    ended, out, err = inspectd("check", *arguments, *(("--frames", "3") if "--learn" in arguments else ()))
    lines = [line for line in (out + err).splitlines() if "3/3" not in line]
    assert (ended, len(lines), message in lines[0]) == (code, 1, True), lines


# -- the daemon ---------------------------------------------------------------------------------------------

DAEMON = """
[model]
bundle = "bundle"
[publish]
bind = "tcp://127.0.0.1:*"
[control]
bind = "tcp://127.0.0.1:*"
[http]
bind = "127.0.0.1:0"
[[cameras]]
name = "line1"
source = "usb:0"
quality = "q.json"
[[cameras.rois]]
name = "part"
box = [0, 0, 80, 80]
[recipes.lid]
rois = [{ camera = "line1", name = "lid", box = [40, 0, 80, 80] }]
"""


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """The daemon at work before a camera that shows what `camera.shown` says: "good" is well lit, "empty" dark."""
    folder = tmp_path_factory.mktemp("line")
    colour_bundle(folder / "bundle")
    written(folder / "q.json", part=(0, 0, 80, 80))
    (folder / "line.toml").write_text(DAEMON)
    camera = FaultyCamera(fps=100, scene=lambda _: camera.shown)
    camera.shown = "good"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "HOLD_S", 0.3)
        with running_daemon(patch, folder / "line.toml", camera) as daemon, Line(daemon) as line:
            line.camera, line.limits = camera, folder / "q.json"
            line.state("ready")
            yield line
            assert all(account.balanced for account in daemon.ledger.snapshot())


def test_a_covered_camera_is_a_fault_that_goes_by_itself_and_never_a_verdict(line):
    """bad_image, then fault dark; once it sees again, ready and passes. What the dark shows is never judged."""
    line.verdict(lambda m: m["verdict"] == "pass")
    line.camera.shown = "empty"
    line.verdict(lambda m: m["reason"] == "bad_image")
    line.until(lambda topic, m: topic == "status/line1/" and (m["state"], m["reason"]) == ("fault", "dark"))
    line.daemon.station.cameras[0].supervise()
    level = line.daemon.metrics.registry.get_sample_value
    assert level("inspectd_image_level", {"camera": "line1", "roi": "part"}) == pytest.approx(10 / 255, abs=0.01)
    line.camera.shown = "good"
    line.until(lambda topic, m: topic == "status/line1/" and m["state"] == "ready")
    line.verdict(lambda m: m["verdict"] == "pass")
    verdicts = [
        m["verdict"] if m["reason"] is None else m["reason"] for t, m in line.messages if t.startswith("verdict/")
    ]
    live = [what for what in verdicts if what != "stale"]
    assert [what for what, _ in itertools.groupby(live)] == ["pass", "bad_image", "pass"]


def test_no_recipe_is_taken_without_its_limits_and_a_reload_takes_new_ones(line):
    """The refusal names region and box, and the line goes on; learnt in the meantime, they are taken."""
    refused = line.ask("recipe", name="lid")["error"]
    assert refused["code"] == "refused"
    assert "has no limits for ROI 'lid' [40, 0, 80, 80]" in refused["message"]
    written(line.limits, part=(0, 0, 80, 80), lid=(40, 0, 80, 80))
    assert line.ask("recipe", name="lid")["ok"]
    text = line.limits.read_text()
    line.limits.write_text(text.replace("0.2", "0.8"))
    assert line.ask("reload")["applied"] == [f"{line.limits}: limits of camera line1"]
    line.verdict(lambda m: (m["roi"], m["reason"]) == ("lid", "bad_image"))
    line.limits.write_text("spoilt")
    assert "is no file of learnt limits" in line.ask("reload")["error"]["message"]


def test_a_reload_without_the_key_ends_the_watch_and_its_metrics(line):
    """As the configuration says; what is not measured any more is not shown."""
    line.limits.with_name("line.toml").write_text(DAEMON.replace('quality = "q.json"', ""))
    assert line.ask("reload")["applied"] == [f"cameras[line1].quality: {line.limits} -> None"]
    line.verdict(lambda m: m["verdict"] == "pass")
    assert b"inspectd_image_level{" not in line.daemon.metrics.exposition("")[0]
