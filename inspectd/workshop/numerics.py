"""What the device computes in, when its memory is at an end, and where random numbers come from."""

from __future__ import annotations

import numpy as np
import torch

from inspectd.workshop.options import TrainOptions


def half_precision(device: torch.device, options: TrainOptions) -> torch.dtype | None:
    """The 16-bit type to compute in: what is asked for, or what this device computes fast in. None is float32."""
    match options.precision:
        case "f32":
            return None
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16 if device.type == "cuda" else torch.bfloat16
        case "auto" if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        case "auto":
            return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else None


def is_out_of_memory(err: RuntimeError) -> bool:
    """True of torch's complaints that a GPU or the machine has no memory left."""
    text = str(err).lower()
    return isinstance(err, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text


def seed_everything(*numbers: int) -> None:
    """Set torch's global generator (dropout draws from it) from these numbers."""
    torch.manual_seed(_mixed_seed(*numbers))


def generator_for(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(_mixed_seed(*numbers))


def _mixed_seed(*numbers: int) -> int:
    """One well-mixed seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
