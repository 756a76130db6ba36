"""Reading pictures and folders: every kind of file comes out right, and what cannot is named."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from inspectd.errors import DataError, UsageError
from inspectd.model.data import load_pictures, open_dataset, role_of
from inspectd.model.pictures import decode_picture, read_picture
from inspectd.model.preprocess import PreprocessSpec
from inspectd.model.survey import survey

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.dstack([RAMP, RAMP.T, 255 - RAMP])  # uint8 [16, 16, 3] RGB, not symmetric in any way


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def write(root, **counts):
    """Different noise for every picture."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            cv2.imwrite(str(root / name / f"{index:03}.png"), rng.integers(0, 256, (20, 20, 3), np.uint8))
    return root


def names(dataset, split):
    return {sample.name for sample in dataset.splits[split]}


# -- pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_colours_come_out_as_they_went_in(kind):
    assert (decode_picture(encoded(Image.fromarray(COLOURS), kind), "x") == COLOURS).all()


def test_gray_becomes_three_equal_channels():
    assert (decode_picture(encoded(Image.fromarray(RAMP), "PNG"), "x") == RAMP[:, :, None]).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_gray_keeps_its_brightness(suffix):
    """Scaled by full scale: a dark picture stays dark, and white is white."""
    for scale in (257, 20):
        ok, data = cv2.imencode(suffix, RAMP.astype(np.uint16) * scale)
        expected = np.rint(RAMP.astype(np.float64) * scale / 257)
        assert ok
        assert (decode_picture(data.tobytes(), "x") == expected[:, :, None]).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_colour_keeps_its_channels(suffix):
    ok, data = cv2.imencode(suffix, COLOURS[:, :, ::-1].astype(np.uint16) * 257)
    assert ok
    assert np.abs(decode_picture(data.tobytes(), "x").astype(int) - COLOURS).max() <= 1


