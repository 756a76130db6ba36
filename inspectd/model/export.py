"""Deployable copies: the trained network as OpenVINO models that take uint8 pictures as they are.

Input `pixels`, uint8 [batch, height, width, 3] RGB, the batch free; output `logits`, float32
[batch, classes]. The normalisation of the bundle's preprocess spec is part of the model.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inspectd.errors import DataError
from inspectd.frame import U8
from inspectd.model.bundle import FORMAT_VERSION, WEIGHTS, Bundle, write_manifest
from inspectd.model.data import role_of
from inspectd.model.manifest import COPY_MODEL, ClassSpec, Manifest
from inspectd.model.network import build_network, save_weights
from inspectd.model.preprocess import PreprocessSpec
from inspectd.model.runtime import import_openvino, openvino_core

Logits = npt.NDArray[np.float32]  # [N, classes]

_BATCH = 32  # pictures at once where nothing else is asked for


def normalise(pixels: Tensor, spec: PreprocessSpec) -> Tensor:
    """uint8 RGB [B, H, W, 3] -> float32 [B, 3, H, W], channels last in memory, as the network takes it."""
    mean = torch.tensor(spec.mean).view(1, 3, 1, 1) * 255
    scale = 1 / (torch.tensor(spec.std).view(1, 3, 1, 1) * 255)
    return (pixels.permute(0, 3, 1, 2).float() - mean) * scale


@torch.no_grad()
def eager_logits(network: nn.Module, pixels: U8, spec: PreprocessSpec) -> Logits:
    """What torch says in float32: uint8 [N, H, W, 3] -> float32 [N, classes]. The measure of every copy."""
    network.eval()
    parts = [network(normalise(torch.from_numpy(chunk), spec)).float().numpy() for chunk in _chunks(pixels)]
    return np.concatenate(parts)


def openvino_logits(model: Path, pixels: U8, precision: str | None = None) -> Logits:
    """What an OpenVINO copy says: uint8 [N, H, W, 3] -> float32 [N, classes].

    `precision`: "f32" or "bf16" for what is not quantised; None is the runtime's choice, as on the line.
    """
    hint = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    compiled = openvino_core().compile_model(model, "CPU", hint)
    return np.concatenate([compiled(chunk)[0].copy() for chunk in _chunks(pixels)])


def native_bf16() -> bool:
    """Whether bf16 is what the runtime chooses on this processor."""
    native: str = openvino_core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    return native == "bf16"


def export_openvino(network: nn.Module, manifest: Manifest, target_dir: Path) -> Path:
    """Write `target_dir/openvino/`, weights compressed to 16 bits, and return the path of its model."""
    path = target_dir / COPY_MODEL["openvino"]
    path.parent.mkdir(parents=True, exist_ok=True)
    import_openvino().save_model(_convert(network, manifest), path, compress_to_fp16=True)
    return path


Int8Recipe = Literal["fast", "careful"]
INT8_RECIPES: tuple[Int8Recipe, ...] = ("fast", "careful")
"""`careful` corrects each layer's bias by running the layers before it quantised (minutes instead of seconds),
and leaves the first convolution and the head as they are."""


def export_int8(
    network: nn.Module, manifest: Manifest, target_dir: Path, calibration: U8, recipe: Int8Recipe = "fast"
) -> Path:
    """Write `target_dir/openvino-int8/`, quantised by NNCF after training; returns the path of its model.

    `calibration`: uint8 [N, height, width, 3], some 100 to 300 pictures that were trained on, in no
    particular order. They set the range of each layer's activations.
    """
    ov = import_openvino()
    with quiet_nncf() as nncf:
        model = _convert(network, manifest)
        careful = recipe == "careful"
        quantised = nncf.quantize(
            model,
            nncf.Dataset([calibration[i : i + 1] for i in range(len(calibration))]),
            # Symmetric weights, asymmetric activations: costs nothing after a ReLU and keeps what is below zero.
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
            fast_bias_correction=not careful,
            ignored_scope=nncf.IgnoredScope(names=_ends(model)) if careful else None,
            advanced_parameters=int8_parameters(),
        )
    path = target_dir / COPY_MODEL["openvino-int8"]
    path.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(quantised, path, compress_to_fp16=True)
    return path


def export_onnx(network: nn.Module, manifest: Manifest, target_dir: Path) -> Path:
    """Write `target_dir/onnx/`, float32, uint8 NHWC in like the others; returns the path of its model."""
    path = target_dir / COPY_MODEL["onnx"]
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = manifest.preprocess
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format).float().eval()
    example = torch.zeros(2, spec.height, spec.width, 3, dtype=torch.uint8)
    with quiet("torch.onnx", "onnxscript", "onnx_ir"):
        program = torch.onnx.export(
            _FromPixels(plain, spec).eval(),
            (example,),
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.save(path)
    return path


class _FromPixels(nn.Module):
    """The network behind its normalisation: uint8 [B, H, W, 3] -> float32 [B, classes]."""

    def __init__(self, network: nn.Module, spec: PreprocessSpec) -> None:
        super().__init__()
        self._network, self._spec = network, spec

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self._network(normalise(pixels, self._spec))
        return logits


def random_bundle(
    path: Path,
    classes: Sequence[str] = ("good", "scratch", "dent", "stain", "empty"),
    size: int = 224,
    *,
    int8: bool = True,
    seed: int = 0,
) -> Bundle:
    """A bundle that has learned nothing, for measuring: seeded random weights, live activations everywhere.

    Raises:
        DataError: there is something at `path` already.
    """
    if path.exists():
        raise DataError(f"{path}: exists already; a random bundle replaces nothing")
    spec = PreprocessSpec(width=size, height=size)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        architecture="resnet18",
        created_by="random weights, for measuring only",
        classes=tuple(ClassSpec(name=name, role=role_of(name)) for name in classes),
        preprocess=spec,
        files={},
    )
    noise = np.random.default_rng(seed).integers(0, 256, (16, size, size, 3), np.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(manifest)
    settle_batch_norm(network, [normalise(torch.from_numpy(noise), spec)])
    path.mkdir(parents=True)
    save_weights(network, path / WEIGHTS)
    export_openvino(network, manifest, path)
    if int8:
        export_int8(network, manifest, path, noise)
    return write_manifest(path, manifest)


@torch.no_grad()
def settle_batch_norm(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of every BatchNorm to the plain average over these batches.

    The moving average of training lags behind weights that changed quickly; this one does not. Leaves
    the network in eval mode.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a cumulative average
    network.train()
    for batch in batches:
        network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def _convert(network: nn.Module, manifest: Manifest) -> Any:
    """The network as an OpenVINO model, uint8 NHWC in, the batch free."""
    ov = import_openvino()
    spec = manifest.preprocess
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format).float().eval()
    example = torch.zeros(2, 3, spec.height, spec.width)
    with quiet("openvino"):
        model = ov.convert_model(plain, example_input=example, input=[-1, 3, spec.height, spec.width])
    steps = ov.preprocess.PrePostProcessor(model)
    pixels = steps.input(0)
    pixels.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    pixels.preprocess().convert_element_type(ov.Type.f32)
    pixels.preprocess().mean([255 * value for value in spec.mean]).scale([255 * value for value in spec.std])
    pixels.model().set_layout(ov.Layout("NCHW"))
    steps.output(0).tensor().set_element_type(ov.Type.f32)
    model = steps.build()
    model.input(0).get_tensor().set_names({"pixels"})
    model.output(0).get_tensor().set_names({"logits"})
    return model


def _ends(model: Any) -> list[str]:
    """The first convolution and the last matrix product, by their names in the OpenVINO model."""
    convolutions = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"]
    products = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() == "MatMul"]
    return convolutions[:1] + products[-1:]


def _chunks(pixels: U8) -> Iterator[U8]:
    for start in range(0, len(pixels), _BATCH):
        yield pixels[start : start + _BATCH]


def int8_parameters() -> Any:
    """How every INT8 copy is quantised.

    Activation ranges go from the least to the largest value that calibration shows. By default the extremes are
    averaged over the pictures. But rare and strong is what a defect looks like to a network: clipped, it fades.
    (Generated parts: agreement with eager 0.90, so 0.99.)

    Weights keep to half of their range. A processor without VNNI adds products in pairs of 16 bits; with 2 * 255 * 64
    none is cut off, so it judges to the bit as the one that the copy was gated on. (Else the strongest answers fade
    there, unseen by any gate. Source: OpenVINO, saturation issue of 8-bit instructions before VNNI.)
    """
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX, overflow_fix=nncf.OverflowFix.ENABLE
    )


@contextmanager
def quiet_nncf() -> Iterator[Any]:
    """nncf without progress bars, log lines and (import_openvino sees to that) telemetry."""
    import_openvino()
    with quiet("nncf", "torch.utils.cpp_extension"):
        import nncf
        from nncf.common.logging.track_progress import track

        nncf.set_log_level(logging.ERROR)
        shown = track.__init__
        track.__init__ = partialmethod(shown, disable=True)  # it draws over whatever progress we show; no setting
        try:
            yield nncf
        finally:
            track.__init__ = shown


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Only errors of these loggers, and no warnings: torch.jit.trace is deprecated, but OpenVINO's own way."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
