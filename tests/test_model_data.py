"""Reading pictures and folders: every kind of file comes out right, and what cannot is named."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from inspectd.errors import DataError
from inspectd.model.data import load_pictures, open_dataset, role_of
from inspectd.model.pictures import decode_picture, read_picture
from inspectd.model.preprocess import PreprocessSpec

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


def test_all_unreadable_pictures_are_counted_and_the_first_named(tmp_path):
    write(tmp_path, good=8, dent=8)
    for index in range(5):
        (tmp_path / "dent" / f"{index:03}.png").write_bytes(f"no picture {index}".encode())
    dataset = open_dataset(tmp_path, val_fraction=0.2)
    everything = [sample for found in dataset.splits.values() for sample in found]
    with pytest.raises(DataError, match=r"5 of 16 pictures cannot be used: .* and 2 more; remove") as caught:
        load_pictures(everything, PreprocessSpec(width=20, height=20))
    assert "\n" not in str(caught.value)


def test_a_picture_in_two_classes_is_refused(tmp_path):
    write(tmp_path, good=4, dent=4)
    (tmp_path / "dent" / "same.png").write_bytes((tmp_path / "good" / "000.png").read_bytes())
    with pytest.raises(DataError, match="same picture in two classes"):
        open_dataset(tmp_path)


def test_a_picture_to_train_and_to_judge_by_is_refused(tmp_path):
    write(tmp_path / "train", good=4, dent=4)
    for name in ("good", "dent"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "a.png").write_bytes((tmp_path / "train" / name / "000.png").read_bytes())
    with pytest.raises(DataError, match="2 pictures are in two of train/, val/, test/"):
        open_dataset(tmp_path)


def test_folders_that_mean_nothing_are_refused(tmp_path):
    """Each in one line that says what to change."""
    (tmp_path / "file").write_text("x")
    write(tmp_path / "odd", good=2, schäden=2)
    write(tmp_path / "texts", good=0, dent=0)
    write(tmp_path / "one", good=4, dent=1)
    write(tmp_path / "beside" / "train", good=4, dent=4)
    write(tmp_path / "beside" / "valid", good=1, dent=1)
    write(tmp_path / "more" / "train", good=4, dent=4)
    write(tmp_path / "more" / "val", good=1, rust=1)
    expected = {
        "missing": "no such folder",
        "file": "is no folder",
        "odd": "names become labels",
        "texts": "no pictures found",
        "one": "has no picture for val",
        "beside": "expected train/, val/ and test/ only",
        "more": "there is no such class",
    }
    for folder, words in expected.items():
        with pytest.raises(DataError) as caught:
            open_dataset(tmp_path / folder)
        assert words in str(caught.value), folder
        assert "\n" not in str(caught.value)
