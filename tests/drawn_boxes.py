"""Drawn parts with boxes: dark squares and bright discs on noise, labelled as COCO JSON or Pascal VOC."""

import json
from pathlib import Path

import cv2
import numpy as np

NAMES = ("disc", "square")


def draw(rng, count, side=64):
    """A picture uint8 [side, side, 3] and its boxes [(name, left, top, right, bottom)], edges continuous."""
    picture = rng.normal(128, 10, (side, side, 3))
    boxes = []
    for _ in range(count):
        name = NAMES[int(rng.integers(2))]
        extent = int(rng.integers(side // 5, side // 3))
        left, top = (int(v) for v in rng.integers(0, side - extent, 2))
        if any(left < r and x < left + extent and top < b and y < top + extent for _, x, y, r, b in boxes):
            continue  # would overlap one that is there
        if name == "square":
            picture[top : top + extent, left : left + extent] -= 90
        else:
            yy, xx = np.mgrid[:side, :side] + 0.5
            radius = extent / 2
            picture[(xx - left - radius) ** 2 + (yy - top - radius) ** 2 <= radius**2] += 90
        boxes.append((name, left, top, left + extent, top + extent))
    return picture.clip(0, 255).astype(np.uint8), boxes


def write_pictures(folder: Path, count, *, good=0, side=64, seed=0):
    """`count` pictures with one or two defects and `good` without; {file name: boxes}."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    labels = {}
    for index in range(count + good):
        picture, boxes = draw(rng, 0 if index >= count else 1 + index % 2, side)
        name = f"{seed}-{index:03}.png"
        cv2.imwrite(str(folder / name), picture)
        labels[name] = boxes
    return labels


def write_coco(path: Path, labels, side=64):
    """COCO with category ids that are not in a row."""
    ids = {name: 10 * (index + 1) for index, name in enumerate(NAMES)}
    images = [{"id": i, "file_name": name, "width": side, "height": side} for i, name in enumerate(labels)]
    boxes = [
        {"image_id": i, "category_id": ids[name], "bbox": [left, top, right - left, bottom - top], "iscrowd": 0}
        for i, own in enumerate(labels.values())
        for name, left, top, right, bottom in own
    ]
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    annotations = [{"id": i, **box} for i, box in enumerate(boxes)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))


def write_voc(folder: Path, labels, side=64):
    """One XML per picture; corners counted from 1, both inside."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, boxes in labels.items():
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
            f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for label, left, top, right, bottom in boxes
        )
        size = f"<size><width>{side}</width><height>{side}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"
        (folder / f"{Path(name).stem}.xml").write_text(text)
