"""Varied and simulated training pictures: what may change, what must not, and that the generator alone decides."""

import time

import cv2
import numpy as np
import pytest
import torch

from inspectd.errors import DataError, UsageError
from inspectd.model.data import Pictures
from inspectd.model.flange import generator as numbers
from inspectd.model.manifest import ClassSpec
from inspectd.model.synth import render_part
from inspectd.workshop.augment import Augmenter
from inspectd.workshop.defects import kind_for, part_of, simulate
from inspectd.workshop.fill import fill_small_classes
from inspectd.workshop.preview import write_preview

SPECS = (("dent", "defect"), ("empty", "empty"), ("fault-7", "defect"), ("good", "ok"))
CLASSES = tuple(ClassSpec(name=name, role=role) for name, role in SPECS)
DENT, EMPTY, FAULT, GOOD = range(4)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def good_parts(count, side=96):
    return np.stack([render_part("good", numbers(17, k), (side, side)) for k in range(count)])


def flat(count, level=128, side=64):
    return torch.full((count, side, side, 3), level, dtype=torch.uint8)


@pytest.fixture(scope="module")
def training():
    """Ten good parts, an empty station, one dent, three of a fault that is a red square at the middle left."""
    good = good_parts(10)
    fault = good[:3].copy()
    fault[:, 44:56, 24:36] = (220, 30, 30)
    dent, empty = (render_part(kind, numbers(3), (96, 96)) for kind in ("dent", "empty"))
    pixels = np.concatenate([good, fault, [dent], [empty]])
    return Pictures(pixels, np.array([GOOD] * 10 + [FAULT] * 3 + [DENT] + [EMPTY]))


# -- augmentation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["industrial", "texture"])
def test_the_generator_alone_decides(preset):
    """Whatever else draws random numbers; and the pictures that were given stay as they are."""
    pixels = torch.from_numpy(good_parts(4))
    before = pixels.clone()
    augment = Augmenter(preset)
    first = augment(pixels, seeded(1))
    torch.manual_seed(99)
    np.random.default_rng(1).random(7)
    assert torch.equal(augment(pixels, seeded(1)), first)
    assert not torch.equal(augment(pixels, seeded(2)), first)
    assert torch.equal(pixels, before)
    assert first.shape == pixels.shape
    assert first.dtype == torch.uint8


def test_each_picture_is_varied_by_itself():
    pixels = torch.from_numpy(np.repeat(good_parts(1), 12, axis=0))
    varied = Augmenter("industrial")(pixels, seeded())
    assert len({picture.numpy().tobytes() for picture in varied}) == 12


@pytest.mark.parametrize("preset", ["industrial", "texture"])
def test_what_a_picture_becomes_does_not_depend_on_the_others(preset):
    """Half a batch, drawn one after the other, is the same as the whole: an out-of-memory retry changes nothing."""
    pixels = torch.from_numpy(good_parts(6))
    whole = Augmenter(preset)(pixels, seeded())
    halves = seeded()
    parts = [Augmenter(preset)(half, halves) for half in pixels.split(3)]
    assert torch.equal(torch.cat(parts), whole)


