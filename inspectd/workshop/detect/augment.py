"""Augmentation of pictures together with their boxes: what a line varies, by one generator alone."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch

from inspectd.frame import U8
from inspectd.workshop.options import Preset

Edges = npt.NDArray[np.float32]  # [boxes, 4] left, top, right, bottom in pixels

_SEEN_AT_LEAST = 0.3  # share of a box's area; with less in the crop it is no defect that anyone could name
_LEAST_SIDE = 3.0  # pixels, of a box that is cut; a narrow one that is whole stays
_DRAWS = 8  # random numbers per picture


@dataclass(frozen=True, slots=True)
class BoxAugmenter:
    """Flips, crops that are stretched back, brightness and contrast; `texture` also turns and crops more.

    No hue: the colour may be the defect. A texture has no up and down, and what lies on it is everywhere.
    """

    preset: Preset

    def __call__(
        self, pixels: U8, edges: list[Edges], labels: list[npt.NDArray[np.int64]], generator: torch.Generator
    ) -> tuple[U8, list[Edges], list[npt.NDArray[np.int64]]]:
        """uint8 [B, H, W, 3] and its boxes to the same; boxes of which little is left are dropped."""
        if self.preset == "none":
            return pixels, edges, labels
        draws = torch.rand(len(pixels), _DRAWS, generator=generator).double().numpy()
        out = np.empty_like(pixels)
        new_edges, new_labels = [], []
        for index, draw in enumerate(draws):
            out[index], moved = self._one(pixels[index], edges[index], draw)
            kept = self._kept(moved, pixels.shape[2], pixels.shape[1])
            clipped = np.clip(moved[kept], 0, [pixels.shape[2], pixels.shape[1]] * 2)
            new_edges.append(clipped.astype(np.float32))
            new_labels.append(labels[index][kept])
        return out, new_edges, new_labels

    def _one(self, picture: U8, edges: Edges, draw: npt.NDArray[np.float64]) -> tuple[U8, Edges]:
        """One picture [H, W, 3] and its boxes, moved but not yet cut."""
        height, width = picture.shape[:2]
        least = 0.6 if self.preset == "texture" else 0.85
        crop_width = max(2, round(width * (least + (1 - least) * draw[0])))
        crop_height = max(2, round(height * (least + (1 - least) * draw[1])))
        left, top = round(draw[2] * (width - crop_width)), round(draw[3] * (height - crop_height))
        picture = picture[top : top + crop_height, left : left + crop_width]
        edges = edges - np.array([left, top] * 2, np.float32)
        if draw[4] < 0.5:
            picture, edges = picture[:, ::-1], _mirrored(edges, crop_width)
        if draw[5] < 0.5:
            picture = picture[::-1]
            edges = _mirrored(edges[:, [1, 0, 3, 2]], crop_height)[:, [1, 0, 3, 2]]
        if self.preset == "texture" and draw[6] < 0.5:  # with the flips: every quarter turn
            picture, edges = picture.transpose(1, 0, 2), edges[:, [1, 0, 3, 2]]
        scale = np.array([width / picture.shape[1], height / picture.shape[0]] * 2, np.float32)
        resized = cv2.resize(np.ascontiguousarray(picture), (width, height), interpolation=cv2.INTER_LINEAR)
        gain, offset = 0.85 + 0.3 * draw[7], 20 * (draw[6] * 2 % 1 - 0.5)
        lit = np.clip(resized * np.float32(gain) + np.float32(offset), 0, 255).astype(np.uint8)
        return lit, (edges * scale).astype(np.float32)

    @staticmethod
    def _kept(edges: Edges, width: int, height: int) -> npt.NDArray[np.bool_]:
        exact = edges.astype(np.float64)  # so that a side that is not cut is as long as before to the last bit
        inside = np.clip(exact, 0, [width, height] * 2)
        sides, whole = inside[:, 2:] - inside[:, :2], exact[:, 2:] - exact[:, :2]
        seen = sides.prod(axis=1) >= _SEEN_AT_LEAST * whole.prod(axis=1)
        kept: npt.NDArray[np.bool_] = seen & (sides >= np.minimum(_LEAST_SIDE, whole)).all(axis=1)
        return kept


def _mirrored(edges: Edges, side: int) -> Edges:
    """Left and right exchanged in a picture of this width."""
    return np.stack([side - edges[:, 2], edges[:, 1], side - edges[:, 0], edges[:, 3]], axis=1)
