"""A bundle whose network is known by heart: it judges a crop by its mean colour.

green -> good (ok), red -> scratch (defect), blue -> stain (defect), black -> empty. It goes through the
real bundle loader and the real OpenVINO engine, so that a test knows the right verdict of every frame.
"""

from pathlib import Path

import numpy as np

from inspectd.model.bundle import Bundle, write_manifest
from inspectd.model.manifest import ClassSpec, Manifest
from inspectd.model.preprocess import PreprocessSpec

COLOURS = {"good": (20, 220, 20), "scratch": (220, 20, 20), "stain": (20, 20, 220), "empty": (10, 10, 10)}  # RGB
CLASSES = (
    ClassSpec(name="good", role="ok"),
    ClassSpec(name="scratch", role="defect"),
    ClassSpec(name="stain", role="defect"),
    ClassSpec(name="empty", role="empty"),
)
VERDICTS = {"good": "pass", "scratch": "fail", "stain": "fail", "empty": "no_result"}


def colour_bundle(path: Path, size: int = 32) -> Bundle:
    """Write the bundle; logits are minus the distance of the mean colour to each class's colour."""
    import openvino as ov
    from openvino import opset13 as ops

    pixels = ops.parameter([-1, size, size, 3], np.uint8, name="pixels")
    mean = ops.reduce_mean(ops.convert(pixels, np.float32), ops.constant([1, 2]), keep_dims=False)  # [B, 3]
    targets = np.array([COLOURS[c.name] for c in CLASSES], np.float32)  # [4, 3]
    # -|m - t|^2 / 1000 = (2 m·t - t·t)/1000 - m·m/1000; the last term is the same for every class.
    weights = ops.constant(2 * targets.T / 1000)
    bias = ops.constant(-(targets**2).sum(1) / 1000)
    logits = ops.add(ops.matmul(mean, weights, transpose_a=False, transpose_b=False), bias)
    model = ov.Model([ops.result(logits, name="logits")], [pixels], "colour")
    (path / "openvino").mkdir(parents=True)
    ov.save_model(model, path / "openvino" / "model.xml", compress_to_fp16=False)
    manifest = Manifest(
        format_version=1,
        architecture="resnet18",
        classes=CLASSES,
        preprocess=PreprocessSpec(width=size, height=size),
        files={"openvino/model.xml": "", "openvino/model.bin": ""},
    )
    return write_manifest(path, manifest)