def test_none_leaves_pictures_and_generator_alone():
    pixels, generator = flat(3), seeded()
    assert torch.equal(Augmenter("none")(pixels, generator), pixels)
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=seeded()))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96), (96, 40)])
def test_industrial_keeps_all_of_the_picture_in_view(height, width):
    """A mark in each corner, where a crop or a shift would lose it first, is there in each of 200."""
    picture = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    for y in (0, height - 6):
        for x in (0, width - 6):
            picture[0, y : y + 6, x : x + 6] = 255
    varied = Augmenter("industrial")(picture.repeat(200, 1, 1, 1), seeded()).numpy()
    for one in varied:
        bright = (one.mean(axis=2) > 110).astype(np.uint8)
        quarters = [bright[: height // 2], bright[height // 2 :]]
        sides = [side for half in quarters for side in (half[:, : width // 2], half[:, width // 2 :])]
        assert min(side.sum() for side in sides) >= 16  # of 36 pixels, 0.85 as large each way


def test_texture_has_all_eight_symmetries_and_crops():
    """A picture of four different quarters comes in every order; and part of it fills the whole now and then."""
    levels = np.array([[40, 100], [160, 220]], np.uint8).repeat(32, 0).repeat(32, 1)
    batch = torch.from_numpy(np.repeat(levels[None, :, :, None], 3, axis=3)).repeat(150, 1, 1, 1)
    varied = Augmenter("texture")(batch, seeded()).numpy()[..., 0]
    corners = varied[:, [8, 8, 55, 55], [8, 55, 8, 55]]
    assert len({tuple(np.argsort(c)) for c in corners}) == 8
    largest = [max(np.bincount(np.abs(one[..., None].astype(int) - c).argmin(2).ravel(), minlength=4)) / 4096
               for one, c in zip(varied, corners, strict=True)]  # fmt: skip
    assert min(largest) < 0.27  # in the middle: all four alike
    assert 0.35 < max(largest) < 0.65  # far off: a crop that shows more of one, but never that alone


def test_texture_pictures_that_are_not_square_keep_their_way_up():
    levels = np.array([[40, 220]], np.uint8).repeat(32, 0).repeat(48, 1)
    batch = torch.from_numpy(np.repeat(levels[None, :, :, None], 3, axis=3)).repeat(60, 1, 1, 1)
    varied = Augmenter("texture")(batch, seeded()).numpy().astype(int)[..., 0]
    assert (np.abs(varied[:, :, 8].mean(1) - varied[:, :, -8].mean(1)) > 60).all()


def test_brightness_varies_and_hue_does_not():
    """Gray stays gray, and a tint keeps its channels in order."""
    gray = Augmenter("industrial")(flat(80), seeded()).numpy().astype(np.float64)
    means = gray.mean(axis=(1, 2))
    assert np.ptp(means[:, 0]) > 20
    assert np.abs(means - means.mean(axis=1, keepdims=True)).max() < 1
    tinted = flat(80)
    tinted[..., 0] += 12
    means = Augmenter("industrial")(tinted, seeded()).numpy().mean(axis=(1, 2))
    assert (means[:, 0] > means[:, 1] + 6).all()
    assert np.abs(means[:, 1] - means[:, 2]).max() < 1


def test_an_unknown_preset_is_refused():
    with pytest.raises(UsageError, match="'metal': unknown; there are industrial, texture, none"):
        Augmenter("metal")


def test_it_costs_little_beside_training():
    """At most 3 ms a picture at 224, of the 18 that training takes; measured 0.5."""
    cv2.setNumThreads(1)
    pixels = torch.from_numpy(np.repeat(good_parts(1, 224), 32, axis=0))
    augment, generator = Augmenter("industrial"), seeded()
    augment(pixels, generator)
    started = time.process_time()
    augment(pixels, generator)
    assert (time.process_time() - started) / 32 < 3e-3


# -- simulated defects --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scratch", "dent", "stain", "cutpaste"])
def test_a_defect_is_seen_and_lies_on_the_part(kind):
    """On 20 of 20 parts; the mask says where, nothing changes elsewhere, and the same seed draws the same."""
    parts = good_parts(20)
    drawn, masks = simulate(parts, kind, np.random.default_rng(2))
    again, _ = simulate(parts, kind, np.random.default_rng(2))
    assert (drawn == again).all()
    change = np.abs(drawn.astype(int) - parts).max(axis=3)
    assert masks.any(axis=(1, 2)).all()
    assert change[~masks].max() <= 4
    assert min(change[k][masks[k]].mean() for k in range(20)) >= 8
    for part, mask in zip(parts, masks, strict=True):
        assert (mask & part_of(part)).sum() >= 0.75 * mask.sum()
    sizes = masks.mean(axis=(1, 2))
    assert sizes.max() < 0.25
    assert sizes.max() > 2 * sizes.min()


def test_the_part_is_told_from_the_belt_and_a_texture_is_all_part():
    share = [part_of(picture).mean() for picture in good_parts(8)]
    assert 0.3 < min(share) <= max(share) < 0.8
    rng = np.random.default_rng(0)
    assert part_of(rng.normal(120, 15, (64, 64, 3)).clip(0, 255).astype(np.uint8)).all()


def test_a_gray_camera_sees_no_coloured_stains():
    gray = np.repeat(good_parts(8).mean(axis=3, keepdims=True), 3, axis=3).astype(np.uint8)
    drawn, _ = simulate(gray, "stain", np.random.default_rng(1))
    assert np.ptp(drawn.astype(int), axis=3).max() == 0


def test_what_to_draw_follows_from_the_name():
    names = {"scratches": "scratch", "Hairline_crack": "scratch", "pitted surface": "dent", "blow-hole": "dent",
             "oil": "stain", "discolouration": "stain",
             "spit": "cutpaste", "foil": "cutpaste", "inclusion": "cutpaste"}  # fmt: skip
    assert {name: kind_for(name) for name in names} == names


def test_small_defect_classes_are_filled_up(training):
    """To the minimum, behind the real pictures, which stay as they are; good and empty get none."""
    filled = fill_small_classes(training, CLASSES, 8, np.random.default_rng(0))
    assert filled.added == {"dent": 7, "fault-7": 5}
    assert filled.note == "simulated pictures to train with: dent 7, fault-7 5"
    assert np.bincount(filled.pictures.labels).tolist() == [8, 1, 8, 10]
    assert filled.simulated.tolist() == [False] * 15 + [True] * 12
    assert (filled.pictures.pixels[:15] == training.pixels).all()
    assert (filled.pictures.labels[:15] == training.labels).all()


def test_a_fault_without_a_telling_name_is_cut_from_its_own_pictures(training):
    """The red square, on other parts: nothing else in these pictures is red."""
    filled = fill_small_classes(training, CLASSES, 8, np.random.default_rng(0))
    simulated = filled.pictures.pixels[filled.simulated & (filled.pictures.labels == FAULT)].astype(int)
    red = ((simulated[..., 0] - simulated[..., 1:].max(axis=3)) > 100).sum(axis=(1, 2))
    assert (red > 60).all()
    assert (red < 400).all()


def test_without_good_pictures_nothing_is_added_and_it_says_so(training):
    bad = training.labels != GOOD
    alone = Pictures(training.pixels[bad], training.labels[bad])
    filled = fill_small_classes(alone, CLASSES, 8, np.random.default_rng(0))
    assert filled.note == "no good pictures to draw defects on, so none are added to dent, fault-7"
    assert filled.pictures is alone
    assert not filled.simulated.any()


def test_classes_with_enough_are_left_alone(training):
    filled = fill_small_classes(training, CLASSES, 1, np.random.default_rng(0))
    assert filled.pictures is training
    assert (filled.added, filled.note) == ({}, "")


# -- preview ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (400, 512), (96, 48)])
def test_the_sheet_shows_each_class_as_read_first(tmp_path, size):
    """Twenty classes, each of its own colour; the first picture of a row is unchanged, each row below the last."""
    colours = np.random.default_rng(1).integers(60, 200, (20, 3), np.uint8)
    pixels = np.broadcast_to(colours[:, None, None], (20, size[1], size[0], 3)).copy()
    classes = [
        ClassSpec(name=f"class {k:02} of twenty with a long name", role="ok" if k else "defect") for k in range(20)
    ]
    write_preview(
        tmp_path / "new" / "sheet.png", Pictures(pixels, np.arange(20)), classes, Augmenter("none"), columns=4
    )
    sheet = cv2.cvtColor(cv2.imread(str(tmp_path / "new" / "sheet.png")), cv2.COLOR_BGR2RGB)
    rows = [np.flatnonzero((sheet == colour).all(axis=2).sum(axis=1) > 50) for colour in colours]
    assert all(len(row) >= 56 for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert max(sheet.shape) < 20 * 240
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.png"]


def test_simulated_pictures_are_framed(training, tmp_path):
    """In orange, half of the row; a sheet without any has none."""
    filled = fill_small_classes(training, CLASSES, 8, np.random.default_rng(0))
    framed = []
    for simulated in (filled.simulated, None):
        write_preview(tmp_path / "a.png", filled.pictures, CLASSES, Augmenter("none"), simulated=simulated)
        sheet = cv2.cvtColor(cv2.imread(str(tmp_path / "a.png")), cv2.COLOR_BGR2RGB)
        framed.append(int((sheet == (200, 80, 0)).all(axis=2).sum()))
    assert framed[0] > 6 * 4 * 112 * 2  # two classes, three pictures each, four sides
    assert framed[1] == 0


def test_a_sheet_that_cannot_be_written_is_one_line(training, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        write_preview(tmp_path / "file" / "a.png", training, CLASSES, Augmenter("none"))
