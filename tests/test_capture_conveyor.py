"""The generated conveyor camera: known truth, colours, pace, end."""

import itertools
import threading
import time
from collections import Counter

import cv2
import numpy as np
import pytest

from inspectd.capture.conveyor import ConveyorSource, Line, default_roi, truth_of
from inspectd.capture.conveyor_painter import Painter, _planar
from inspectd.config import CameraConfig
from inspectd.errors import CaptureError, Stopped
from inspectd.frame import Box, Frame
from inspectd.model.flange import DEFECTS, RADIUS, generator, make_patch
from inspectd.model.preprocess import Preprocessor, PreprocessSpec
from inspectd.model.synth import KINDS, lay, make_belt, render_part
from inspectd.source_spec import parse_source


def camera(query=""):
    return CameraConfig(name="line", source=f"conveyor:{query}", rois=[{"name": "part", "box": (0, 0, 64, 64)}])


def opened(query=""):
    source = ConveyorSource(camera(query))
    source.open()
    return source


class BareLine(Line):
    """The same line without parts."""

    def parts_at(self, index):
        return []


SMALL = {"width": 640, "height": 360}


@pytest.fixture(scope="module")
def painters():
    """A small line and the same line without its parts; both have the same belt, light and noise."""
    line = Line(**SMALL, seed=3, defects=0.5)
    return line, Painter(line), Painter(BareLine(**SMALL, seed=3, defects=0.5))


def metal_in(painters, index):
    """Where a part is brighter than the belt behind it, from the pixels: bool [H, W]; and any difference at all."""
    _, painter, bare = painters
    change = painter.paint(index)[0].astype(int) - bare.paint(index)[0]
    return change > 12, change != 0


def crop(mask, roi, grow=0):
    return mask[max(0, roi.y - grow) : roi.y + roi.height + grow, max(0, roi.x - grow) : roi.x + roi.width + grow]


def test_truth_is_what_the_pixels_of_the_station_show(painters):
    """Three cycles, every second frame: empty is empty to the last pixel, a kind is wholly inside, None is neither."""
    line, roi = painters[0], painters[0].roi
    seen = Counter()
    for index in range(0, 180, 2):
        truth = line.truth(index)
        metal, changed = metal_in(painters, index)
        inside = crop(metal, roi)
        if truth == "empty":
            assert not crop(changed, roi).any(), f"frame {index}"
        elif truth is not None:
            assert inside.sum() > 0.7 * np.pi * (RADIUS[0] * roi.width) ** 2, f"frame {index}"
            assert not inside[:, [0, -1]].any(), f"frame {index}: touches the edge"
        else:
            near, slack = round(0.1 * roi.width), round(0.04 * roi.width)
            assert crop(changed, roi, near).any(), f"frame {index}: nothing near, and yet not called empty"
            if (columns := np.flatnonzero(crop(metal, roi, near).any(axis=0))).size:
                wholly_inside = columns[0] > near + slack and columns[-1] < near + roi.width - slack
                assert not wholly_inside, f"frame {index}"
        seen["none" if truth is None else "empty" if truth == "empty" else "part"] += 1
    assert min(seen["none"], seen["empty"], seen["part"]) >= 6


def test_every_part_is_wholly_inside_for_several_frames_with_the_empty_belt_in_between():
    runs = [(kind, len(list(group))) for kind, group in itertools.groupby(map(Line(seed=1).truth, range(3000)))]
    parts = [length for kind, length in runs[1:-1] if kind not in (None, "empty")]
    gaps = [length for kind, length in runs[1:-1] if kind == "empty"]
    assert len(parts) == 49
    assert len(gaps) == 50
    assert min(parts) >= 15
    assert min(gaps) >= 4
    order = [kind for kind, _ in runs]
    assert all(order[i] is None for i in range(1, len(order), 2)), "between a part and a gap lies the ambiguous"


def test_kinds_come_in_the_configured_shares():
    line = Line(seed=9, defects=0.3)
    counts = Counter(line.part(number).kind for number in range(3000))
    assert counts["good"] / 3000 == pytest.approx(0.7, abs=0.03)
    for kind in DEFECTS:
        assert counts[kind] / 3000 == pytest.approx(0.1, abs=0.02)
    assert {Line(defects=0).part(n).kind for n in range(200)} == {"good"}
    assert {Line(defects=1).part(n).kind for n in range(200)} == set(DEFECTS)


def test_truth_depends_on_options_and_index_alone():
    spec = parse_source("conveyor:?seed=4&defects=0.6")
    source = opened("?seed=4&defects=0.6")
    truths = [truth_of(spec, index) for index in range(0, 3000, 7)]
    assert truths == [source.truth(index) for index in range(0, 3000, 7)]
    assert truths != [truth_of(parse_source("conveyor:?seed=5&defects=0.6"), index) for index in range(0, 3000, 7)]
    assert set(truths) == {None, *KINDS}


