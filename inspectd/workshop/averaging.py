"""Weights averaged along the way of training: the ones that are judged and kept."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Averaged:
    """An exponential moving average of weights and statistics; young, it forgets faster."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(requires_grad=False)
        self.updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self.updates += 1
        decay = min(self._decay, self.updates / (10 + self.updates))
        own, new = state_of(self.network), state_of(network)
        floats = [name for name, tensor in own.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([own[n] for n in floats], [new[n] for n in floats], 1 - decay)
        for name in own.keys() - set(floats):
            own[name].copy_(new[name])


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, as they are, no copies."""
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}
