"""Label files as they come: COCO JSON and Pascal VOC XML, each read into the same plain records.

Every complaint starts with the file, so that whoever labelled it finds the place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from inspectd.errors import DataError

_EDGE = 1.0  # pixels that a box may stick out by: rounding, or a tool that counts from 0
_LEAST_SIDE = 0.1  # pixels; less shows nothing, and is lost in float32 when the box is moved and scaled


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """Edges in picture pixels, continuous: the whole picture is 0, 0, width, height."""

    label: str
    left: float
    top: float
    right: float
    bottom: float

    def __str__(self) -> str:
        return f"{self.label} [{self.left:g}, {self.top:g}, {self.right:g}, {self.bottom:g}]"


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """What one label file says of one picture. `source` is what an error names, `size` width and height if given."""

    source: str
    picture: str  # file name as the labels have it, or the stem
    size: tuple[int, int] | None
    boxes: tuple[LabelledBox, ...]


def read_voc(path: Path) -> LabelledPicture:
    """One Pascal VOC file. Its corners are pixels counted from 1, both inside the box.

    Raises:
        DataError: no XML, with entities (never expanded), or without what a box needs.
    """
    try:
        root = fromstring(path.read_bytes(), forbid_dtd=True)
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror}") from err
    except DefusedXmlException:
        raise DataError(f"{path}: declares a document type or entities; labels need none, remove them") from None
    except (ParseError, ValueError, LookupError) as err:  # LookupError: an encoding that nobody knows
        raise DataError(f"{path}: is no XML: {err}") from None
    boxes = tuple(_voc_box(item, str(path)) for item in root.iter("object"))
    size = root.find("size")
    given = None
    if size is not None and size.findtext("width") and size.findtext("height"):
        given = (int(_number(size, "width", str(path))), int(_number(size, "height", str(path))))
    return LabelledPicture(str(path), path.stem, given if given != (0, 0) else None, boxes)


def _voc_box(item: Element, source: str) -> LabelledBox:
    label = (item.findtext("name") or "").strip()
    if not label:
        raise DataError(f"{source}: an object has no name")
    corners = item.find("bndbox")
    if corners is None:
        raise DataError(f"{source}: {label} has no bndbox")
    left, top, right, bottom = (_number(corners, key, source) for key in ("xmin", "ymin", "xmax", "ymax"))
    return LabelledBox(label, left - 1, top - 1, right, bottom)


def _number(parent: Element, key: str, source: str) -> float:
    text = parent.findtext(key)
    try:
        value = float(text or "")
    except ValueError:
        raise DataError(f"{source}: {key} is {text!r}, expected a number") from None
    if not math.isfinite(value):
        raise DataError(f"{source}: {key} is {text!r}, expected a finite number")
    return value


def read_coco(path: Path) -> list[LabelledPicture]:
    """Every picture of a COCO file, those without boxes too, in its order.

    Raises:
        DataError: no JSON, not of COCO's form, or it refers to what it does not list.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as err:
        raise DataError(f"{path}: cannot be read: {err.strerror}") from err
    except (ValueError, RecursionError) as err:
        raise DataError(f"{path}: is no JSON: {err}") from None
    try:
        return list(_coco_pictures(content, path))
    except KeyError as err:
        raise DataError(f"{path}: is not of COCO's form: {err.args[0]!r} is missing somewhere") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as err:
        raise DataError(f"{path}: is not of COCO's form: {err}") from None


def _coco_pictures(content: Any, path: Path) -> Iterator[LabelledPicture]:
    names = {entry["id"]: str(entry["name"]).strip() for entry in content["categories"]}
    if len(names) != len(content["categories"]):
        raise DataError(f"{path}: two categories have the same id")
    pictures = {entry["id"]: entry for entry in content["images"]}
    if len(pictures) != len(content["images"]):
        raise DataError(f"{path}: two pictures have the same id")
    boxes: dict[Any, list[LabelledBox]] = {key: [] for key in pictures}
    for entry in content["annotations"]:
        if entry["image_id"] not in pictures:
            raise DataError(f"{path}: annotation {entry.get('id')}: there is no picture {entry['image_id']!r}")
        name = pictures[entry["image_id"]]["file_name"]
        boxes[entry["image_id"]].append(_coco_box(entry, names, f"{path}: {name}"))
    for key, entry in pictures.items():
        size = (int(entry["width"]), int(entry["height"])) if entry.get("width") and entry.get("height") else None
        yield LabelledPicture(f"{path}: {entry['file_name']}", str(entry["file_name"]), size, tuple(boxes[key]))


def _coco_box(entry: Mapping[str, Any], names: Mapping[Any, str], source: str) -> LabelledBox:
    if entry["category_id"] not in names:
        raise DataError(f"{source}: annotation {entry.get('id')}: there is no category {entry['category_id']!r}")
    if entry.get("iscrowd"):
        raise DataError(f"{source}: annotation {entry.get('id')} is a crowd; give each defect a box of its own")
    x, y, width, height = (float(value) for value in entry["bbox"])
    return LabelledBox(names[entry["category_id"]], x, y, x + width, y + height)


def checked_boxes(picture: LabelledPicture, width: int, height: int) -> tuple[LabelledBox, ...]:
    """The boxes, cut at the picture's edge where they stick out by rounding; a box given twice counts once.

    Raises:
        DataError: the labels are of a picture of another size, or a box lies outside or is empty, or the same
            box has two names.
    """
    if picture.size is not None and picture.size != (width, height):
        given = f"{picture.size[0]}x{picture.size[1]}"
        raise DataError(f"{picture.source}: is labelled as {given}, but the picture is {width}x{height}")
    places: dict[tuple[float, ...], LabelledBox] = {}
    for box in picture.boxes:
        edges = (box.left, box.top, box.right, box.bottom)
        if not all(math.isfinite(edge) for edge in edges) or _least_side(box) < _LEAST_SIDE:
            raise DataError(f"{picture.source}: {box} has no area; remove it or draw it again")
        if min(box.left, box.top) < -_EDGE or box.right > width + _EDGE or box.bottom > height + _EDGE:
            raise DataError(f"{picture.source}: {box} lies outside the picture of {width}x{height}")
        cut = LabelledBox(box.label, max(box.left, 0), max(box.top, 0), min(box.right, width), min(box.bottom, height))
        first = places.setdefault(edges, cut)
        if first.label != box.label:
            raise DataError(f"{picture.source}: {box} is also labelled {first.label}; keep one of them")
        if _least_side(cut) < _LEAST_SIDE:
            raise DataError(f"{picture.source}: {box} lies outside the picture of {width}x{height}")
    return tuple(places.values())


def _least_side(box: LabelledBox) -> float:
    return min(box.right - box.left, box.bottom - box.top)
