"""The detector as a task for the loop: pictures with their boxes, the four losses, and validation by mAP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from inspectd.engine.base import Scores
from inspectd.frame import U8
from inspectd.model.export import normalise
from inspectd.model.manifest import ClassSpec, DetectorSpec
from inspectd.model.preprocess import PreprocessSpec
from inspectd.workshop.detect.augment import BoxAugmenter
from inspectd.workshop.detect.data import BoxedPictures
from inspectd.workshop.detect.network import Target
from inspectd.workshop.detect.precision import average_precision
from inspectd.workshop.options import TrainOptions
from inspectd.workshop.task import Score, Task

_JUDGE_BATCH = 16

Batch = tuple[Tensor, list[Target]]  # float32 [B, 3, H, W] normalised, channels last; boxes and labels of each


class DetectTask(Task):
    """Pictures in memory, augmented with their boxes as they are needed."""

    def __init__(
        self,
        train: BoxedPictures,
        val: BoxedPictures,
        classes: Sequence[ClassSpec],
        spec: PreprocessSpec,
        detector: DetectorSpec,
        options: TrainOptions,
        device: torch.device,
    ) -> None:
        self.pictures = len(train)
        self._train, self._val = train, val
        self._classes, self._spec, self._detector = classes, spec, detector
        self._augment, self._seed, self._device = BoxAugmenter(options.augment), options.seed, device

    def batch(self, index: Tensor, generator: torch.Generator) -> Batch:
        rows = index.tolist()
        own = self._train
        pixels, edges, labels = self._augment(
            own.pixels[rows], [own.edges[row] for row in rows], [own.labels[row] for row in rows], generator
        )
        x = normalise(torch.from_numpy(pixels), self._spec).to(self._device, memory_format=torch.channels_last)
        targets = [
            {"boxes": torch.from_numpy(boxes).to(self._device), "labels": torch.from_numpy(names).to(self._device)}
            for boxes, names in zip(edges, labels, strict=True)
        ]
        return x, targets

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        losses: dict[str, Tensor] = network(*batch)
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    def judge(self, network: nn.Module) -> Score:
        found = predict(network, self._val.pixels, self._spec, self._detector, self._device)
        figures = average_precision(self._val, found, self._classes)
        map50, all_overlaps = figures.map50 or 0.0, figures.map or 0.0
        return Score((map50, all_overlaps), {"mAP@0.5": map50, "mAP": all_overlaps})

    def plain_batches(self, size: int) -> Iterator[Tensor]:
        """All training pictures once, not augmented, in a seeded order: what statistics are settled on."""
        order = np.random.default_rng(self._seed).permutation(self.pictures)
        size = min(size, self.pictures)
        for start in range(0, self.pictures - size + 1, size):
            x = normalise(torch.from_numpy(self._train.pixels[order[start : start + size]]), self._spec)
            yield x.to(self._device, memory_format=torch.channels_last)


@torch.no_grad()
def predict(
    network: nn.Module, pixels: U8, spec: PreprocessSpec, detector: DetectorSpec, device: torch.device
) -> Scores:
    """What torch finds: uint8 [N, H, W, 3] -> float32 [N, max_detections, 6], as `DetectorSpec` describes them."""
    network.eval()
    detections = np.zeros((len(pixels), detector.max_detections, 6), np.float32)
    detections[:, :, 5] = -1
    for start in range(0, len(pixels), _JUDGE_BATCH):
        x = normalise(torch.from_numpy(pixels[start : start + _JUDGE_BATCH]), spec)
        for offset, found in enumerate(network(x.to(device, memory_format=torch.channels_last))):
            columns = [found["boxes"], found["scores"][:, None], found["labels"][:, None]]
            rows = torch.cat([column.float() for column in columns], dim=1).cpu().numpy()
            detections[start + offset, : len(rows)] = rows
    return detections
