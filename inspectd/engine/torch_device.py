"""The real device behind `cuda.py`: torch, one GPU, two streams, a CUDA graph per bucket and lane."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from inspectd.config import EngineConfig
from inspectd.engine.base import EngineInfo, Logits
from inspectd.engine.cuda import LANES, CudaEngine, OutOfMemory, Stream
from inspectd.errors import BundleError, ConfigError, FatalEngineError
from inspectd.frame import U8
from inspectd.model.bundle import WEIGHTS, Bundle
from inspectd.model.manifest import Manifest
from inspectd.model.network import build_network, load_bundle_weights

P = ParamSpec("P")
R = TypeVar("R")

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
_WARM_UP_RUNS = 3  # cuDNN picks its algorithms on the first, and the allocator settles


def open_cuda_engine(bundle: Bundle, config: EngineConfig, index: int, why: str) -> CudaEngine:
    """The engine on GPU `index`, weights loaded.

    Raises:
        BundleError: no weights for torch, or those of another network.
        ConfigError: `engine.precision` cannot be had on CUDA.
        FatalEngineError: the GPU cannot be used, or has no memory for the network.
    """
    precision = "fp16" if config.precision == "auto" else config.precision
    if precision not in _DTYPES:
        raise ConfigError(f"engine.precision: {precision} is for the CPU; on CUDA use auto, fp16, bf16 or f32")
    network = load_network(bundle)
    name = f"cuda:{index}"
    try:
        device = TorchDevice(network, bundle.manifest, _DTYPES[precision], index, config.max_batch_size)
    except OutOfMemory as err:
        raise FatalEngineError(f"{name}: no memory for the network of {bundle.path.name}: {err}") from err
    return CudaEngine(device, EngineInfo("cuda", name, precision, f"{why}; {precision}"), config.max_batch_size)


def load_network(bundle: Bundle) -> nn.Module:
    """The bundle's network on the CPU, in float32, for inference, batch normalisation folded away.

    Raises:
        BundleError: the bundle has no `model.safetensors`, or it does not fit.
    """
    if WEIGHTS not in bundle.manifest.files:
        raise BundleError(f"{bundle.path}: has no {WEIGHTS}, which the CUDA engine needs; set engine.device to cpu")
    network = build_network(bundle.manifest)
    load_bundle_weights(network, bundle)
    network.eval().requires_grad_(requires_grad=False)
    fold_batch_norm(network)
    return network


def fold_batch_norm(module: nn.Module) -> None:
    """Put every batch normalisation that follows a convolution into that convolution's weights, in place.

    "Follows" by the order of registration, which in a ResNet is the order of execution.
    """
    children = list(module.named_children())
    for (name, first), (next_name, second) in pairwise(children):
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(first, second))
            setattr(module, next_name, nn.Identity())
    for _, child in children:
        fold_batch_norm(child)


def normalised(pixels: Tensor, mean: Tensor, inverse_std: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [B, H, W, 3] RGB -> dtype [B, 3, H, W], channels last in memory.

    `mean` and `inverse_std` are float32 [3] for pixels in 0..255; rounded to `dtype` once, at the end.
    """
    return ((pixels - mean) * inverse_std).to(dtype).permute(0, 3, 1, 2)


