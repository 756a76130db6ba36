"""Which engine runs: what is asked for, what the machine has, what the bundle carries."""

from __future__ import annotations

from pathlib import Path

from inspectd.config import EngineConfig
from inspectd.engine.base import Engine
from inspectd.errors import ConfigError
from inspectd.model.bundle import Bundle

_NVIDIA_SIGNS = (
    Path("/dev/nvidiactl"),
    Path("/proc/driver/nvidia/version"),
    Path("/dev/nvmap"),  # Jetson
    Path("/dev/dxg"),  # WSL
)
"""torch costs seconds and half a gigabyte to import, so it is asked only where one of these exists."""


def make_engine(bundle: Bundle, config: EngineConfig) -> Engine:
    """The engine for this configuration, model loaded; `info.why` says in one line how it was chosen.

    Raises:
        ConfigError: `engine.device` or `engine.precision` asks for what this machine has not, or the bundle cannot.
        BundleError: the bundle lacks the copy of the model that is needed, or it does not fit.
        FatalEngineError: the GPU is there and cannot be used.
    """
    if config.device == "cpu":
        return _openvino(bundle, config, "engine.device = cpu")
    if bundle.manifest.task == "detect":
        # How many boxes there are depends on the picture, and a CUDA graph is of one shape for good.
        if config.device != "auto":
            raise ConfigError(
                f"engine.device: {config.device}: {bundle.path.name} is a detector, which runs on the CPU only; "
                "use auto or cpu"
            )
        return _openvino(bundle, config, "auto: a detector runs on the CPU")
    if config.device == "auto":
        if config.precision == "int8":
            return _openvino(bundle, config, "auto: int8 runs on the CPU")
        if (problem := _cuda_problem(index=0)) is not None:
            return _openvino(bundle, config, f"auto: {problem}")
        return _cuda(bundle, config, 0, "auto: a GPU is there")
    check_device(config)
    return _cuda(bundle, config, _index(config.device), f"engine.device = {config.device}")


def check_device(config: EngineConfig) -> None:
    """See whether the GPU is there that is asked for by name.

    Raises:
        ConfigError: it is not, or cannot be used.
    """
    if config.device.startswith("cuda") and (problem := _cuda_problem(_index(config.device))) is not None:
        raise ConfigError(f"engine.device: {config.device}: {problem}; use auto or cpu")


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def _cuda_problem(index: int) -> str | None:
    """Why GPU `index` cannot be used, or None. Imports torch only where there is a sign of a GPU."""
    if not any(sign.exists() for sign in _NVIDIA_SIGNS):
        return "this machine has no NVIDIA driver"
    try:
        import torch
    except ImportError:
        return "torch is not installed (pip install inspectd[cuda]; install.sh --with torch,torchvision)"
    if torch.version.cuda is None:
        return "the installed torch is built without CUDA (pip install inspectd[cuda])"
    if not torch.cuda.is_available():
        return "torch finds no usable GPU"
    if index >= torch.cuda.device_count():
        return f"this machine has {torch.cuda.device_count()} GPU(s), counted from cuda:0"
    return None


def _openvino(bundle: Bundle, config: EngineConfig, why: str) -> Engine:
    from inspectd.engine.openvino import OpenVinoEngine

    return OpenVinoEngine(bundle, config, why)


def _cuda(bundle: Bundle, config: EngineConfig, index: int, why: str) -> Engine:
    from inspectd.engine.torch_device import open_cuda_engine

    return open_cuda_engine(bundle, config, index, why)
