"""The network in torch: built plain, filled from safetensors, never from a pickle.

Built as torchvision builds it (`conv1, bn1, layer1..4, fc`), so that weights from anywhere fit and the
CUDA engine can fold what it likes. torch is imported with this module, and by no other on the CPU path.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18

from inspectd.errors import BundleError, DataError
from inspectd.model.bundle import WEIGHTS, Bundle
from inspectd.model.manifest import Manifest

StartWeights = Literal["imagenet", "none"] | Path
"""Where training starts: torchvision's ImageNet weights, random ones, or a file."""

_HEAD = ("fc.weight", "fc.bias")
_DOWNLOAD_TIMEOUT_S = 30.0


def build_resnet18(num_classes: int) -> nn.Module:
    """ResNet18 with random weights from torch's global generator: [B, 3, H, W] -> logits [B, num_classes]."""
    network: nn.Module = resnet18(weights=None, num_classes=num_classes)
    return network


def build_network(manifest: Manifest) -> nn.Module:
    """The bundle's network, weights not loaded: normalised float [B, 3, H, W] -> logits [B, classes]."""
    return build_resnet18(len(manifest.classes))


def save_weights(module: nn.Module, path: Path) -> None:
    """Write parameters and buffers as safetensors, float32 and contiguous whatever the module uses."""
    save_file({name: _plain(tensor) for name, tensor in module.state_dict().items()}, path)
    path.chmod(0o644)  # safetensors writes 0600; the daemon runs as another user than the one who trains


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill the module from a bundle's safetensors file; every tensor must be there and fit.

    Raises:
        BundleError: no safetensors file, or the weights of another network.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as err:
        raise BundleError(f"{path}: is no readable safetensors file: {_one_line(err)}") from err
    _fill(module, state, path)


def load_bundle_weights(module: nn.Module, bundle: Bundle) -> None:
    """The same of a bundle that goes to work: the weights are those that were hashed.

    Raises:
        BundleError: as above, or the file is not what the manifest says any more.
    """
    path, content = bundle.path / WEIGHTS, bundle.read(WEIGHTS)
    try:
        state = load(content)
    except SafetensorError as err:
        raise BundleError(f"{path}: is no readable safetensors file: {_one_line(err)}") from err
    _fill(module, state, path)


def _fill(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    if problem := _mismatch(module.state_dict(), state):
        raise BundleError(f"{path}: does not fit the network that the bundle describes: {problem}")
    module.load_state_dict(state, strict=True)


def load_initial_weights(module: nn.Module, weights: StartWeights) -> None:
    """Fill the module with what training starts from. A head of another size keeps its random weights.

    Raises:
        DataError: the download failed, or the file is missing, unsafe, or of another network.
    """
    if weights == "none":
        return
    if isinstance(weights, Path):
        state, origin = _read_state(weights), str(weights)
    else:
        state, origin = _download_imagenet(), "ImageNet weights"
    own = module.state_dict()
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    for name in _HEAD:
        if name not in state or state[name].shape != own[name].shape:
            state = {**state, **{head: own[head] for head in _HEAD}}
            break
    # Checkpoints from before torch 0.4.1 lack these counters; the network does not use them.
    state = {**{k: v for k, v in own.items() if k.endswith("num_batches_tracked")}, **state}
    if problem := _mismatch(own, state):
        raise DataError(f"{origin}: not the weights of a ResNet18: {problem}")
    module.load_state_dict(state, strict=True)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        raise DataError(
            f"{path}: is no checkpoint of plain tensors, and nothing else is unpickled; "
            "save its state_dict as safetensors"
        ) from err
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as err:
        raise DataError(f"{path}: is no readable weights file: {_one_line(err)}") from err
    return _tensors(path, loaded)


def _tensors(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The state dict in a checkpoint, which may stand under the usual names."""
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise DataError(f"{path}: holds no state_dict (tensors by name)")
    return {str(name): tensor for name, tensor in loaded.items()}


def _download_imagenet() -> dict[str, Tensor]:
    weights = ResNet18_Weights.IMAGENET1K_V1
    try:
        with _socket_timeout(_DOWNLOAD_TIMEOUT_S):
            state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as err:  # URLError and timeouts are OSErrors
        raise DataError(
            f"ImageNet weights: cannot be downloaded from {weights.url}: {_one_line(err)}; "
            "fetch that file elsewhere and give it with --weights FILE, or train with --weights none"
        ) from err
    return state


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torch.hub downloads without a timeout: a firewall that drops packets would hang us for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _mismatch(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """The first reason why `given` cannot fill `own`, or None."""
    if missing := sorted(set(own) - set(given)):
        return f"{missing[0]} is missing" + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
    if extra := sorted(set(given) - set(own)):
        return f"{extra[0]} is unknown" + (f" (and {len(extra) - 1} more)" if len(extra) > 1 else "")
    for name, tensor in own.items():
        if given[name].shape != tensor.shape:
            return f"{name} is {list(given[name].shape)}, expected {list(tensor.shape)}"
        if given[name].is_floating_point() != tensor.is_floating_point():
            return f"{name} is {_kind(given[name])}, expected {_kind(tensor)}"
        if tensor.is_floating_point() and not bool(torch.isfinite(given[name]).all()):
            return f"{name} holds values that are no finite numbers"
    return None


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _plain(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()


def _one_line(err: BaseException) -> str:
    return " ".join(str(err).split())[:200] or type(err).__name__
