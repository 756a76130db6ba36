"""What is learned, as the training loop sees it: pictures, a loss, and a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Score:
    """How good a network is: `key` is compared from its first figure on, higher is better."""

    key: tuple[float, ...]
    columns: dict[str, float] = field(default_factory=dict)  # for the table of each epoch


class Task(ABC):
    """What is learned: which pictures, which loss, and how it is judged."""

    pictures: int
    """How many there are to train on."""

    def order(self, generator: torch.Generator) -> Tensor:
        """The pictures of one epoch, int64 [any], in the order in which they are seen."""
        return torch.randperm(self.pictures, generator=generator)

    @abstractmethod
    def batch(self, index: Tensor, generator: torch.Generator) -> Any:
        """These pictures, augmented by `generator` alone, on the device."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        """Scalar, float32, the mean over the batch's pictures. Called under autocast."""

    @abstractmethod
    def judge(self, network: nn.Module) -> Score:
        """Score the network, in eval mode, on validation. Called under autocast, without gradients."""

    @abstractmethod
    def plain_batches(self, size: int) -> Iterator[Tensor]:
        """All training pictures once, `size` at a time, not augmented, in a seeded order, on the device.

        What statistics are settled on: float32 [size, 3, H, W], normalised, channels last.
        """
