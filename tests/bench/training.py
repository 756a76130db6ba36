"""Fine-tuning throughput on this machine: the loop of `inspectd train` against the plain one, in one run.

    python tests/bench/training.py [--size 224] [--batch 32] [--steps 6] [--turns 3]

Plain is what tutorials teach: float32, contiguous, PIL pictures through torchvision's transforms, AdamW.
`fp32, no pictures` is its arithmetic alone, on batches that lie ready. Ours is the real loop with its augmentation,
averaged weights and both optimisers. Random weights on noise, as the arithmetic does not care. Two steps warm up each
turn; turns alternate, and the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import transforms
from torchvision.models import resnet18

from inspectd.machine import machine
from inspectd.model.data import Pictures
from inspectd.model.manifest import ClassSpec
from inspectd.model.preprocess import PreprocessSpec
from inspectd.workshop.augment import Augmenter
from inspectd.workshop.classify import ClassifyTask
from inspectd.workshop.distributed import World
from inspectd.workshop.imbalance import plan_for
from inspectd.workshop.loop import fit
from inspectd.workshop.options import TrainOptions
from inspectd.workshop.task import Score

WARM_UP = 2
CLASSES = tuple(ClassSpec(name=f"class{i}", role="defect") for i in range(6))
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Load:
    """What is trained on: pictures [N, size, size, 3] uint8 and labels [N]."""

    pixels: np.ndarray
    labels: np.ndarray
    batch: int
    steps: int


def plain(load: Load) -> float:
    """Pictures a second of the plain loop."""
    size = load.pixels.shape[1]
    transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomAffine(5, (0.05, 0.05)),
            transforms.ColorJitter(0.15, 0.15),
            transforms.Resize((size, size)),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    network = resnet18(weights=None, num_classes=len(CLASSES)).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    started = 0.0
    for step in range(WARM_UP + load.steps):
        if step == WARM_UP:
            started = time.perf_counter()
        rows = np.arange(step * load.batch, (step + 1) * load.batch) % len(load.pixels)
        x = torch.stack([transform(Image.fromarray(load.pixels[row])) for row in rows])
        loss = nn.functional.cross_entropy(network(x), torch.from_numpy(load.labels[rows]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return load.batch * load.steps / (time.perf_counter() - started)


def arithmetic(load: Load) -> float:
    """Pictures a second of the plain loop's network alone: float32 batches that lie ready."""
    network = resnet18(weights=None, num_classes=len(CLASSES)).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    x = torch.randn(load.batch, 3, *load.pixels.shape[1:3])
    y = torch.from_numpy(load.labels[: load.batch])
    started = 0.0
    for step in range(WARM_UP + load.steps):
        if step == WARM_UP:
            started = time.perf_counter()
        loss = nn.functional.cross_entropy(network(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return load.batch * load.steps / (time.perf_counter() - started)


class Timed(ClassifyTask):
    """The real task; only validation, which is not training, is left out."""

    def judge(self, network: nn.Module) -> Score:
        return Score((0.0,))


def ours(load: Load, options: TrainOptions) -> float:
    """Pictures a second of `inspectd.workshop.loop.fit`."""
    size = load.pixels.shape[1]
    pictures = Pictures(load.pixels, load.labels)
    plan = plan_for(load.labels, [c.name for c in CLASSES], "none")
    spec = PreprocessSpec(width=size, height=size)
    task = Timed(pictures, pictures, CLASSES, spec, plan, Augmenter(options.augment), options, CPU)
    task.pictures = load.batch * (WARM_UP + load.steps)
    network = resnet18(weights=None, num_classes=len(CLASSES)).to(memory_format=torch.channels_last)
    ends: list[float] = []
    fit(network, task, options, world=World(), device=CPU, tell=lambda *_: ends.append(time.perf_counter()))
    return load.batch * load.steps / (ends[-1] - ends[WARM_UP - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    count = args.batch * (WARM_UP + args.steps)
    pixels = rng.integers(0, 256, (count, args.size, args.size, 3), np.uint8)
    load = Load(pixels, np.arange(count) % len(CLASSES), args.batch, args.steps)
    scratch = TrainOptions(epochs=1, batch_size=args.batch, size=args.size)
    tuned = replace(scratch, optimiser="adamw")
    loops = {
        "plain fp32 loop": lambda: plain(load),
        "fp32, no pictures": lambda: arithmetic(load),
        "inspectd, adamw": lambda: ours(load, tuned),
        "inspectd, muon": lambda: ours(load, scratch),
    }
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(args.turns):
        for name, loop in loops.items():
            rates[name].append(loop())
    print(machine())
    print(f"{args.size} px, batch {args.batch}, {args.steps} steps after {WARM_UP}, {torch.get_num_threads()} threads")
    base = statistics.median(rates["plain fp32 loop"])
    for name, values in rates.items():
        middle = statistics.median(values)
        turns = " ".join(f"{value:.1f}" for value in values)
        print(f"{name:<18} {middle:6.1f} pictures/s  {middle / base:4.2f} x plain   ({turns})")


if __name__ == "__main__":
    main()
