"""What a folder of pictures is told about: frames of one part, and everything that would spoil a model."""

import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from inspectd.errors import DataError
from inspectd.model.data import open_dataset
from inspectd.model.flange import generator
from inspectd.model.folder import find_pictures
from inspectd.model.pictures import read_picture
from inspectd.model.preprocess import PreprocessSpec, preprocess_picture
from inspectd.model.similar import decode_print, encode_print, near_duplicates, print_of, prints
from inspectd.model.survey import survey
from inspectd.model.synth import render_part
from inspectd.workshop.evaluation.labelled import find_pictures as labelled_pictures
from inspectd.workshop.provenance import write_provenance

SIDE = 160


def part(number, kind="good"):
    return render_part(kind, generator(41, number), (SIDE, SIDE))


def frame(picture, rng):
    """The same part a moment later: up to a pixel on, other brightness, other noise, compressed again."""
    dx, dy = rng.uniform(-1, 1, 2)
    moved = cv2.warpAffine(picture, np.array([[1, 0, dx], [0, 1, dy]]), (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT)
    noisy = moved * rng.uniform(0.93, 1.07) + rng.uniform(-6, 6) + rng.normal(0, rng.uniform(0.5, 2), moved.shape)
    jpeg = cv2.imencode(
        ".jpg", noisy.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(80, 96))]
    )
    return cv2.imdecode(jpeg[1], cv2.IMREAD_COLOR)


def save(root, pictures):
    """`pictures`: name -> picture."""
    for name, picture in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(root / name), picture)
    return root


