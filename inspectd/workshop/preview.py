"""A sheet of what training will see: a row for each class, the original first, then it augmented or simulated."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from inspectd.errors import DataError
from inspectd.frame import U8
from inspectd.model.data import Pictures
from inspectd.model.manifest import ClassSpec
from inspectd.workshop.augment import Augmenter

_TILE = (112, 224)  # smallest and largest side of a picture on the sheet, in pixels
_LABELS = 190  # width of the column of names
_TITLE = 54  # height of the two lines above
_GAP = 6
_PAPER, _INK, _FAINT = (250, 250, 250), (25, 25, 25), (110, 110, 110)
_SIMULATED = (200, 80, 0)  # RGB
_ROLE_COLOURS = {"ok": (20, 120, 60), "empty": (90, 90, 90), "defect": (170, 30, 30)}


def write_preview(
    path: Path,
    pictures: Pictures,
    classes: Sequence[ClassSpec],
    augmenter: Augmenter,
    *,
    simulated: npt.NDArray[np.bool_] | None = None,
    columns: int = 8,
    seed: int = 0,
) -> None:
    """Write the sheet as PNG: a row for each class, `columns` pictures of which the first is as it was read.

    A row holds half of its pictures simulated, in an orange frame, where the class has that many.

    Args:
        pictures: what is trained with, simulated ones included.
        simulated: bool [N], which of them are; see `fill.fill_small_classes`.

    Raises:
        DataError: the file cannot be written.
    """
    drawn = np.zeros(len(pictures), np.bool_) if simulated is None else simulated
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    height, width = pictures.pixels.shape[1:3]
    scale = _scale(width, height)
    tile = (max(1, round(width * scale)), max(1, round(height * scale)))
    step_x, step_y = tile[0] + _GAP, tile[1] + _GAP
    sheet = np.full((_TITLE + step_y * len(classes) + _GAP, _LABELS + step_x * columns + _GAP, 3), _PAPER, np.uint8)
    _write(sheet, f"augmentation: {augmenter.preset}", (_GAP * 2, 22), 0.6, _INK)
    _write(sheet, "as read", (_LABELS + _GAP, _TITLE - 8), 0.45, _FAINT)
    _write(sheet, "as trained", (_LABELS + _GAP + step_x, _TITLE - 8), 0.45, _FAINT)
    if drawn.any():
        _write(sheet, "orange: simulated", (_LABELS + _GAP + 2 * step_x, _TITLE - 8), 0.45, _SIMULATED)
    for row, spec in enumerate(classes):
        top = _TITLE + row * step_y
        own = np.flatnonzero(pictures.labels == row)
        real = f"{int((~drawn[own]).sum())} pictures"
        _label(sheet, spec, real, int(drawn[own].sum()), top)
        for column, (index, varied) in enumerate(_chosen(own, drawn, columns, rng)):
            picture = pictures.pixels[index]
            if varied:
                picture = augmenter(torch.from_numpy(picture[None].copy()), generator).numpy()[0]
            left = _LABELS + column * step_x
            frame = _SIMULATED if drawn[index] else None
            _put(sheet, picture, (left + _GAP, top), tile, frame)
    _save(path, sheet)


def _chosen(
    own: npt.NDArray[np.int64], drawn: npt.NDArray[np.bool_], columns: int, rng: np.random.Generator
) -> list[tuple[int, bool]]:
    """Rows to show, and whether augmented: one real as it is, then real ones, then simulated ones."""
    real, simulated = rng.permutation(own[~drawn[own]]), rng.permutation(own[drawn[own]])
    room = columns - 1
    some = simulated[: room // 2]
    shown = [(int(index), False) for index in real[:1]]
    if len(real):
        shown += [(int(real[k % len(real)]), True) for k in range(room - len(some))]
    return shown + [(int(index), True) for index in some]


def _label(sheet: U8, spec: ClassSpec, real: str, simulated: int, top: int) -> None:
    for line, text in enumerate(_wrapped(spec.name)):
        _write(sheet, text, (_GAP * 2, top + 20 + 18 * line), 0.5, _INK)
        below = top + 20 + 18 * (line + 1)
    _write(sheet, spec.role, (_GAP * 2, below), 0.45, _ROLE_COLOURS[spec.role])
    _write(sheet, real, (_GAP * 2, below + 18), 0.42, _FAINT)
    if simulated:
        _write(sheet, f"+ {simulated} simulated", (_GAP * 2, below + 35), 0.42, _SIMULATED)


def _wrapped(name: str, room: int = 18, lines: int = 2) -> list[str]:
    cut = [name[start : start + room] for start in range(0, len(name), room)]
    return cut if len(cut) <= lines else [*cut[: lines - 1], cut[lines - 1][: room - 1] + "…"]


def _scale(width: int, height: int) -> float:
    """Small pictures are enlarged by whole numbers, so that their pixels can be seen; large ones shrink."""
    smallest, largest = _TILE
    side = max(width, height)
    return float(-(-smallest // side)) if side < smallest else min(1.0, largest / side)


def _put(
    sheet: U8, picture: U8, place: tuple[int, int], tile: tuple[int, int], frame: tuple[int, int, int] | None
) -> None:
    enlarged = tile[0] > picture.shape[1]
    shown = cv2.resize(picture, tile, interpolation=cv2.INTER_NEAREST if enlarged else cv2.INTER_AREA)
    x, y = place
    sheet[y : y + tile[1], x : x + tile[0]] = shown
    if frame is not None:
        cv2.rectangle(sheet, (x - 2, y - 2), (x + tile[0] + 1, y + tile[1] + 1), frame, 3)


def _write(sheet: U8, text: str, place: tuple[int, int], size: float, colour: tuple[int, int, int]) -> None:
    cv2.putText(sheet, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def _save(path: Path, sheet: U8) -> None:
    """Whole or not at all."""
    png = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes()
    temporary = path.with_name(f".{path.name}.new-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(png)
        temporary.replace(path)
    except OSError as err:
        with suppress(OSError):
            temporary.unlink()
        raise DataError(f"{path}: cannot be written: {err.strerror or err}") from err
