"""Layer groups, what steps them, and the schedule of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inspectd.workshop.options import TrainOptions

LAYER_GROUPS = ("head", "layer4", "layer3", "layer2", "layer1", "stem")
"""From the output to the input. Whatever is no part of the ResNet's body belongs to the head."""

_WARM_UP = 0.15  # share of the schedule in which the learning rate rises
_WEIGHT_DECAY = 0.05
_SGD_MOMENTUM, _SGD_WEIGHT_DECAY = 0.9, 5e-4

# Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers"): its step has the size of the learning rate
# whatever the gradient's, so the rate is stated relative to AdamW's. Three Newton-Schulz rounds instead of five
# and no bank with more weights per filter than this: on a CPU the rest of its cost buys nothing.
_MUON_RATE = 20.0
_MUON_ROUNDS = 3
_MUON_MOMENTUM = 0.9
_MUON_MOST_WEIGHTS = 2304


def group_of(parameter_name: str) -> str:
    """The layer group of a parameter or module, by its path: `layer3.0.conv1.weight` is in layer3."""
    for part in parameter_name.split("."):
        if part in LAYER_GROUPS:
            return part
        if part in ("conv1", "bn1"):
            return "stem"
    return "head"


def schedule(done: float) -> float:
    """Learning rate factor, `done` in 0..1: linear warm-up, then half a cosine down to a hundredth."""
    if done < _WARM_UP:
        return max(0.02, done / _WARM_UP)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))


def open_groups(done: float, stages: str) -> tuple[str, ...]:
    """The layer groups that learn when `done` (0..1) of the schedule is over."""
    if stages != "progressive":
        return LAYER_GROUPS
    # A tenth each for the head with layer4, and with layer3; then everything.
    return LAYER_GROUPS[: 2 if done < 0.1 else 3 if done < 0.2 else len(LAYER_GROUPS)]


@dataclass(slots=True)
class _Bank:
    """A bank of filters as the matrix [filters, weights] that Muon steps; both share their memory."""

    filters: nn.Parameter  # [out, in, height, width], channels last
    matrix: nn.Parameter  # [out, height * width * in]

    @classmethod
    def of(cls, filters: nn.Parameter) -> _Bank:
        matrix = nn.Parameter(_as_matrix(filters.detach()))
        assert matrix.data_ptr() == filters.data_ptr(), "filters are channels last"
        return cls(filters, matrix)


class Optimiser:
    """One or two of torch's optimisers behind one face, with a learning rate for each layer group.

    Build it after the network is on its device and channels last, and let nothing replace its parameters.
    """

    def __init__(self, network: nn.Module, options: TrainOptions) -> None:
        decay = 1.0 if options.from_scratch else options.layer_decay
        self._peak = options.peak_rate
        self._banks: list[_Bank] = []
        muon = options.optimiser_plan == "muon"
        plain: list[dict[str, Any]] = []
        banks: list[dict[str, Any]] = []
        for depth, group in enumerate(LAYER_GROUPS):
            factor = decay**depth
            parameters = [p for name, p in network.named_parameters() if group_of(name) == group]
            as_banks = [p for p in parameters if muon and group != "stem" and _is_bank(p)]
            taken = {id(p) for p in as_banks}
            rest = [p for p in parameters if id(p) not in taken]
            made = [_Bank.of(p) for p in as_banks]
            self._banks += made
            banks.append({"params": [bank.matrix for bank in made], "factor": factor * _MUON_RATE})
            # Weight decay for matrices and filters, none for biases and norms.
            matrices, others = [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim <= 1]
            plain.append({"params": matrices, "factor": factor})
            plain.append({"params": others, "factor": factor, "weight_decay": 0.0})
        self._optimisers = [_plain_optimiser([g for g in plain if g["params"]], options)]
        if banks := [group for group in banks if group["params"]]:
            self._optimisers.append(
                torch.optim.Muon(
                    banks,
                    lr=self._peak,
                    weight_decay=_WEIGHT_DECAY,
                    momentum=_MUON_MOMENTUM,
                    ns_steps=_MUON_ROUNDS,
                )
            )

    def set_rate(self, factor: float) -> float:
        """Set every group's learning rate for `factor` (0..1) of the peak; returns the head's."""
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self._peak * factor * group["factor"]
        return self._peak * factor

    def zero_grad(self) -> None:
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        for bank in self._banks:
            bank.filters.grad = None

    def step(self, scaler: torch.amp.GradScaler) -> None:
        """One step from the gradients that are there; frozen parameters have none and stay."""
        for bank in self._banks:
            gradient = bank.filters.grad
            bank.matrix.grad = None if gradient is None else _as_matrix(gradient)
        for optimiser in self._optimisers:
            if any(p.grad is not None for group in optimiser.param_groups for p in group["params"]):
                scaler.step(optimiser)
        scaler.update()

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by a stable name."""
        return {name: holder[key] for name, holder, key in self._places() if isinstance(holder[key], Tensor)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue where `state` was taken."""
        for index, optimiser in enumerate(self._optimisers):
            for number, parameter in enumerate(p for group in optimiser.param_groups for p in group["params"]):
                prefix = f"{index}/{number}/"
                for name, tensor in state.items():
                    if name.startswith(prefix):
                        # In the parameter's own memory layout: fused steps walk through both side by side.
                        like = torch.empty_like(parameter, dtype=tensor.dtype) if tensor.ndim else tensor.clone()
                        optimiser.state[parameter][name.removeprefix(prefix)] = like.copy_(tensor)

    def _places(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        for index, optimiser in enumerate(self._optimisers):
            for number, parameter in enumerate(p for group in optimiser.param_groups for p in group["params"]):
                holder = optimiser.state.get(parameter, {})
                for key in holder:
                    yield f"{index}/{number}/{key}", holder, key


def _plain_optimiser(groups: list[dict[str, Any]], options: TrainOptions) -> torch.optim.Optimizer:
    if options.optimiser_plan == "sgd":
        for group in groups:
            group.setdefault("weight_decay", _SGD_WEIGHT_DECAY)
        return torch.optim.SGD(groups, lr=options.peak_rate, momentum=_SGD_MOMENTUM, nesterov=True)
    for group in groups:
        group.setdefault("weight_decay", _WEIGHT_DECAY)
    return torch.optim.AdamW(groups, lr=options.peak_rate, fused=True)


def _is_bank(parameter: nn.Parameter) -> bool:
    return parameter.ndim == 4 and parameter[0].numel() <= _MUON_MOST_WEIGHTS


def _as_matrix(filters: Tensor) -> Tensor:
    """[out, in, height, width] -> [out, height * width * in]; a view where the memory is channels last."""
    return filters.permute(0, 2, 3, 1).reshape(len(filters), -1)
