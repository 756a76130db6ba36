"""The detector in torch: torchvision's Faster R-CNN on a ResNet18 with a feature pyramid, cut to a CPU's measure.

Built plain and named as torchvision names it, so that weights from anywhere fit; slimmer than its defaults
(pyramid of 128 channels, 200 proposals, judging layers of 256), which on two cores makes a step six times
as fast. Pictures come preprocessed, all of one size: torchvision's own resizing and normalising is not used.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from inspectd.errors import DataError
from inspectd.model.manifest import DetectorSpec, Manifest
from inspectd.model.network import StartWeights, build_resnet18, load_initial_weights

Target = dict[str, Tensor]
"""`boxes`: float32 [n, 4], left, top, right, bottom in pixels; `labels`: int64 [n] from 1."""

_POOL = 7  # samples across each proposal
_SAMPLED_ANCHORS, _SAMPLED_PROPOSALS = 128, 64  # per picture that the losses are taken of
_BODY = "backbone.body."


class Detector(FasterRCNN):  # type: ignore[misc] # torchvision has no types
    """Normalised float [B, 3, H, W] -> in training the losses, else per picture `boxes`, `scores`, `labels`."""

    def __init__(self, spec: DetectorSpec, classes: int) -> None:
        super().__init__(
            _pyramid(spec),
            rpn_anchor_generator=AnchorGenerator(
                spec.anchor_sizes, (tuple(spec.aspect_ratios),) * len(spec.anchor_sizes)
            ),
            box_roi_pool=MultiScaleRoIAlign([str(level) for level in range(len(spec.strides))], _POOL, 2),
            box_head=TwoMLPHead(spec.channels * _POOL**2, spec.head_width),
            box_predictor=FastRCNNPredictor(spec.head_width, classes),
            rpn_pre_nms_top_n_train=2 * spec.proposals,
            rpn_pre_nms_top_n_test=2 * spec.proposals,
            rpn_post_nms_top_n_train=spec.proposals,
            rpn_post_nms_top_n_test=spec.proposals,
            rpn_batch_size_per_image=_SAMPLED_ANCHORS,
            box_batch_size_per_image=_SAMPLED_PROPOSALS,
            box_score_thresh=spec.score_floor,
            box_nms_thresh=spec.nms_iou,
            box_detections_per_img=spec.max_detections,
        )

    def forward(self, x: Tensor, targets: list[Target] | None = None) -> dict[str, Tensor] | list[Target]:
        images = ImageList(x, [(x.shape[2], x.shape[3])] * len(x))
        features: OrderedDict[str, Tensor] = self.backbone(x)
        proposals, rpn_losses = self.rpn(images, features, targets)
        found, box_losses = self.roi_heads(features, proposals, images.image_sizes, targets)
        return {**rpn_losses, **box_losses} if self.training else found


class Deployed(nn.Module):
    """A detector with one output of a fixed shape, for one picture: [1, 3, H, W] -> [1, max_detections, 6].

    See `DetectorSpec` for what stands in it.
    """

    padding: Tensor

    def __init__(self, detector: Detector, max_detections: int) -> None:
        super().__init__()
        self.detector = detector
        padding = torch.zeros(max_detections, 6)
        padding[:, 5] = -1
        self.register_buffer("padding", padding)

    def forward(self, x: Tensor) -> Tensor:
        found = self.detector(x)[0]
        columns = [found["boxes"], found["scores"][:, None], found["labels"][:, None].to(x.dtype)]
        rows = torch.cat([torch.cat(columns, dim=1), self.padding])
        return rows[: len(self.padding)][None]


def build_detector(manifest: Manifest) -> Detector:
    """The bundle's network, weights random from torch's global generator."""
    assert manifest.detector is not None, "a detector's manifest"
    return Detector(manifest.detector, len(manifest.classes))


def load_body(detector: Detector, weights: StartWeights) -> None:
    """Fill the ResNet below the pyramid with what training starts from: ImageNet, or a classifier's weights.

    Raises:
        DataError: the download failed, or the file is missing, unsafe, or of another network.
    """
    if weights == "none":
        return
    donor = build_resnet18(1000)
    load_initial_weights(donor, weights)
    body = {name: tensor for name, tensor in donor.state_dict().items() if not name.startswith("fc.")}
    missing, unknown = detector.backbone.body.load_state_dict(body, strict=False)
    if missing or unknown:
        origin = weights if isinstance(weights, Path) else "ImageNet weights"
        raise DataError(f"{origin}: not the weights of a ResNet18: {(missing or unknown)[0]}")


def _pyramid(spec: DetectorSpec) -> BackboneWithFPN:
    """Levels at the spec's strides; batch normalisation learns, as it must where weights start from nothing."""
    stages = {4: ("layer1", 64), 8: ("layer2", 128), 16: ("layer3", 256), 32: ("layer4", 512)}
    names = {stages[stride][0]: str(level) for level, stride in enumerate(spec.strides)}
    pyramid = BackboneWithFPN(
        resnet18(weights=None), names, [stages[stride][1] for stride in spec.strides], spec.channels
    )
    pyramid.fpn.extra_blocks = None  # torchvision's coarser level: no box in a crop is larger than the crop
    return pyramid
