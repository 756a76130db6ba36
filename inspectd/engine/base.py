"""What every engine is: slots in, scores out, a few batches in flight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inspectd.frame import U8

Scores = npt.NDArray[np.float32]
"""What a network gives, [B, *manifest.output_shape]: logits [B, classes] or detections [B, max_detections, 6]."""
Logits = Scores  # [B, classes]


@dataclass(slots=True, eq=False)
class Slot:
    """One picture's place in the engine's input memory; exactly one owner at a time.

    The pool hands it to a producer, the producer to the queue, the queue to the engine, and the
    engine back to the pool once the device no longer reads it.
    """

    index: int
    pixels: U8  # [height, width, 3] RGB, C-contiguous, a view into the engine's memory


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What runs and why: for the log, `check --probe`, the build-info metric and the bench."""

    name: str  # "openvino", "cuda"
    device: str  # "cpu", "cuda:0"
    precision: str  # "f32", "bf16", "int8", "fp16"
    why: str  # one line for people


class Engine(ABC):
    """A model on a device. Owned and called by one thread (but `allocate`, called before that starts).

    Usage, always in this order: `allocate` once, `warm_up` once, then `submit` and `collect`, at most
    `depth` batches in flight, collected in the order of submission, then `close`.
    """

    info: EngineInfo
    max_batch_size: int
    depth: int
    """How many batches may be in flight: 2 keeps the device busy while results are handled."""

    @abstractmethod
    def allocate(self, count: int) -> U8:
        """Input memory for `count` slots: uint8 [count, height, width, 3], C-contiguous, zeroed."""

    @abstractmethod
    def warm_up(self) -> None:
        """Run every batch size that `submit` will use once, so that the first part is not late.

        Raises:
            FatalEngineError: the device cannot run the model.
        """

    @abstractmethod
    def submit(self, slots: Sequence[Slot], release: Callable[[Sequence[Slot]], None]) -> None:
        """Start one batch of 1 to `max_batch_size` slots and return at once.

        `release(slots)` is called exactly once per batch, from `submit` or `collect` of this thread,
        as soon as the device has read them, at the latest before `collect` returns or raises.

        Raises:
            FatalEngineError: the device is gone. Its slots are not released.
        """

    @abstractmethod
    def collect(self) -> Scores:
        """Wait for the oldest batch and return its scores, float32 [B, *manifest.output_shape], freshly allocated.

        Raises:
            EngineError: this batch failed; the engine goes on and later batches are not affected.
            FatalEngineError: the device is gone.
        """

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Batches submitted and not yet collected."""

    @abstractmethod
    def close(self) -> None:
        """Wait for what is in flight and free the device. May be called twice."""
