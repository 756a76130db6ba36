"""Deployable copies of a network: OpenVINO for the CPU engine, as trained and quantised to INT8.

Both take uint8 RGB [N, height, width, 3], normalise inside, and give float32 logits [N, classes], raw:
no softmax and no temperature, which are the decision's business.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inspectd import __version__
from inspectd.frame import U8
from inspectd.model.bundle import COPY_MODEL, WEIGHTS, Bundle, ClassSpec, Copy, Manifest, Role, write_manifest
from inspectd.model.data import role_of
from inspectd.model.network import build_network, save_weights
from inspectd.model.preprocess import PreprocessSpec
from inspectd.model.runtime import import_openvino

CALIBRATION_PICTURES = 300
"""NNCF's own default for its `subset_size`; more hardly moves the ranges of a ResNet18."""


class _Deployed(nn.Module):
    """The network as it is deployed: uint8 [N, H, W, 3] -> float32 logits [N, classes]."""

    def __init__(self, network: nn.Module, spec: PreprocessSpec) -> None:
        super().__init__()
        self.network = network
        # (x / 255 - mean) / std, as one multiplication and one addition on 0..255.
        std = torch.tensor(spec.std).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -torch.tensor(spec.mean).view(1, 3, 1, 1) / std)
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(pixels.permute(0, 3, 1, 2).float() * self.scale + self.shift)
        return logits


def export_openvino(network: nn.Module, manifest: Manifest, root: Path) -> None:
    """Write the `openvino` copy of `network` into the bundle directory `root`, weights compressed to fp16."""
    ov = import_openvino()
    with _quiet():
        ov.save_model(_convert(network, manifest), _prepared(root, "openvino"), compress_to_fp16=True)


def export_int8(network: nn.Module, manifest: Manifest, root: Path, pictures: U8) -> None:
    """Write the `openvino-int8` copy: NNCF's post-training quantisation, calibrated on `pictures`.

    `pictures` are preprocessed training pictures, uint8 [N, height, width, 3]; of more than
    `CALIBRATION_PICTURES` an even selection is used.
    """
    ov = import_openvino()
    chosen = pictures[np.linspace(0, len(pictures) - 1, min(len(pictures), CALIBRATION_PICTURES)).astype(int)]
    with _quiet():
        import nncf

        quantised = nncf.quantize(
            _convert(network, manifest),
            nncf.Dataset([picture[None] for picture in chosen]),
            # Symmetric for weights, asymmetric for activations: what a ReLU leaves is one-sided.
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(chosen),
        )
        ov.save_model(quantised, _prepared(root, "openvino-int8"), compress_to_fp16=True)


def run_copy(bundle_root: Path, copy: Copy, pictures: U8) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits, float32 [N, classes], of a deployed copy in f32 arithmetic on uint8 [N, height, width, 3]."""
    ov = import_openvino()
    core = ov.Core()
    compiled = core.compile_model(
        core.read_model(bundle_root / COPY_MODEL[copy]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return np.concatenate([compiled(pictures[i : i + 32])[0] for i in range(0, len(pictures), 32)])


def random_bundle(
    path: Path,
    classes: Sequence[str] = ("good", "scratch", "dent", "stain", "empty"),
    size: int = 224,
    *,
    int8: bool = True,
    seed: int = 0,
) -> Bundle:
    """A bundle with random weights and every copy: as fast as a trained one, and as good as a coin.

    For `inspectd bench` and tests. `path` must not exist or be empty.
    """
    torch.manual_seed(seed)
    spec = PreprocessSpec(width=size, height=size)
    manifest = Manifest(
        format_version=1,
        architecture="resnet18",
        created_by=f"inspectd {__version__}, random weights",
        classes=tuple(ClassSpec(name=name, role=_role(name)) for name in classes),
        preprocess=spec,
        files={},
    )
    network = build_network(manifest).eval()
    pictures = np.random.default_rng(seed).integers(0, 256, (16, size, size, 3), np.uint8)
    path.mkdir(parents=True, exist_ok=True)
    save_weights(network, path / WEIGHTS)
    export_openvino(network, manifest, path)
    if int8:
        export_int8(network, manifest, path, pictures)
    return write_manifest(path, manifest)


def _role(name: str) -> Role:
    return role_of(name)


def _convert(network: nn.Module, manifest: Manifest) -> Any:
    """The OpenVINO model of a network, batch dynamic, its output named `logits`."""
    ov = import_openvino()
    spec = manifest.preprocess
    example = torch.zeros(1, spec.height, spec.width, 3, dtype=torch.uint8)
    deployed = _Deployed(network, spec).eval()
    with torch.no_grad():
        model = ov.convert_model(deployed, example_input=example, input=[ov.PartialShape([-1, spec.height, spec.width, 3])])
    model.input().tensor.set_names({"pixels"})
    model.output().tensor.set_names({"logits"})
    return model


def _prepared(root: Path, copy: Copy) -> Path:
    """Where the copy's model goes; what lay in its directory is gone."""
    path = root / COPY_MODEL[copy]
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir(parents=True)
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tools' progress bars and advice off the console; errors still raise."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        try:
            yield
        finally:
            logger.setLevel(level)
