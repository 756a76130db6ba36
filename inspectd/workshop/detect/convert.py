"""Deployable copies of a detector: one picture in, `detections` of a fixed shape out; see `DetectorSpec`.

Traced with one picture of the bundle's size, because that is what the engine asks for at a time. OpenVINO's
bf16 touches convolutions and matrix products only: anchors, corners and overlaps stay float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import boxes as box_ops
from torchvision.ops import nms

from inspectd.engine.base import Scores
from inspectd.frame import U8
from inspectd.model.export import int8_parameters, quiet, quiet_nncf
from inspectd.model.manifest import COPY_MODEL, Copy, Manifest
from inspectd.model.runtime import import_openvino, openvino_core
from inspectd.workshop.detect.network import Deployed, Detector

_BEYOND_PYRAMID = r"^(?!__module\.detector\.backbone\.).*"  # of the names that OpenVINO gives to operations


def export_detector(network: Detector, manifest: Manifest, target_dir: Path) -> Path:
    """Write `target_dir/openvino/`, weights compressed to 16 bits, and return the path of its model."""
    return _save(convert_detector(network, manifest), "openvino", target_dir)


def export_detector_int8(network: Detector, manifest: Manifest, target_dir: Path, calibration: U8) -> Path:
    """Write `target_dir/openvino-int8/`: ResNet and pyramid quantised, what proposes and judges boxes is not.

    `calibration`: uint8 [N, height, width, 3], pictures that were trained on.
    """
    model = convert_detector(network, manifest)
    with quiet_nncf() as nncf:
        quantised = nncf.quantize(
            model,
            nncf.Dataset([calibration[i : i + 1] for i in range(len(calibration))]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(patterns=[_BEYOND_PYRAMID], validate=False),
            advanced_parameters=int8_parameters(),
        )
    return _save(quantised, "openvino-int8", target_dir)


def openvino_detections(model: Path, pixels: U8, precision: str | None = None) -> Scores:
    """What a copy finds: uint8 [N, height, width, 3] -> float32 [N, max_detections, 6].

    `precision`: "f32" or "bf16" for what is not quantised; None is the runtime's choice, as on the line.
    """
    hint = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    compiled = openvino_core().compile_model(model, "CPU", hint)
    return np.concatenate([compiled(pixels[i : i + 1])[0].copy() for i in range(len(pixels))])


def convert_detector(network: Detector, manifest: Manifest) -> Any:
    """The network as an OpenVINO model, uint8 [1, height, width, 3] in."""
    assert manifest.detector is not None, "a detector's manifest"
    ov = import_openvino()
    spec = manifest.preprocess
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format).float().eval()
    shape = [1, 3, spec.height, spec.width]
    with _unbranched_nms(max(spec.width, spec.height)), quiet("openvino"):
        example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        model = ov.convert_model(Deployed(plain, manifest.detector.max_detections), example_input=example, input=shape)
    steps = ov.preprocess.PrePostProcessor(model)
    pixels = steps.input(0)
    pixels.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    pixels.preprocess().convert_element_type(ov.Type.f32)
    pixels.preprocess().mean([255 * value for value in spec.mean]).scale([255 * value for value in spec.std])
    pixels.model().set_layout(ov.Layout("NCHW"))
    model = steps.build()
    model.input(0).get_tensor().set_names({"pixels"})
    model.output(0).get_tensor().set_names({"detections"})
    return model


@contextmanager
def _unbranched_nms(side: int) -> Iterator[None]:
    """torchvision's batched_nms without its branch for no boxes, which NNCF cannot walk through.

    Boxes of one class (or level) are moved where those of another never reach, and one pass drops the weaker of
    those that overlap. They are cut at the picture's edge before, so its longer side is far enough.
    """

    def batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
        kept: Tensor = nms(boxes + classes.to(boxes)[:, None] * (side + 1.0), scores, iou_threshold)
        return kept

    original = box_ops.batched_nms
    box_ops.batched_nms = batched_nms
    try:
        yield
    finally:
        box_ops.batched_nms = original


def _save(model: Any, copy: Copy, target_dir: Path) -> Path:
    path = target_dir / COPY_MODEL[copy]
    path.parent.mkdir(parents=True, exist_ok=True)
    import_openvino().save_model(model, path, compress_to_fp16=True)
    return path