def _translated(
    method: Callable[Concatenate[TorchDevice, P], R],
) -> Callable[Concatenate[TorchDevice, P], R]:
    """Turn torch's errors into the device's: memory ran out, or else the device cannot be trusted any more."""

    def call(self: TorchDevice, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except RuntimeError as err:  # torch.AcceleratorError is one; cuDNN and cuBLAS raise plain ones
            if _is_out_of_memory(err):
                raise OutOfMemory(_first_line(err)) from err
            raise FatalEngineError(f"cuda:{self._index}: {_first_line(err)}") from err

    return call


class TorchDevice:
    """One GPU. See `cuda.Device` for what each method must do."""

    def __init__(
        self, network: nn.Module, manifest: Manifest, dtype: torch.dtype, index: int, max_batch_size: int
    ) -> None:
        self._index = index
        self._manifest = manifest
        self._dtype = dtype
        self._max_batch_size = max_batch_size
        self._open(network)

    @_translated
    def _open(self, network: nn.Module) -> None:
        spec, classes = self._manifest.preprocess, len(self._manifest.classes)
        device = self._device = torch.device("cuda", self._index)
        torch.backends.cudnn.benchmark = True  # few shapes, each run for months
        if self._dtype is torch.float32:
            torch.backends.cudnn.allow_tf32 = False  # f32 means f32
        self._network = network.to(device, self._dtype).to(memory_format=torch.channels_last)
        self._mean = torch.tensor(spec.mean, device=device) * 255
        self._inverse_std = (torch.tensor(spec.std, device=device) * 255).reciprocal()
        shape = (self._max_batch_size, spec.height, spec.width, 3)
        self._pixels = [torch.zeros(shape, dtype=torch.uint8, device=device) for _ in range(LANES)]
        self._rows = [list(pixels.unbind()) for pixels in self._pixels]
        self._logits = [torch.zeros(self._max_batch_size, classes, device=device) for _ in range(LANES)]
        self._results = [torch.zeros(self._max_batch_size, classes, pin_memory=True) for _ in range(LANES)]
        self._slots: list[Tensor] = []  # uint8 [height, width, 3] each, pinned
        self._streams = _take_streams(device)
        # All graphs run on one stream, one after the other, and leave nothing in the pool but scratch.
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        torch.cuda.synchronize(device)  # what was just written is there for every stream

    @_translated
    def allocate(self, count: int) -> U8:
        spec = self._manifest.preprocess
        memory = torch.zeros(count, spec.height, spec.width, 3, dtype=torch.uint8, pin_memory=True)
        self._slots = list(memory.unbind())
        view: U8 = memory.numpy()
        return view

    @_translated
    def prepare(self, bucket: int, lane: int) -> None:
        compute = self._streams["compute"]
        try:
            with torch.cuda.stream(compute):
                for _ in range(_WARM_UP_RUNS):
                    self._forward(bucket, lane)
            compute.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Thread-local: what other threads of the process do with CUDA is no business of this capture.
            with torch.cuda.graph(graph, pool=self._pool, stream=compute, capture_error_mode="thread_local"):
                self._forward(bucket, lane)
        except RuntimeError as err:
            if not _is_out_of_memory(err):
                raise
            for other in range(LANES):
                self._graphs.pop((bucket, other), None)
            torch.cuda.empty_cache()
            raise
        self._graphs[bucket, lane] = graph
        self.launch(bucket, lane)
        compute.synchronize()

    @_translated
    def copy_in(self, lane: int, slots: Sequence[int]) -> None:
        with torch.cuda.stream(self._streams["copy"]):
            for row, slot in zip(self._rows[lane], slots, strict=False):
                row.copy_(self._slots[slot], non_blocking=True)

    @_translated
    def launch(self, bucket: int, lane: int) -> None:
        with torch.cuda.stream(self._streams["compute"]):
            self._graphs[bucket, lane].replay()

    @_translated
    def copy_out(self, lane: int, first: int, count: int) -> None:
        with torch.cuda.stream(self._streams["compute"]):
            self._results[lane][first : first + count].copy_(self._logits[lane][:count], non_blocking=True)

    def results(self, lane: int) -> Logits:
        view: Logits = self._results[lane].numpy()
        return view

    @_translated
    def event(self) -> torch.cuda.Event:
        event: torch.cuda.Event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        return event  # blocking: the host sleeps in `synchronise` instead of spinning

    @_translated
    def record(self, event: torch.cuda.Event, stream: Stream) -> None:
        event.record(self._streams[stream])

    @_translated
    def wait(self, stream: Stream, event: torch.cuda.Event) -> None:
        self._streams[stream].wait_event(event)

    @_translated
    def synchronise(self, event: torch.cuda.Event) -> None:
        event.synchronize()

    @_translated
    def close(self) -> None:
        # At once, not when the garbage collector comes by: the next line-up needs the room.
        self._graphs.clear()
        for held in (self._pixels, self._rows, self._logits, self._results, self._slots):
            held.clear()
        self._network = nn.Identity()
        _idle_streams[self._device].append(self._streams)

    @torch.no_grad()
    def _forward(self, bucket: int, lane: int) -> None:
        pixels = self._pixels[lane][:bucket]  # uint8 [bucket, H, W, 3]
        inputs = normalised(pixels, self._mean, self._inverse_std, self._dtype)
        self._logits[lane][:bucket].copy_(self._network(inputs))


Streams = dict[Stream, torch.cuda.Stream]
_idle_streams: defaultdict[torch.device, deque[Streams]] = defaultdict(deque)
"""Those of closed engines. cuBLAS keeps a workspace (33 MiB on an H100) for every stream that it ever saw, for good:
with new streams at each change of recipe a GPU would fill up."""


def _take_streams(device: torch.device) -> Streams:
    try:
        return _idle_streams[device].pop()
    except IndexError:
        return {
            "copy": torch.cuda.Stream(device),  # type: ignore[no-untyped-call]
            "compute": torch.cuda.Stream(device),  # type: ignore[no-untyped-call]
        }


def _is_out_of_memory(err: RuntimeError) -> bool:
    text = str(err).lower()
    # A capture that ran out of memory ends with a second error, about the capture.
    by_type = isinstance(err, torch.OutOfMemoryError) or isinstance(err.__context__, torch.OutOfMemoryError)
    return by_type or "out of memory" in text or "alloc_failed" in text


def _first_line(err: BaseException) -> str:
    return next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)