def test_transparent_pixels_are_black():
    """Whatever colour hides below them; opaque ones keep theirs."""
    alpha = np.full((16, 16, 1), 255, np.uint8)
    alpha[:8] = 0
    read = decode_picture(encoded(Image.fromarray(np.dstack([COLOURS, alpha])), "PNG"), "x")
    assert not read[:8].any()
    assert (read[8:] == COLOURS[8:]).all()


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (6, -1), (3, 2), (8, 1)])
def test_exif_rotation_is_applied(orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = decode_picture(encoded(Image.fromarray(COLOURS), "PNG", exif=exif), "x")
    assert (read == np.rot90(COLOURS, turns)).all()


@pytest.mark.parametrize("rgb", [(255, 0, 0), (0, 200, 0), (255, 255, 255), (0, 0, 0)])
def test_cmyk_is_no_negative(rgb):
    picture = Image.new("RGB", (16, 16), rgb).convert("CMYK")
    read = decode_picture(encoded(picture, "JPEG", quality=100), "x")
    assert np.abs(read.astype(int) - rgb).max() <= 6


def test_a_palette_is_looked_up():
    picture = Image.new("RGB", (16, 16), (10, 200, 30)).quantize(4)
    assert (decode_picture(encoded(picture, "PNG"), "x") == (10, 200, 30)).all()


@pytest.mark.parametrize(
    "raw", [b"", b"hello", b"\x89PNG\r\n\x1a\nrest", b"\xff\xd8\xff\xe0", b"II*\0\xff\xff\xff\xff"]
)
def test_what_is_no_picture_is_refused_by_name(raw, tmp_path):
    (tmp_path / "part.png").write_bytes(raw)
    with pytest.raises(DataError) as caught:
        read_picture(tmp_path / "part.png")
    assert str(caught.value).startswith(str(tmp_path / "part.png"))
    assert "\n" not in str(caught.value)


def test_a_picture_that_was_cut_off_is_refused():
    """Never filled up with gray: that would train on what no camera saw."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG")
    with pytest.raises(DataError, match="is damaged"):
        decode_picture(whole[: len(whole) // 2], "x")


# -- folders ------------------------------------------------------------------------------------------


def test_roles_come_from_folder_names():
    assert {role_of(name) for name in ("ok", "Good", "PASS", "normal", "free")} == {"ok"}
    assert role_of("empty") == "empty"
    assert {role_of(name) for name in ("scratch", "nok", "not_good", "no_part")} == {"defect"}


def test_one_folder_is_split_by_class_and_seed(tmp_path):
    """A fifth of each class to validate; the same seed splits alike, another does not; nothing is lost."""
    write(tmp_path, good=20, dent=10)
    first, again, other = (open_dataset(tmp_path, seed=seed) for seed in (0, 0, 1))
    assert first.counts("val") == {"dent": 2, "good": 4}
    assert first.counts("train") == {"dent": 8, "good": 16}
    assert names(first, "train") | names(first, "val") == names(other, "train") | names(other, "val")
    assert first.splits == again.splits
    assert names(first, "val") != names(other, "val")


def test_equal_pictures_stay_on_one_side(tmp_path):
    """Or validation would ask for what was learnt by heart."""
    write(tmp_path, good=10, dent=10)
    for path in sorted((tmp_path / "good").iterdir()):
        path.with_name(f"copy-{path.name}").write_bytes(path.read_bytes())
    dataset = open_dataset(tmp_path)
    sides = [{sample.sha256 for sample in dataset.splits[split]} for split in ("train", "val")]
    assert not sides[0] & sides[1]


def test_given_splits_are_taken_as_they_are(tmp_path):
    write(tmp_path / "train", good=6, dent=6)
    rng = np.random.default_rng(1)
    for split in ("val", "test"):
        for name in ("good", "dent"):
            (tmp_path / split / name).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / split / name / "a.png"), rng.integers(0, 256, (20, 20, 3), np.uint8))
    dataset = open_dataset(tmp_path)
    assert names(dataset, "val") == {"val/dent/a.png", "val/good/a.png"}
    assert names(dataset, "test") == {"test/dent/a.png", "test/good/a.png"}
    assert len(dataset.splits["train"]) == 12


def test_the_fingerprint_knows_names_and_contents(tmp_path):
    write(tmp_path, good=4, dent=4)
    before = open_dataset(tmp_path).fingerprint
    assert open_dataset(tmp_path).fingerprint == before
    path = tmp_path / "dent" / "000.png"
    path.rename(path.with_name("renamed.png"))
    renamed = open_dataset(tmp_path).fingerprint
    cv2.imwrite(str(path.with_name("renamed.png")), np.zeros((20, 20, 3), np.uint8))
    assert len({before, renamed, open_dataset(tmp_path).fingerprint}) == 3


def test_other_files_are_left_alone(tmp_path):
    """Notes and system files are no pictures; suffixes count in any case."""
    write(tmp_path, good=4, dent=4)
    (tmp_path / "good" / "notes.txt").write_text("x")
    (tmp_path / "good" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "good" / "000.png").rename(tmp_path / "good" / "000.PNG")
    dataset = open_dataset(tmp_path)
    assert sum(len(found) for found in dataset.splits.values()) == 8


def test_pictures_go_through_the_one_preprocessing(tmp_path):
    write(tmp_path, good=4, dent=4)
    dataset = open_dataset(tmp_path)
    told = []
    loaded = load_pictures(
        dataset.splits["train"], PreprocessSpec(width=20, height=20), lambda done, total: told.append((done, total))
    )
    assert loaded.pixels.shape == (6, 20, 20, 3)
    assert told[-1] == (6, 6)
    for pixels, sample in zip(loaded.pixels, dataset.splits["train"], strict=True):
        assert (pixels == read_picture(sample.path)).all()
    assert loaded.labels.tolist() == [sample.label for sample in dataset.splits["train"]]


def test_pictures_in_one_pass_are_those_read_by_themselves(tmp_path):
    """Split, reordered and with one left out between them, each row is still the picture of its sample."""
    write(tmp_path, good=12, dent=9)
    (tmp_path / "dent" / "004.png").write_bytes(b"no picture")
    spec = PreprocessSpec(width=24, height=16)
    dataset = open_dataset(tmp_path, seed=3, test_fraction=0.2, spec=spec)
    assert {split: len(found) for split, found in dataset.pictures.items()} == {"train": 12, "val": 4, "test": 4}
    for split, found in dataset.splits.items():
        alone = load_pictures(found, spec)
        assert (dataset.pictures[split].pixels == alone.pixels).all()
        assert (dataset.pictures[split].labels == alone.labels).all()


def test_a_few_unreadable_pictures_are_left_out_and_told(tmp_path):
    write(tmp_path, good=8, dent=8)
    (tmp_path / "dent" / "002.png").write_bytes(b"no picture")
    (tmp_path / "good" / "005.png").write_bytes(b"")
    dataset = open_dataset(tmp_path)
    assert [name for name, _ in dataset.unreadable] == ["dent/002.png", "good/005.png"]
    assert "is no picture that can be read" in dataset.unreadable[0][1]
    assert not {"dent/002.png", "good/005.png"} & (names(dataset, "train") | names(dataset, "val"))
    assert sum(len(found) for found in dataset.splits.values()) == 14


def test_a_class_that_is_mostly_unreadable_is_refused(tmp_path):
    """All are counted and the first named, in one line."""
    write(tmp_path, good=8, dent=8)
    for index in range(5):
        (tmp_path / "dent" / f"{index:03}.png").write_bytes(f"no picture {index}".encode())
    words = r"5 of 8 pictures of class 'dent' cannot be used: .*000.png.* and 2 more; remove"
    with pytest.raises(DataError, match=words) as caught:
        open_dataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_picture_that_breaks_after_the_split_is_refused(tmp_path):
    """Asked for by name, a picture is there or the answer is no."""
    write(tmp_path, good=4, dent=4)
    samples = open_dataset(tmp_path).splits["train"]
    samples[2].path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1 of 6 pictures cannot be used: .*; remove"):
        load_pictures(samples, PreprocessSpec(width=20, height=20))


def test_roles_can_be_said(tmp_path):
    """What was said counts: beside --ok smooth, good is no good part."""
    write(tmp_path, smooth=4, good=4, dent=4, belt=4)
    roles = {spec.name: spec.role for spec in open_dataset(tmp_path, ok=["smooth"], empty=["belt"]).classes}
    assert roles == {"smooth": "ok", "good": "defect", "dent": "defect", "belt": "empty"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ok": ["goood"]}, "--ok goood: no such class .* dent, good"),
        ({"empty": ["belt"]}, "--empty belt: no such class"),
        ({"ok": ["good"], "empty": ["good"]}, "a class is one of the two"),
        ({"ok": ["good", "dent"]}, "no defect class"),
        ({"groups": "part"}, "0 capture groups"),
        ({"groups": "(part"}, "is no regular expression"),
        ({"groups": "(part)_"}, "matches none of 8 file names, as 000.png"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "leave nothing to train with"),
        ({"val_fraction": 0.0}, "leave nothing"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, given, words):
    write(tmp_path, good=4, dent=4)
    with pytest.raises(UsageError, match=words):
        open_dataset(tmp_path, **given)


def test_a_test_split_leaves_the_validation_pictures_as_they_are(tmp_path):
    write(tmp_path, good=20, dent=10)
    without, dataset = open_dataset(tmp_path), open_dataset(tmp_path, test_fraction=0.2)
    assert "test" not in without.splits
    assert dataset.counts("test") == {"dent": 2, "good": 4}
    assert names(dataset, "val") == names(without, "val")
    assert not names(dataset, "test") & (names(dataset, "val") | names(dataset, "train"))


def test_files_of_one_part_lie_on_one_side(tmp_path):
    """A part that the file name tells, also where one frame shows the scratch and another does not."""
    write(tmp_path, good=30, scratch=12)
    for path in sorted(tmp_path.rglob("*.png")):
        path.rename(path.with_name(f"part{int(path.stem) // 3:02}_{path.stem}.png"))
    for seed in range(5):
        dataset = open_dataset(tmp_path, seed=seed, groups=r"(part\d+)_")
        sides = [{name.split("/")[1][:6] for name in names(dataset, split)} for split in ("train", "val")]
        assert not sides[0] & sides[1]
        assert dataset.counts("val")["good"] in (6, 7)
        assert dataset.counts("val")["scratch"] > 0


def test_a_picture_in_two_classes_is_refused(tmp_path):
    write(tmp_path, good=4, dent=4)
    (tmp_path / "dent" / "same.png").write_bytes((tmp_path / "good" / "000.png").read_bytes())
    with pytest.raises(DataError, match="same picture in two classes"):
        open_dataset(tmp_path)


def test_a_picture_to_train_and_to_judge_by_only_judges(tmp_path):
    """It is left out of what is learnt from, said so, and its pixels are those of the pictures that remain."""
    write(tmp_path / "train", good=4, dent=4)
    for name in ("good", "dent"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "a.png").write_bytes((tmp_path / "train" / name / "000.png").read_bytes())
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "000.xml").write_text("<annotation/>")
    spec = PreprocessSpec(width=20, height=20)
    dataset = open_dataset(tmp_path, spec=spec)
    assert names(dataset, "train") == {f"train/{kind}/00{n}.png" for kind in ("good", "dent") for n in (1, 2, 3)}
    assert dataset.leaked == (("train/dent/000.png", "val/dent/a.png"), ("train/good/000.png", "val/good/a.png"))
    for split, samples in dataset.splits.items():
        again = load_pictures(samples, spec)
        assert np.array_equal(dataset.pictures[split].pixels, again.pixels)
        assert np.array_equal(dataset.pictures[split].labels, again.labels)
    findings = [finding for finding in survey(dataset) if finding.kind == "leakage"]
    assert findings[0].pictures == ("train/dent/000.png", "train/good/000.png")


def test_folders_that_mean_nothing_are_refused(tmp_path):
    """Each in one line that says what to change."""
    (tmp_path / "file").write_text("x")
    write(tmp_path / "odd", good=2, schäden=2)
    write(tmp_path / "bare", good=0, dent=0)
    write(tmp_path / "texts", good=0, dent=0)
    (tmp_path / "texts" / "dent" / "notes.txt").write_text("x")
    write(tmp_path / "half", good=4, dent=0)
    (tmp_path / "half" / "dent" / "notes.txt").write_text("x")
    write(tmp_path / "one", good=4, dent=1)
    write(tmp_path / "beside" / "train", good=4, dent=4)
    write(tmp_path / "beside" / "valid", good=1, dent=1)
    write(tmp_path / "more" / "train", good=4, dent=4)
    write(tmp_path / "more" / "val", good=1, rust=1)
    expected = {
        "missing": "no such folder",
        "file": "is no folder",
        "odd": "names become labels",
        "bare": "no pictures found; readable are",
        "texts": "no pictures found; other files: 1, the first dent/notes.txt",
        "half": "class 'dent' has no pictures; other files: 1",
        "one": "has no picture for val",
        "beside": "expected train/, val/ and test/ only",
        "more": "there is no such class",
    }
    for folder, words in expected.items():
        with pytest.raises(DataError) as caught:
            open_dataset(tmp_path / folder)
        assert words in str(caught.value), folder
        assert "\n" not in str(caught.value)
