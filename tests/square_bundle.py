"""A detector that is known by heart: it boxes what is red (dent) and what is blue (stain), by arithmetic.

It goes through the real bundle loader and the real OpenVINO engine, so that a test knows the right box of
every frame. One box per colour, its score 0.9.
"""

from pathlib import Path

import numpy as np

from inspectd.model.bundle import Bundle, write_manifest
from inspectd.model.manifest import ClassSpec, DetectorSpec, Manifest
from inspectd.model.preprocess import PreprocessSpec
from inspectd.model.runtime import import_openvino

CLASSES = (
    ClassSpec(name="good", role="ok"),
    ClassSpec(name="dent", role="defect"),
    ClassSpec(name="stain", role="defect"),
)
RED, BLUE = (220, 20, 20), (20, 20, 220)  # RGB
DETECTOR = DetectorSpec(strides=(8,), anchor_sizes=((32.0,),), aspect_ratios=(1.0,), max_detections=4)


def square_bundle(path: Path, width: int = 64, height: int = 48) -> Bundle:
    """Write the bundle; its input need not be square."""
    ov = import_openvino()
    from openvino import opset13 as ops

    pixels = ops.parameter([1, height, width, 3], np.uint8, name="pixels")
    rows = [_box(ops, pixels, width, height, channel, label) for channel, label in ((0, 1), (2, 2))]
    padding = ops.constant(np.array([[0, 0, 0, 0, 0, -1]] * 2, np.float32))
    detections = ops.unsqueeze(ops.concat([*rows, padding], 0), ops.constant(0))  # [1, 4, 6]
    model = ov.Model([ops.result(detections, name="detections")], [pixels], "squares")
    (path / "openvino").mkdir(parents=True)
    ov.save_model(model, path / "openvino" / "model.xml", compress_to_fp16=False)
    manifest = Manifest(
        format_version=1,
        task="detect",
        architecture="fasterrcnn_resnet18_fpn",
        classes=CLASSES,
        preprocess=PreprocessSpec(width=width, height=height),
        detector=DETECTOR,
        files={},
    )
    return write_manifest(path, manifest)


def _box(ops, pixels, width, height, channel, label):
    """[1, 6]: around every pixel whose channel is 100 above both others."""
    values = ops.convert(pixels, np.float32)
    planes = [ops.gather(values, ops.constant(index), ops.constant(3)) for index in range(3)]  # [1, H, W]
    own = planes.pop(channel)
    marked = ops.logical_and(*(ops.greater(ops.subtract(own, other), np.float32(100)) for other in planes))

    def span(axes, side):
        any_here = ops.reshape(ops.reduce_logical_or(marked, ops.constant(axes), keep_dims=False), [side], False)
        first = ops.select(any_here, np.arange(side, dtype=np.float32), np.full(side, side, np.float32))
        last = ops.select(any_here, np.arange(1, side + 1, dtype=np.float32), np.zeros(side, np.float32))
        return ops.reduce_min(first, [0], True), ops.reduce_max(last, [0], True)

    (left, right), (top, bottom) = span([0, 1], width), span([0, 2], height)
    found = ops.reshape(ops.reduce_logical_or(marked, ops.constant([0, 1, 2]), keep_dims=False), [1], False)
    one = [ops.constant(np.array([value], np.float32)) for value in (0.9, label)]
    row = ops.concat([left, top, right, bottom, *one], 0)
    return ops.reshape(ops.select(found, row, np.array([0, 0, 0, 0, 0, -1], np.float32)), [1, 6], False)
