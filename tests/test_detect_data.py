"""Pictures with boxes as people have them: COCO and VOC in every layout, and each mistake in one clear line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from drawn_boxes import write_coco, write_pictures, write_voc
from PIL import Image

from inspectd.errors import DataError
from inspectd.model.manifest import ClassSpec
from inspectd.model.preprocess import PreprocessSpec
from inspectd.workshop.detect.data import load_boxes, open_boxes
from inspectd.workshop.detect.labels import read_coco, read_voc

CLASSES = ["good", "disc", "square"]


def truth_of(dataset):
    """{file name: boxes} as `drawn_boxes` has it, from every split."""
    return {
        boxed.sample.path.name: sorted(
            (dataset.classes[label].name, *(int(edge) for edge in edges))
            for label, edges in zip(boxed.labels, boxed.edges.tolist(), strict=True)
        )
        for split in dataset.splits.values()
        for boxed in split
    }


def expected(labels):
    return {name: sorted(boxes) for name, boxes in labels.items()}


@pytest.fixture
def pictures(tmp_path):
    """A folder with pictures, and what is in them."""
    return tmp_path / "data", write_pictures(tmp_path / "data" / "pictures", 8, good=3)


def test_one_coco_file_is_split_by_content(pictures):
    """Every picture once, its boxes exact, a share of each class set aside; the same seed splits the same."""
    root, labels = pictures
    write_coco(root / "annotations.json", labels)
    dataset = open_boxes(root)
    assert [spec.name for spec in dataset.classes] == CLASSES
    assert [spec.role for spec in dataset.classes] == ["ok", "defect", "defect"]
    assert truth_of(dataset) == expected(labels)
    assert {len(boxed.labels) > 0 for boxed in dataset.splits["val"]} == {True, False}
    assert open_boxes(root).splits.keys() == {"train", "val"}
    again = [boxed.sample.name for boxed in open_boxes(root).splits["val"]]
    assert again == [boxed.sample.name for boxed in dataset.splits["val"]]
    names = {tuple(boxed.sample.name for boxed in open_boxes(root, seed=seed).splits["val"]) for seed in range(6)}
    assert len(names) > 1


def test_voc_corners_count_from_one(pictures):
    """The same pictures labelled in VOC give the same boxes as in COCO."""
    root, labels = pictures
    write_voc(root / "Annotations", labels)
    assert truth_of(open_boxes(root)) == expected(labels)


@pytest.mark.parametrize("layout", ["{}.json", "annotations/instances_{}2017.json", "{}/_annotations.coco.json"])
def test_a_file_per_split_is_taken_as_it_is(tmp_path, layout):
    found = {}
    for seed, split in enumerate(("train", "val", "test")):
        found[split] = write_pictures(tmp_path / split, 4, seed=seed)
        write_coco(tmp_path / layout.format(split), found[split])
    dataset = open_boxes(tmp_path)
    for split, labels in found.items():
        assert {boxed.sample.path.name for boxed in dataset.splits[split]} == set(labels)
    assert truth_of(dataset) == expected(found["train"] | found["val"] | found["test"])


def test_voc_is_split_by_where_the_pictures_lie(tmp_path):
    """As far as train/, val/ and test/ are in their paths; without val/ it is split off train/."""
    train = write_pictures(tmp_path / "train" / "any", 6, seed=0)
    test = write_pictures(tmp_path / "test" / "any", 3, seed=1)
    write_voc(tmp_path / "annotations", train | test)
    dataset = open_boxes(tmp_path)
    assert {boxed.sample.path.name for boxed in dataset.splits["test"]} == set(test)
    assert len(dataset.splits["train"]) + len(dataset.splits["val"]) == 6
    assert dataset.splits["val"]


def test_pictures_without_labels_are_good_only_in_a_folder_that_says_so(pictures, capsys):
    """Others are left out, and counted aloud: a forgotten label must not teach that a defect is good."""
    root, labels = pictures
    write_voc(root / "annotations", labels)
    write_pictures(root / "good", 0, good=4, seed=5)
    write_pictures(root / "new", 2, seed=6)
    dataset = open_boxes(root)
    assert sum(dataset.counts(split)["good"] for split in dataset.splits) == 3 + 4
    assert len(truth_of(dataset)) == 11 + 4
    assert "pictures_without_labels" in (said := capsys.readouterr().out + capsys.readouterr().err)
    assert "count=2" in said or '"count": 2' in said


def test_equal_pictures_stay_where_they_judge(tmp_path):
    """One in train/ and test/ is used in test/ only."""
    train = write_pictures(tmp_path / "train", 6, seed=0)
    test = write_pictures(tmp_path / "test", 2, seed=1)
    name = next(iter(train))
    shutil.copy(tmp_path / "train" / name, tmp_path / "test" / f"copy-{name}")
    write_voc(tmp_path / "annotations", train | test | {f"copy-{name}": train[name]})
    dataset = open_boxes(tmp_path)
    assert name not in {boxed.sample.path.name for split in ("train", "val") for boxed in dataset.splits[split]}
    assert f"copy-{name}" in {boxed.sample.path.name for boxed in dataset.splits["test"]}


def test_boxes_are_stretched_with_their_pictures(pictures):
    """64x64 to a network input of 32x96."""
    root, labels = pictures
    write_coco(root / "annotations.json", labels)
    boxed = open_boxes(root).splits["train"]
    loaded = load_boxes(boxed, PreprocessSpec(width=32, height=96))
    assert loaded.pixels.shape == (len(boxed), 96, 32, 3)
    for sample, edges in zip(boxed, loaded.edges, strict=True):
        np.testing.assert_allclose(edges, sample.edges * [0.5, 1.5, 0.5, 1.5])
    assert loaded.bad.tolist() == [len(sample.labels) > 0 for sample in boxed]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_boxes_lie_in_the_picture_held_upright(tmp_path, suffix):
    """Taken with the camera on its side, whatever the decoder makes of that: 100x60 as stored, 60x100 upright."""
    stored = np.zeros((60, 100, 3), np.uint8)
    stored[10:30, 20:60] = 250
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn clockwise
    for index in range(4):
        stored[-1, -1 - index] = 50
        Image.fromarray(stored).save(tmp_path / f"{index}.{suffix}", exif=turned)
    write_coco(tmp_path / "annotations.json", {f"{i}.{suffix}": [("disc", 30, 20, 50, 60)] for i in range(4)})
    content = json.loads((tmp_path / "annotations.json").read_text())
    images = [changed(image, width=60, height=100) for image in content["images"]]
    (tmp_path / "annotations.json").write_text(json.dumps(changed(content, images=images)))
    loaded = load_boxes(open_boxes(tmp_path).splits["train"], PreprocessSpec(width=120, height=120))
    ys, xs = np.nonzero(loaded.pixels[0][:, :, 0] > 128)
    seen = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    np.testing.assert_allclose(loaded.edges[0][0], seen, atol=1.5)


def test_the_fingerprint_follows_a_moved_box(pictures):
    """The same data give the same, whatever the split; a box that moves by a pixel gives another."""
    root, labels = pictures
    write_coco(root / "annotations.json", labels)
    first = open_boxes(root).fingerprint
    assert open_boxes(root, seed=3).fingerprint == first
    name, boxes = next(iter(labels.items()))
    label, left, top, right, bottom = boxes[0]
    write_coco(root / "annotations.json", labels | {name: [(label, left, top, right, bottom - 1), *boxes[1:]]})
    assert open_boxes(root).fingerprint != first


def test_a_bundle_judges_classes_that_it_knows(pictures):
    """Nothing is split, labels are the bundle's, and a class that it has not learnt is refused."""
    root, labels = pictures
    write_coco(root / "annotations.json", labels)
    known = [ClassSpec(name="good", role="ok"), *(ClassSpec(name=n, role="defect") for n in ("bolt", "square", "disc"))]
    dataset = open_boxes(root, classes=known)
    assert dataset.splits.keys() == {"test"}
    assert truth_of(dataset) == expected(labels)
    with pytest.raises(DataError, match=r"unknown class 'disc'; known are square"):
        open_boxes(root, classes=[known[0], known[2]])


