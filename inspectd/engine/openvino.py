"""The CPU engine: OpenVINO, one asynchronous request per slot, reading the slot where it lies.

The model is compiled for a single picture and for several at a time (`_streams`). A batch is as many
requests; each reads its slot's memory without a copy, and writes its own row of the scores. On two cores
this beats a batched model in speed, in memory and in CPU time (no barrier between threads at every
layer, which costs most while decoding shares the cores), and needs neither padding nor gathering.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inspectd.config import EngineConfig
from inspectd.engine.base import Engine, EngineInfo, Scores, Slot
from inspectd.errors import BundleError, ConfigError, EngineError, FatalEngineError
from inspectd.frame import U8
from inspectd.model.bundle import Bundle
from inspectd.model.manifest import COPY_MODEL, Copy
from inspectd.model.runtime import import_openvino, openvino_core

_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Precision:
    """Which copy of the model runs, and how: `hint` is OpenVINO's name for the type of what is not quantised."""

    copy: Copy
    hint: str  # "bf16", "f32"
    name: str  # for EngineInfo
    why: str


@dataclass(slots=True)
class _Batch:
    slots: Sequence[Slot]
    release: Callable[[Sequence[Slot]], None]
    started: int = 0  # how many of the slots have a running request
    failure: RuntimeError | None = None


class OpenVinoEngine(Engine):
    """A bundle's network on the CPU. The constructor reads and compiles the model (about 0.1 s).

    Raises:
        BundleError: the bundle lacks the copy that is needed, or the copy is not what the manifest says.
        ConfigError: `engine.precision` cannot be had on this processor.
    """

    depth = 2

    def __init__(self, bundle: Bundle, config: EngineConfig, why: str) -> None:
        self._ov = import_openvino()
        core = openvino_core()
        precision = choose_precision(config, bundle, *_processor(core))
        model = _read_model(self._ov, core, bundle, precision.copy)
        threads = config.threads or len(os.sched_getaffinity(0))
        streams = _streams(threads)
        settings = {
            "INFERENCE_PRECISION_HINT": precision.hint,
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,  # decoding runs on the same cores
        }
        if config.threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as err:
            raise BundleError(f"{bundle.copy_path(precision.copy)}: OpenVINO refuses it: {_first_line(err)}") from err
        self.info = EngineInfo("openvino", "cpu", precision.name, f"{why}; {precision.why}; {streams} at a time")
        # Two for each stream keep it busy; more would only make the first wait for the last.
        self.max_batch_size = min(config.max_batch_size, 2 * streams)
        self._shape = (bundle.manifest.preprocess.height, bundle.manifest.preprocess.width, 3)
        self._output_shape = bundle.manifest.output_shape
        self._streams = streams
        self._memory = _zeroed((0, *self._shape))
        self._scores = np.zeros((0, *self._output_shape), np.float32)  # a row per slot, written by the requests
        self._requests: list[Any] = []  # by slot index, bound for good to its slot and its row of scores
        self._batches: deque[_Batch] = deque()

    def allocate(self, count: int) -> U8:
        assert not self._requests, "allocate is called once"
        self._memory = _zeroed((count, *self._shape))
        self._scores = np.full((count, *self._output_shape), np.nan, np.float32)
        for index in range(count):
            request = self._compiled.create_infer_request()
            request.set_input_tensor(self._ov.Tensor(self._memory[index : index + 1], shared_memory=True))
            request.set_output_tensor(self._ov.Tensor(self._scores[index : index + 1], shared_memory=True))
            self._requests.append(request)
        return self._memory

    def warm_up(self) -> None:
        # Several per stream, so that each stream gets at least one and builds its kernels.
        requests = self._requests[: 4 * self._streams]
        try:
            for request in requests:
                request.start_async()
            for request in requests:
                request.wait()
        except RuntimeError as err:
            raise FatalEngineError(f"OpenVINO cannot run the model: {_first_line(err)}") from err

    def submit(self, slots: Sequence[Slot], release: Callable[[Sequence[Slot]], None]) -> None:
        assert 1 <= len(slots) <= self.max_batch_size
        assert len(self._batches) < self.depth
        batch = _Batch(slots, release)
        self._batches.append(batch)
        # Whatever happens now, an earlier picture's scores cannot be taken for these.
        self._scores[[slot.index for slot in slots]] = np.nan
        try:
            for slot in slots:
                self._requests[slot.index].start_async()
                batch.started += 1
        except RuntimeError as err:
            batch.failure = err

    def collect(self) -> Scores:
        batch = self._batches.popleft()
        self._wait(batch)
        scores = self._scores[[slot.index for slot in batch.slots]]  # float32 [B, *output_shape], a copy
        batch.release(batch.slots)
        if batch.failure is not None:
            raise EngineError(f"OpenVINO: {_first_line(batch.failure)}") from batch.failure
        return scores

    @property
    def in_flight(self) -> int:
        return len(self._batches)

    def close(self) -> None:
        while self._batches:
            self._wait(self._batches.popleft())
        self._requests.clear()
        self._compiled = None

    def _wait(self, batch: _Batch) -> None:
        """Wait, without the GIL, for every request: after a failure the others still read their slots."""
        for slot in batch.slots[: batch.started]:
            try:
                self._requests[slot.index].wait()
            except RuntimeError as err:
                batch.failure = batch.failure or err