def test_a_frame_depends_on_options_and_index_alone():
    """Not on the frames before it: a reader that joins late, or a second camera, sees the same picture."""
    line = Line(**SMALL, seed=3)
    one, other = Painter(line), Painter(line)
    for index in range(40):
        one.paint(index)
    for a, b in zip(one.paint(61), other.paint(61), strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_two_frames_in_a_row_are_equal():
    """At 500 fps the belt moves less than a pixel: the sensor's noise still changes."""
    line = Line(**SMALL, fps=500)
    painter = Painter(line)
    lumas = [painter.paint(index)[0] for index in range(20)]
    assert all((a != b).mean() > 0.5 for a, b in itertools.pairwise(lumas))


def test_colours_are_those_of_the_rgb_picture(painters):
    """Through the line's own preprocessing, the station looks as if belt, part and light were put together in RGB."""
    line, painter, _ = painters
    roi = line.roi
    stained = next(number for number in range(100) if line.part(number).kind == "stain")
    shown = set()
    for index in (0, 30, 60, 120, 130, 60 * stained):
        travelled = line.travelled(index)
        belt = make_belt(line.seed + 100, 2 * line.width, line.height, roi.width)
        picture = np.ascontiguousarray(np.roll(belt, travelled, axis=1)[:, : line.width])
        for plan, x in line.parts_at(index):
            patch = make_patch(plan.kind, line.generator(plan.number, 2), painter._light, roi.width, plan.radius)
            lay(picture, patch, x, roi.y + roi.height // 2 + plan.across)
        gain = painter._light.field(line.width, line.height, roi.width)[..., None].astype(np.float32) / 255
        expected = (picture * gain)[roi.y : roi.y + roi.height, roi.x : roi.x + roi.width]
        size = (112, 112)
        expected = cv2.resize(expected, size, interpolation=cv2.INTER_AREA)
        source = ConveyorSource(camera())
        frame = next(iter_frame(source, painter, line, index))
        out = np.empty((*size[::-1], 3), np.uint8)
        Preprocessor(PreprocessSpec(width=size[0], height=size[1]))(frame, roi, out)
        difference = out.astype(np.float32) - expected
        assert np.abs(difference).mean() < 2, f"frame {index}"
        assert np.abs(difference.mean(axis=(0, 1))).max() < 1.5, f"frame {index}: a colour cast"
        assert np.abs(cv2.blur(difference, (5, 5))).max() < 3.5, f"frame {index}: a part of another colour"
        shown.add(line.truth(index))
    assert {"good", "stain", "empty"} <= shown


def test_strong_colours_come_through_too():
    """Steel and rubber are grey: red, green and blue tell BT.709 from BT.601, and U from V."""
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (128, 128, 128)]
    picture = np.repeat(np.repeat(np.array([colours], np.uint8), 32, axis=0), 32, axis=1)
    luma, u, v = _planar(picture)
    frame = Frame(
        "yuv420p", 160, 32, (luma + 16, u, v), "bt709", full_range=False, arrival=0, captured_at=0, clock="arrival"
    )
    out = np.empty((32, 160, 3), np.uint8)
    Preprocessor(PreprocessSpec(width=160, height=32))(frame, Box(0, 0, 160, 32), out)
    for place, colour in enumerate(colours):
        np.testing.assert_allclose(out[16, 32 * place + 16], colour, atol=3)


def iter_frame(source, painter, line, index):
    """One frame as the source would yield it, at that index."""
    source.line, source._painter = line, painter
    for frame in source.frames():
        frame.planes = painter.paint(index)
        yield frame


def sharpness_and_light(picture):
    grey = picture.astype(np.float32).mean(axis=2)
    return np.array([grey.mean(), grey.std(), (grey - cv2.GaussianBlur(grey, (0, 0), 1.5)).std()])


def test_the_station_looks_like_the_pictures_that_a_model_is_trained_on():
    """Brightness, contrast and fine structure at 224 lie within the range of the written pictures."""
    prepare = Preprocessor(PreprocessSpec())
    for kind in ("good", "empty"):
        written = []
        for seed in range(40):
            picture = render_part(kind, generator(seed))
            written.append(sharpness_and_light(cv2.resize(picture, (224, 224), interpolation=cv2.INTER_AREA)))
        low, high = np.min(written, axis=0), np.max(written, axis=0)
        for seed in range(2):
            line = Line(seed=seed, defects=0)
            painter = Painter(line)
            index = next(i for i in range(5, 200) if line.truth(i) == kind)
            frame = next(iter_frame(ConveyorSource(camera()), painter, line, index))
            out = np.empty((224, 224, 3), np.uint8)
            prepare(frame, line.roi, out)
            found = sharpness_and_light(out)
            assert (found >= 0.85 * low).all(), (kind, seed, found, low)
            assert (found <= 1.15 * high).all(), (kind, seed, found, high)


@pytest.mark.parametrize(
    ("width", "height"), [(1280, 720), (640, 480), (360, 640), (1920, 1080), (128, 128), (2048, 512)]
)
def test_any_size_has_a_station_inside_the_frame_and_planes_that_fit(width, height):
    roi = default_roi(width, height)
    assert roi.fits(width, height)
    assert roi.width == roi.height
    assert all(side % 2 == 0 for side in (roi.x, roi.y, roi.width))
    line = Line(width=width, height=height, defects=0)
    assert {line.truth(index) for index in range(120)} == {"good", "empty", None}
    luma, u, v = Painter(line).paint(7)
    assert luma.shape == (height, width)
    assert u.shape == v.shape == (height // 2, width // 2)
    assert luma.min() >= 0


def test_the_default_station_of_the_default_camera():
    assert default_roi(1280, 720) == Box(320, 40, 640, 640)


def test_frames_say_what_they_are():
    source = opened("?fps=25&realtime=0&frames=3")
    before = time.monotonic(), time.time()
    frames = list(itertools.islice(source.frames(), 3))
    assert [frame.pts for frame in frames] == [0, 0.04, 0.08]
    for frame in frames:
        assert (frame.format, frame.width, frame.height) == ("yuv420p", 1280, 720)
        assert (frame.matrix, frame.full_range, frame.clock, frame.corrupt) == ("bt709", False, "arrival", False)
        assert before[0] <= frame.arrival <= time.monotonic()
        assert before[1] - 1 <= frame.captured_at <= time.time() + 1
        assert not np.shares_memory(frame.planes[0], frames[0].planes[0]) or frame is frames[0]


def test_a_limited_run_ends_as_finished():
    source = opened("?frames=4&realtime=0&width=128&height=128")
    frames = source.frames()
    assert len(list(itertools.islice(frames, 4))) == 4
    with pytest.raises(CaptureError, match="all 4 frames") as ended:
        next(frames)
    assert ended.value.reason == "finished"


def test_realtime_keeps_the_frame_rate():
    source = opened("?fps=50&width=128&height=128")
    arrivals = [frame.arrival for frame in itertools.islice(source.frames(), 11)]
    assert arrivals[-1] - arrivals[0] >= 10 / 50 - 0.005


def test_a_late_consumer_gets_every_frame_and_no_burst():
    """The belt waits: after a pause the schedule starts anew instead of catching up."""
    source = opened("?fps=20&width=128&height=128")
    frames = source.frames()
    first = next(frames)
    threading.Event().wait(0.3)  # the consumer's own work: six periods
    later = list(itertools.islice(frames, 4))
    assert [frame.pts for frame in (first, *later)] == [0, 0.05, 0.1, 0.15, 0.2]
    assert later[-1].arrival - later[0].arrival >= 3 * 0.05 - 0.001


def test_interrupt_ends_a_wait_at_once():
    """The second frame of a line with one frame in 10 s is 10 s away."""
    source = opened("?fps=0.1&width=128&height=128")
    got_first, result = threading.Event(), []

    def consume():
        try:
            for _ in source.frames():
                got_first.set()
        except Stopped as stopped:
            result.append(stopped)

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    assert got_first.wait(10)
    source.interrupt()
    thread.join(5)
    assert not thread.is_alive()
    assert len(result) == 1


def test_interrupt_also_ends_a_source_that_never_waits():
    source = opened("?realtime=0&width=128&height=128")
    frames = source.frames()
    next(frames)
    source.interrupt()
    with pytest.raises(Stopped):
        next(frames)
    source.close()
    source.close()


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("?width=true", "width=true"),
        ("?width=1281", "width=1281"),
        ("?height=64", "height=64"),
        ("?fps=0", "fps=0"),
        ("?defects=1.5", "defects=1.5"),
        ("?seed=1.5", "seed=1.5"),
    ],
)
def test_an_unusable_option_is_named(query, named):
    with pytest.raises(CaptureError, match=named) as refusal:
        opened(query)
    assert refusal.value.reason == "settings"


def test_closing_before_opening_is_harmless():
    source = ConveyorSource(camera())
    source.close()
    with pytest.raises(CaptureError, match="before open"):
        next(source.frames())