VOC = "<annotation><filename>0-000.png</filename>{}<object><name>{}</name>{}</object></annotation>"
CORNERS = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
FINE = CORNERS.format(5, 5, 20, 20)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("no xml at all", "is no XML"),
        ("<annotation>", "is no XML"),
        ('<?xml version="1.0" encoding="klingon"?><a/>', "is no XML"),
        ('<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><a>&d;</a>', "declares a document type or entities"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "declares a document type or entities"),
        (VOC.format("", "", FINE), "an object has no name"),
        (VOC.format("", "dent", ""), "dent has no bndbox"),
        (VOC.format("", "dent", CORNERS.format("five", 5, 20, 20)), "xmin is 'five', expected a number"),
        (VOC.format("", "dent", CORNERS.format("nan", 5, 20, 20)), "xmin is 'nan', expected a finite number"),
        (VOC.format("", "dent", "<bndbox><xmin>3</xmin></bndbox>"), "ymin is None, expected a number"),
        (VOC.format("", "dent", CORNERS.format(5, 5, 200, 20)), "lies outside the picture of 64x64"),
        (VOC.format("", "dent", CORNERS.format(-4, 5, 20, 20)), "lies outside the picture of 64x64"),
        (VOC.format("", "dent", CORNERS.format(20, 5, 19, 20)), "has no area"),
        (VOC.format("", "dent", CORNERS.format(30, 5, 5, 20)), "has no area"),
        (VOC.format("<size><width>99</width><height>64</height></size>", "dent", FINE), "labelled as 99x64"),
        (VOC.format("", "dent", FINE + "</object><object><name>hole</name>" + FINE), "is also labelled dent"),
        (VOC.format("", "good", FINE), "a good part is a picture without boxes"),
        (VOC.format("", "../dent", FINE), "use up to 64 letters"),
    ],
)
def test_labels_that_cannot_be_right_are_named(pictures, xml, message):
    """One line that starts with the file, exit code 2."""
    root, labels = pictures
    write_voc(root / "annotations", labels)
    (root / "annotations" / "0-000.xml").write_text(xml)
    with pytest.raises(DataError, match=message) as caught:
        open_boxes(root)
    assert "0-000" in str(caught.value) or message.startswith(("a good", "use up"))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_edge_that_was_rounded_is_cut(tmp_path):
    """Tools that count from 0 write 0 into VOC; one pixel is no mistake."""
    labels = write_pictures(tmp_path / "p", 4)
    write_voc(tmp_path / "annotations", labels)
    (tmp_path / "annotations" / "0-000.xml").write_text(VOC.format("", "disc", CORNERS.format(0, 0, 65, 20)))
    dataset = open_boxes(tmp_path)
    assert truth_of(dataset)["0-000.png"] == [("disc", 0, 0, 64, 20)]


