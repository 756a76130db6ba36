"""Several processes that train one network together, started by `torchrun`; mostly there is only one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from inspectd.errors import UsageError

_TIMEOUT = timedelta(minutes=30)  # one process judges, reads or exports while the others wait


@dataclass(frozen=True, slots=True)
class World:
    """This process among those that train together. Process 0 judges, writes and speaks."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        return self.rank == 0

    def device(self, wanted: str) -> torch.device:
        """The device of this process.

        Raises:
            UsageError: a GPU is asked for, and there is none.
        """
        available = torch.cuda.is_available()
        if wanted == "cuda" and not available:
            raise UsageError("train: --device cuda: torch finds no usable GPU; use auto or cpu")
        if wanted == "cpu" or not available:
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network with its gradients averaged over all processes."""
        if self.size == 1:
            return network
        ids = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=ids)

    def agreed(self, value: float) -> float:
        """Process 0's value, for everyone."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, src=0)
        return float(shared)

    def shared(self, text: str, tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
        """Process 0's text and tensors, for everyone, on the CPU."""
        if self.size == 1:
            return text, tensors
        shapes = {
            name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for name, tensor in tensors.items()
        }
        header = json.dumps([text, shapes]).encode()
        length = int(self.agreed(float(len(header))))
        raw = torch.frombuffer(bytearray(header if self.main else length), dtype=torch.uint8)
        dist.broadcast(raw, src=0)
        text, shapes = json.loads(bytes(raw.numpy()))
        received = {}
        for name, (shape, dtype) in shapes.items():
            given = tensors[name].contiguous() if self.main else torch.empty(shape, dtype=getattr(torch, dtype))
            dist.broadcast(given, src=0)
            received[name] = given
        return text, received


@contextmanager
def joined_world() -> Iterator[World]:
    """Join the processes that `torchrun` started with this one; alone without it.

    Gloo carries what is not on a GPU, NCCL the gradients that are.

    Raises:
        UsageError: the other processes cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as err:
        raise UsageError(f"train: cannot join the other processes: {' '.join(str(err).split())[:200]}") from err
    try:
        yield World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()
