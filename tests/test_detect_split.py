"""Which pictures with boxes learn and which judge: parts stay whole, good ones count once, contradictions stop."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
from drawn_boxes import write_coco, write_pictures

from inspectd.errors import DataError
from inspectd.model.manifest import ClassSpec
from inspectd.workshop.detect.data import open_boxes

CLASSES = [ClassSpec(name="good", role="ok"), *(ClassSpec(name=name, role="defect") for name in ("disc", "square"))]
BOX = ("disc", 10, 10, 30, 30)


def write_parts(folder, parts, frames=3):
    """`frames` noisy pictures of each part, every other part with a box; {file name: boxes}."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {}
    for part in parts:
        rng = np.random.default_rng(part)
        surface = cv2.resize(rng.integers(40, 200, (8, 8)).astype(np.float32), (64, 64), interpolation=cv2.INTER_CUBIC)
        for frame in range(frames):
            picture = (surface + rng.normal(0, 1.5, surface.shape)).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f"part{part}_{frame}.png"), picture)
            labels[f"part{part}_{frame}.png"] = [BOX] if part % 2 else []
    return labels


def parts_of(dataset, split):
    return {boxed.sample.path.name.partition("_")[0] for boxed in dataset.splits[split]}


def test_frames_of_one_part_stay_on_one_side(tmp_path, capsys):
    """Nearly equal pictures are found, as README says, without a pattern on their names."""
    write_coco(tmp_path / "annotations.json", write_parts(tmp_path / "p", range(16)))
    dataset = open_boxes(tmp_path)
    assert parts_of(dataset, "train") | parts_of(dataset, "val") == {f"part{part}" for part in range(16)}
    assert not parts_of(dataset, "train") & parts_of(dataset, "val")
    assert not capsys.readouterr().out


def test_a_part_in_two_given_splits_is_told(tmp_path, capsys):
    """By its looks only told; by --group-by it stays where it judges, as an equal picture does."""
    labels = write_parts(tmp_path / "p", range(16))
    for number, split in enumerate(("train", "val")):
        own = {name: boxes for index, (name, boxes) in enumerate(labels.items()) if (index % 3 == 0) == number}
        write_coco(tmp_path / f"{split}.json", own)
    assert len(open_boxes(tmp_path).splits["val"]) == 16
    said = capsys.readouterr().out
    assert "near_duplicates_in_two_splits" in said
    assert "count=32" in said
    write_coco(tmp_path / "val.json", {name: boxes for name, boxes in labels.items() if name.startswith("part1_0")})
    write_coco(tmp_path / "train.json", {name: boxes for name, boxes in labels.items() if name[5:7] != "_0"})
    dataset = open_boxes(tmp_path, groups=r"(part\d+)_")
    assert parts_of(dataset, "train") == {f"part{part}" for part in range(16)} - {"part1"}
    said = capsys.readouterr().out
    assert "pictures_in_two_splits" in said
    assert "p/part1_1.png as p/part1_0.png" in said
    assert "near_duplicates_in_two_splits" not in said


def test_pictures_that_look_alike_are_told(tmp_path, capsys):
    """A film of one part is split all the same, and what that is worth is said."""
    write_coco(tmp_path / "annotations.json", write_parts(tmp_path / "p", [1], frames=12))
    dataset = open_boxes(tmp_path)
    assert len(dataset.splits["val"]) == 2
    assert "pictures_look_alike" in capsys.readouterr().out


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_the_same_picture_with_other_boxes_is_refused(tmp_path, classes):
    """With and without a box, to learn by and to judge by; the same boxes in another order are the same."""
    labels = write_pictures(tmp_path / "p", 8, good=2)
    name = next(name for name, boxes in labels.items() if len(boxes) > 1)
    shutil.copy(tmp_path / "p" / name, tmp_path / "p" / "again.png")
    write_coco(tmp_path / "annotations.json", {**labels, "again.png": labels[name][::-1]})
    open_boxes(tmp_path, classes=classes)
    (tmp_path / "good").mkdir()
    (tmp_path / "p" / "again.png").rename(tmp_path / "good" / "again.png")
    write_coco(tmp_path / "annotations.json", labels)
    with pytest.raises(DataError, match=rf"again\.png and p/{name} are the same picture with different boxes"):
        open_boxes(tmp_path, classes=classes)


def write_splits(root, **counts):
    """A COCO file per split, every picture in images/ and good ones without labels in good/."""
    for seed, (split, count) in enumerate(counts.items()):
        write_coco(root / f"{split}.json", write_pictures(root / "images", count, seed=seed))
    write_pictures(root / "good", 0, good=4, seed=9)


def test_good_pictures_in_no_split_are_learnt_from_and_leave_the_others_alone(tmp_path, capsys):
    """Nothing judges by them that was not given for it; that is said."""
    write_splits(tmp_path, train=6, val=4, test=5)
    for classes in (None, CLASSES):
        dataset = open_boxes(tmp_path, classes=classes)
        assert {split: len(part) for split, part in dataset.splits.items()} == {"train": 10, "val": 4, "test": 5}
        assert {split: dataset.counts(split)["good"] for split in dataset.splits} == {"train": 4, "val": 0, "test": 0}
        assert "good_pictures_in_no_split" in capsys.readouterr().out


def test_good_pictures_beside_a_test_set_judge_with_it(tmp_path, capsys):
    """Not one labelled defect is lost."""
    write_splits(tmp_path, test=5)
    dataset = open_boxes(tmp_path, classes=CLASSES)
    assert len(dataset.splits["test"]) == 9
    assert dataset.counts("test")["good"] == 4
    assert "good_pictures_in_no_split" not in capsys.readouterr().out
    with pytest.raises(DataError, match="no picture to train on has a box"):
        open_boxes(tmp_path)


def test_good_pictures_of_a_split_beside_labels_of_none_are_refused(tmp_path):
    """Pictures meant to judge by would be learnt."""
    write_coco(tmp_path / "annotations.json", write_pictures(tmp_path / "images", 6))
    write_pictures(tmp_path / "test" / "good", 0, good=3, seed=1)
    with pytest.raises(
        DataError, match=r"1-000\.png: lies in test/, but pictures with labels lie in no split; move it"
    ):
        open_boxes(tmp_path)