def test_a_box_given_twice_counts_once(tmp_path):
    labels = write_pictures(tmp_path / "p", 4)
    name, boxes = next(iter(labels.items()))
    write_voc(tmp_path / "annotations", labels | {name: [boxes[0], boxes[0]]})
    assert truth_of(open_boxes(tmp_path))[name] == [boxes[0]]


def changed(content, **keys):
    return {**content, **keys}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [], "is not of COCO's form"),
        (lambda c: {"images": []}, "'categories' is missing"),
        (lambda c: changed(c, categories=[]), "there is no category 10"),
        (lambda c: changed(c, images=c["images"] * 2), "two pictures have the same id"),
        (lambda c: changed(c, images=c["images"][1:]), "there is no picture 0"),
        (lambda c: changed(c, annotations=[]), "no picture has a box"),
        (lambda c: changed(c, annotations=[changed(c["annotations"][0], bbox=[1, 2, 3])]), "COCO's form"),
        (lambda c: changed(c, annotations=[changed(c["annotations"][0], bbox=[1, 2, 0, 9])]), "has no area"),
        (lambda c: changed(c, annotations=[changed(c["annotations"][0], bbox=[1, 2, -3, 9])]), "has no area"),
        (lambda c: changed(c, annotations=[changed(c["annotations"][0], bbox=[1, 2, 3, 99])]), "lies outside"),
        (lambda c: changed(c, annotations=[changed(c["annotations"][0], bbox=[1, 2, 3, float("nan")])]), "no area"),
        (lambda c: changed(c, annotations=[changed(c["annotations"][0], bbox=[1, 2, 1e-6, 1e-6])]), "has no area"),
        (lambda c: changed(c, annotations=[changed(c["annotations"][0], bbox=[10**400, 2, 3, 9])]), "COCO's form"),
        (lambda c: changed(c, annotations=[changed(c["annotations"][0], iscrowd=1)]), "is a crowd"),
        (lambda c: changed(c, images=[changed(i, width=float("inf")) for i in c["images"]]), "COCO's form"),
        (lambda c: changed(c, categories=[changed(e, id=10) for e in c["categories"]]), "two categories have the same"),
        (lambda c: changed(c, images=[changed(c["images"][0], file_name="x.png"), *c["images"][1:]]), "'x.png' below"),
        (lambda c: changed(c, images=[changed(i, width=10) for i in c["images"]]), "labelled as 10x64"),
    ],
)
def test_coco_that_contradicts_itself_is_named(pictures, change, message):
    root, labels = pictures
    write_coco(root / "annotations.json", labels)
    content = json.loads((root / "annotations.json").read_text())
    (root / "annotations.json").write_text(json.dumps(change(content)))
    with pytest.raises(DataError, match=message) as caught:
        open_boxes(root)
    assert "\n" not in str(caught.value)


def test_folders_that_are_none_of_this_are_refused(tmp_path):
    """Each with what is expected."""
    with pytest.raises(DataError, match="no such folder"):
        open_boxes(tmp_path / "none")
    with pytest.raises(DataError, match=r"has no labels: expected annotations\.json"):
        open_boxes(tmp_path)
    labels = write_pictures(tmp_path / "p", 3)
    write_coco(tmp_path / "annotations.json", labels)
    write_voc(tmp_path / "annotations", labels)
    with pytest.raises(DataError, match=r"labels of 2 kinds: annotations\.json, VOC files; keep one"):
        open_boxes(tmp_path)
    (tmp_path / "annotations.json").write_text("{")
    with pytest.raises(DataError, match=r"annotations\.json: is no JSON"):
        read_coco(tmp_path / "annotations.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_voc(tmp_path / "absent.xml")


def test_pictures_that_cannot_be_told_apart_or_read_are_named(pictures):
    root, labels = pictures
    write_coco(root / "annotations.json", labels)
    (root / "other").mkdir()
    shutil.copy(root / "pictures" / "0-000.png", root / "other" / "0-000.png")
    with pytest.raises(DataError, match=r"0-000\.png: may mean .*other/0-000\.png or .*pictures/0-000\.png"):
        open_boxes(root)
    shutil.rmtree(root / "other")
    (root / "pictures" / "0-003.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    with pytest.raises(DataError, match=r"0-003\.png: is no picture that can be read"):
        open_boxes(root)