def noise(count, seed=0, shape=(24, 24, 3)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def kinds(root, **options):
    return {finding.kind: finding for finding in survey(open_dataset(root, **options))}


# -- near duplicates ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts():
    return [part(number) for number in range(90)]


def test_frames_of_one_part_are_found_and_different_parts_are_not(parts):
    """Of 60 parts with two frames each, 97 % of the pairs, and at most one pair that is none."""
    rng = np.random.default_rng(1)
    frames = np.stack([frame(picture, rng) for picture in parts[:60] for _ in range(2)])
    found = {(int(i), int(j)) for i, j in near_duplicates(prints(frames))}
    same = {(2 * k, 2 * k + 1) for k in range(60)}
    assert len(found & same) >= 58
    assert len(found - same) <= 1


def test_pictures_are_found_among_those_that_were_trained_on(parts):
    """The first set's rows in the second's, each with its own part."""
    rng = np.random.default_rng(2)
    trained = prints(np.stack(parts[:70]))
    judged = np.stack([frame(parts[index], rng) for index in range(60, 90)])  # 10 known, 20 new
    assert near_duplicates(prints(judged), trained).tolist() == [[k, 60 + k] for k in range(10)]


def test_a_station_where_good_parts_differ_little_does_not_chain():
    """One fixture, one lamp: what is common counts for nothing, so that each part stays a part of its own."""
    fixture, rng = part(0).astype(np.float64), np.random.default_rng(3)
    marks = [cv2.GaussianBlur(rng.normal(0, 60, (SIDE, SIDE, 1)), (0, 0), 6)[:, :, None] for _ in range(120)]
    pictures = np.stack([(fixture + mark + rng.normal(0, 2, fixture.shape)).clip(0, 255) for mark in marks])
    rows = prints(pictures.astype(np.uint8))
    assert np.median([np.corrcoef(rows[0], row)[0, 1] for row in rows[1:]]) > 0.97  # they do look alike
    assert len(near_duplicates(rows)) == 0
    again = prints(np.stack([frame(picture.astype(np.uint8), rng) for picture in pictures[:40]]))
    assert {(int(i), int(j)) for i, j in near_duplicates(again, rows)} <= {(k, k) for k in range(40)}


def test_pictures_that_show_nothing_are_near_to_nothing():
    black = np.zeros((3, 32, 32, 3), np.uint8)
    assert len(near_duplicates(prints(np.concatenate([black, noise(20, shape=(32, 32, 3))])))) == 0
    assert (prints(black) == 128).all()


def test_none_and_one_picture_have_no_pairs():
    empty = prints(np.empty((0, 8, 8, 3), np.uint8))
    assert near_duplicates(empty).shape == near_duplicates(prints(noise(1))).shape == (0, 2)
    assert near_duplicates(prints(noise(5)), empty).shape == (0, 2)


def test_a_print_is_short_text_and_comes_back(parts):
    row = print_of(parts[0])
    assert len(encode_print(row)) <= 400
    assert (decode_print(encode_print(row)) == row).all()
    for text in ("", "no print", encode_print(row)[:-8], "ü"):
        with pytest.raises(ValueError, match="print"):
            decode_print(text)


def test_the_print_of_what_the_network_sees_is_that_of_the_picture(parts):
    """So that prints in a bundle, of resized pictures, can be compared with those of files."""
    small = [preprocess_picture(picture, PreprocessSpec(width=96, height=64)) for picture in parts[:40]]
    found = near_duplicates(prints(np.stack(small)), prints(np.stack(parts)))
    assert found.tolist() == [[k, k] for k in range(40)]


def test_many_prints_are_compared_quickly():
    """1,500 in well under ten seconds of one core."""
    rows = prints(noise(1500, shape=(16, 16, 3)))
    started = time.process_time()
    assert len(near_duplicates(rows)) == 0
    assert time.process_time() - started < 8


# -- the split ----------------------------------------------------------------------------------------


def test_frames_of_one_part_lie_on_one_side_without_being_named(tmp_path, parts):
    """Whatever the seed, and the shares stay about what was asked for."""
    rng = np.random.default_rng(4)
    for number in range(24):
        for shot in range(3):
            save(tmp_path, {f"good/{shot}_{number:02}.png": frame(parts[number], rng)})
    save(tmp_path, {f"dent/{k:02}.png": part(k, "dent") for k in range(20)})
    for seed in range(2):
        dataset = open_dataset(tmp_path, seed=seed)
        sides = [{s.name[-6:] for s in dataset.splits[side] if "good" in s.name} for side in ("train", "val")]
        assert len(sides[0] & sides[1]) <= 1
        assert 12 <= dataset.counts("val")["good"] <= 17
        assert dataset.counts("val")["dent"] == 4


def test_a_class_that_is_one_part_is_split_and_told(tmp_path, parts):
    """Better split than refused; but its figures say little, and that is said."""
    rng = np.random.default_rng(5)
    save(tmp_path, {f"good/{k:02}.png": parts[k] for k in range(60)})
    save(tmp_path, {f"dent/{k:02}.png": frame(part(7, "dent"), rng) for k in range(12)})
    dataset = open_dataset(tmp_path)
    assert dataset.chained == ("dent",)
    assert dataset.counts("val") == {"dent": 2, "good": 12}
    [told] = [finding for finding in survey(dataset) if finding.kind == "alike"]
    assert told.message.startswith("class 'dent': most pictures look like each other")


def test_pictures_that_differ_by_noise_only_are_told(tmp_path):
    """A film of one part in every class: nothing stands out as near, but nothing is far either."""
    rng = np.random.default_rng(6)
    for name in ("good", "dent"):
        save(tmp_path, {f"{name}/{k:02}.png": frame(part(3, name), rng) for k in range(30)})
    assert kinds(tmp_path)["alike"].severity == "warning"


# -- findings -----------------------------------------------------------------------------------------


def test_a_sound_folder_has_no_findings(tmp_path):
    for seed, name in enumerate(("good", "dent")):
        save(tmp_path, {f"{name}/{k:02}.png": picture for k, picture in enumerate(noise(20, seed))})
    assert survey(open_dataset(tmp_path)) == []


def test_every_oddity_is_found(tmp_path):
    """Each with the pictures that it is about, in one line, the worst first."""
    save(tmp_path, {f"good/{k:03}.png": picture for k, picture in enumerate(noise(130))})
    save(tmp_path, {f"dent/{k}.png": picture for k, picture in enumerate(noise(9, 1))})
    (tmp_path / "good/copy.png").write_bytes((tmp_path / "good/007.png").read_bytes())
    (tmp_path / "good/broken.png").write_bytes(b"x")
    (tmp_path / "dent/notes.txt").write_text("x")
    save(tmp_path, {"good/wide.png": noise(1, 2, (24, 48, 3))[0], "good/black.png": np.zeros((24, 24, 3), np.uint8)})
    save(tmp_path, {"dent/dark.tif": noise(1, 3, (24, 24, 1))[0].astype(np.uint16) * 16})
    for seed, name in enumerate(("dark.png", "dark.ppm", "dark2.tiff")):
        save(tmp_path, {f"dent/{name}": noise(1, 4 + seed)[0].astype(np.uint16) * 16})
    findings = survey(open_dataset(tmp_path))
    about = {finding.kind: finding.pictures for finding in findings}
    assert about == {
        "unreadable": ("good/broken.png",),
        "small_class": (),
        "mixed_shapes": ("good/wide.png",),
        "blank": ("good/black.png",),
        "dark_16_bit": ("dent/dark.png", "dent/dark.ppm", "dent/dark.tif", "dent/dark2.tiff"),
        "not_pictures": ("dent/notes.txt",),
        "unbalanced": (),
        "duplicates": ("good/007.png", "good/copy.png"),
    }
    assert [finding.severity for finding in findings] == sorted((f.severity for f in findings), reverse=True)
    assert not any("\n" in finding.message for finding in findings)
    messages = {finding.kind: finding.message for finding in findings}
    assert messages["unreadable"].startswith("1 of 147 pictures cannot be used and are left out, the first: /")
    assert "class 'dent' has 13 pictures, fewer than 20" in messages["small_class"]
    assert "the brightest 16 of 255" in messages["dark_16_bit"]


def test_near_duplicates_in_two_splits_are_leakage(tmp_path, parts):
    """Given splits are taken as they are, but what that costs is said, with names and number."""
    rng = np.random.default_rng(7)
    for split, numbers in (("train", range(50)), ("val", range(50, 56))):
        save(tmp_path, {f"{split}/good/{k:02}.png": parts[k] for k in numbers})
        save(tmp_path, {f"{split}/dent/{k:02}.png": part(k, "dent") for k in numbers})
    save(tmp_path, {"val/good/again.png": frame(parts[11], rng), "val/good/more.png": frame(parts[12], rng)})
    leak = kinds(tmp_path)["leakage"]
    assert leak.severity == "warning"
    assert leak.message.startswith("2 pairs of near duplicates in two splits, as train/good/11.png and val/good/again")
    assert set(leak.pictures) == {"train/good/11.png", "train/good/12.png", "val/good/again.png", "val/good/more.png"}


def test_a_part_that_file_names_tell_is_in_one_split_only(tmp_path):
    """Also where the splits are given: its pictures count where they judge, and that is said."""
    seeds = iter(range(9))
    for split in ("train", "val", "test"):
        for name in ("good", "dent"):
            shift = {"train": 0, "val": 4, "test": 5}[split]
            pictures = enumerate(noise(6, next(seeds)), start=shift)
            save(tmp_path, {f"{split}/{name}/part{k:02}_{split}.png": picture for k, picture in pictures})
    dataset = open_dataset(tmp_path, groups=r"(part\d+)_")
    sides = {split: {sample.path.name[:6] for sample in samples} for split, samples in dataset.splits.items()}
    assert sides == {
        "train": {"part00", "part01", "part02", "part03"},
        "val": {"part04"},
        "test": {"part05", "part06", "part07", "part08", "part09", "part10"},
    }
    leak = {finding.kind: finding for finding in survey(dataset)}["leakage"]
    assert leak.severity == "warning"
    assert "by --group-by the same part: train/dent/part04_train.png and val/" in leak.message
    assert len(leak.pictures) == 4 + 10
    for path in sorted((tmp_path / "train").rglob("*.png")):
        path.rename(path.with_name("part07_" + path.name))
    with pytest.raises(DataError, match=r"no picture for train.*; 22 were left out, as train/dent/part07_part00"):
        open_dataset(tmp_path, groups=r"(part\d+)_")
    assert open_dataset(tmp_path).counts("train") == {"dent": 6, "good": 6}


def test_pictures_behind_links_count_once_and_loops_end(tmp_path):
    """A folder that is a link is a folder; a pipe is no picture; a folder that cannot be read is told."""
    root = save(tmp_path / "data", {f"{name}/{k}.png": noise(1, k)[0] for name in ("good", "dent") for k in range(3)})
    save(tmp_path / "more", {"a.png": noise(1, 7)[0], "deep/b.png": noise(1, 8)[0], ".hidden/c.png": noise(1, 9)[0]})
    (root / "dent" / "2024").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "again").symlink_to(tmp_path / "more")
    (root / "good" / "gone.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(root / "good" / "pipe.png")
    classes, files, ignored = find_pictures(root, (), ())
    names = ["good/0.png", "good/1.png", "good/2.png", "good/gone.png"]
    names += ["dent/0.png", "dent/1.png", "dent/2.png", "dent/2024/a.png", "dent/2024/deep/b.png"]
    assert sorted(file.name for file in files) == sorted(names)
    assert ignored == ("good/pipe.png",)
    judged = labelled_pictures(root, root, classes)
    assert sorted(file.name for file in judged) == sorted(names)
    (root / "dent" / "2025").mkdir(mode=0o0)
    if os.geteuid():
        with pytest.raises(DataError, match="2025: cannot be read"):
            find_pictures(root, (), ())


def test_a_name_that_is_no_utf8_is_a_name(tmp_path):
    save(tmp_path, {f"{name}/{k}.png": picture for name in ("good", "dent") for k, picture in enumerate(noise(3))})
    save(tmp_path, {f"dent/{k}.png": picture for k, picture in enumerate(noise(3, 1))})
    before = open_dataset(tmp_path).fingerprint
    (tmp_path / "good" / "0.png").rename(tmp_path / "good" / os.fsdecode(b"gr\xf6\xdfe.png"))
    dataset = open_dataset(tmp_path)
    assert dataset.fingerprint != before
    pictures = [("train", sample, noise(1)[0]) for sample in dataset.splits["train"]]
    write_provenance(tmp_path, pictures)


def test_a_part_in_two_classes_is_questioned(tmp_path, parts):
    save(tmp_path, {f"good/{k:02}.png": parts[k] for k in range(40)})
    save(tmp_path, {f"dent/{k:02}.png": part(k, "dent") for k in range(20)})
    save(tmp_path, {"dent/99.png": frame(parts[5], np.random.default_rng(8))})
    assert kinds(tmp_path)["look_alike_classes"].pictures == ("dent/99.png", "good/05.png")


def test_roles_that_will_surprise_are_told(tmp_path):
    for seed, name in enumerate(("good", "dent", "smooth")):
        save(tmp_path, {f"{name}/{k:02}.png": picture for k, picture in enumerate(noise(20, seed))})
    assert "add --ok good" in kinds(tmp_path, ok=["smooth"])["renamed_role"].message
    (tmp_path / "good").rename(tmp_path / "scratch")
    assert "will never say pass" in kinds(tmp_path)["no_ok_class"].message


def test_a_class_that_is_missing_in_a_given_split_is_told(tmp_path):
    seeds = iter(range(9))
    for split, names in (("train", "good dent"), ("val", "good dent"), ("test", "good")):
        for name in names.split():
            save(tmp_path, {f"{split}/{name}/{k:02}.png": p for k, p in enumerate(noise(20, next(seeds)))})
    assert "test has no picture of 'dent'" in kinds(tmp_path)["no_picture_to_judge"].message


def test_all_kinds_of_files_come_out_right_together(tmp_path):
    """16-bit, gray, transparent, rotated and CMYK files of one picture: the same pixels reach the network."""
    from PIL import Image

    colours = cv2.GaussianBlur(noise(1, 9, (40, 40, 3))[0], (0, 0), 5)
    colours = cv2.normalize(colours, None, 0, 255, cv2.NORM_MINMAX)
    gray = np.repeat(cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
    save(tmp_path, {f"good/{k:02}.png": picture for k, picture in enumerate(noise(5, 1, (40, 40, 3)))})
    (tmp_path / "dent").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colours).save(tmp_path / "dent/0_plain.png")
    Image.fromarray(np.dstack([colours, np.full((40, 40), 255, np.uint8)])).save(tmp_path / "dent/1_alpha.png")
    Image.fromarray(np.rot90(colours).copy()).save(tmp_path / "dent/2_rotated.png", exif=exif)
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "dent/3_cmyk.tif")
    cv2.imwrite(str(tmp_path / "dent/4_deep.png"), gray[:, :, 0].astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "dent/5_gray.png"), gray[:, :, 0])
    dataset = open_dataset(tmp_path, spec=PreprocessSpec(width=40, height=40))
    seen = 0
    for split, samples in dataset.splits.items():
        for sample, pixels in zip(samples, dataset.pictures[split].pixels, strict=True):
            if "dent" in sample.name:
                expected = gray if "gray" in sample.name or "deep" in sample.name else colours
                assert np.abs(pixels.astype(int) - expected).max() <= (2 if "cmyk" in sample.name else 0), sample.name
                seen += 1
    assert seen == 6
    assert [name for name, look in dataset.looks.items() if look.sixteen_bit] == ["dent/4_deep.png"]


@pytest.mark.skipif(
    "INSPECTD_NEU_DET" not in os.environ,
    reason="needs the pictures of NEU-DET, which are not part of the project; INSPECTD_NEU_DET is their folder",
)
def test_a_public_set_of_textures_does_not_chain():
    """NEU-DET, train: hot-rolled steel, no two pictures of one place but a few."""
    rows = [
        print_of(read_picture(path)) for path in sorted(Path(os.environ["INSPECTD_NEU_DET"], "train").rglob("*.jpg"))
    ]
    assert len(near_duplicates(np.stack(rows))) <= 0.01 * len(rows)