def choose_precision(config: EngineConfig, bundle: Bundle, capabilities: Sequence[str], native: str) -> Precision:
    """What to run, from what the user asks, the bundle carries and the processor can.

    `capabilities` are OpenVINO's OPTIMIZATION_CAPABILITIES, `native` the type that it would choose itself.

    Raises:
        ConfigError: the processor cannot do what was asked, or the bundle must not.
    """

    def rest(copy: Copy) -> tuple[str, str]:
        """What is not quantised runs in, and why."""
        if copy in bundle.manifest.float32:
            return "f32", "bf16 has not passed the bundle's gate"
        return ("bf16", "processor has bf16") if native == "bf16" else ("f32", "processor has no fast bf16")

    match config.precision:
        case "auto" if "openvino-int8" in bundle.copies:
            hint, _ = rest("openvino-int8")
            return Precision("openvino-int8", hint, "int8", f"bundle carries INT8, rest in {hint}")
        case "auto":
            hint, has = rest("openvino")
            return Precision("openvino", hint, hint, f"bundle carries no INT8, {has}")
        case "int8":
            hint, _ = rest("openvino-int8")
            return Precision("openvino-int8", hint, "int8", f"engine.precision = int8, rest in {hint}")
        case "bf16" if "openvino" in bundle.manifest.float32:
            raise ConfigError("engine.precision: bf16: did not pass this bundle's gate; use auto, int8 or f32")
        case "bf16" if "BF16" not in capabilities:
            raise ConfigError("engine.precision: bf16: this processor has no bf16; use auto, int8 or f32")
        case "bf16" | "f32":
            return Precision("openvino", config.precision, config.precision, f"engine.precision = {config.precision}")
        case "fp16":
            raise ConfigError("engine.precision: fp16 is for CUDA; on the CPU use auto, int8, bf16 or f32")


def _processor(core: Any) -> tuple[list[str], str]:
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    native = core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    return capabilities, native


def _streams(threads: int) -> int:
    """How many pictures are inferred at a time.

    Two at least, because one picture cannot keep two threads busy; up to four threads for each, because
    more bring little for one ResNet18, while fewer would make a lone picture late.
    """
    return min(threads, max(2, threads // 4))


def _read_model(ov: Any, core: Any, bundle: Bundle, copy: Copy) -> Any:
    """The copy, reshaped to one picture and checked against the manifest.

    Raises:
        BundleError: not readable, or not uint8 [?, height, width, 3] in and float32 [?, *output_shape] out.
    """
    path, manifest = bundle.copy_path(copy), bundle.manifest
    network, weights = bundle.read(COPY_MODEL[copy]), bundle.read(f"{copy}/model.bin")
    want_in = [1, manifest.preprocess.height, manifest.preprocess.width, 3]
    want_out = [1, *manifest.output_shape]
    try:
        model = core.read_model(network, weights)
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise BundleError(f"{path}: has {len(model.inputs)} inputs and {len(model.outputs)} outputs, not one each")
        if model.input().element_type != ov.Type.u8 or not model.input().partial_shape.compatible(
            ov.PartialShape(want_in)
        ):
            given = f"{model.input().element_type.get_type_name()} {model.input().partial_shape}"
            raise BundleError(f"{path}: takes {given}, but bundle.json says u8 [?,{','.join(map(str, want_in[1:]))}]")
        model.reshape(want_in)
    except RuntimeError as err:
        raise BundleError(f"{path}: is no usable OpenVINO model: {_first_line(err)}") from err
    output = model.output()
    if output.element_type != ov.Type.f32 or output.partial_shape != ov.PartialShape(want_out):
        given = f"{output.element_type.get_type_name()} {output.partial_shape}"
        lists = f"{want_out[1]} classes" if manifest.task == "classify" else f"{want_out[1]} detections of 6 values"
        raise BundleError(f"{path}: gives {given}, but bundle.json lists {lists}: f32 {want_out}")
    return model


def _zeroed(shape: tuple[int, int, int, int]) -> U8:
    """Zeroed memory that starts at a page, so that every reader finds it aligned."""
    size = int(np.prod(shape))
    raw = np.zeros(size + _PAGE, np.uint8)
    start = -raw.ctypes.data % _PAGE
    return raw[start : start + size].reshape(shape)


def _first_line(err: BaseException) -> str:
    """The last line of OpenVINO's message is what went wrong; those before it are places in its source."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[-1] if lines else type(err).__name__
