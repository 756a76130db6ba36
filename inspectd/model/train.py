"""Fine-tuning: from a folder of labelled pictures to a bundle with its deployable copies.

read and preprocess -> train -> settle -> export copies -> temperature and thresholds -> bundle, in place at once
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import structlog
import torch
from torch import Tensor, nn

from inspectd import __version__
from inspectd.errors import DataError, UsageError
from inspectd.model.bundle import FORMAT_VERSION, MANIFEST, WEIGHTS, Bundle, Manifest, load_bundle, write_manifest
from inspectd.model.calibrate import choose_thresholds, fit_temperature, operating_point, softmax, summary
from inspectd.model.data import Dataset, Pictures, load_pictures, open_dataset
from inspectd.model.export import (
    eager_logits,
    export_int8,
    export_openvino,
    normalise,
    openvino_logits,
    settle_batch_norm,
)
from inspectd.model.network import StartWeights, build_resnet18, load_initial_weights, save_weights
from inspectd.model.preprocess import PreprocessSpec

log = structlog.get_logger(__name__)

CALIBRATION_PICTURES = 200
"""Pictures that set the INT8 ranges; NNCF's own default is 300, and 200 gave the same ranges here."""
_WARM_UP = 0.15  # share of the schedule in which the learning rate rises
_WEIGHT_DECAY = 0.05
_LABEL_SMOOTHING = 0.05


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How to train. The defaults fine-tune well from ImageNet weights; from none, give it more epochs."""

    weights: StartWeights = "none"
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 1e-3
    size: int = 224
    seed: int = 0
    val_fraction: float = 0.2
    threads: int = 0  # of torch; 0 leaves it its own choice
    time_budget_s: float | None = None  # the schedule is shortened to end in this time
    int8: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise UsageError("train: needs at least one epoch and a batch of two")
        if not 0 < self.learning_rate < 1:
            raise UsageError(f"train: learning rate {self.learning_rate} is not between 0 and 1")
        if not 32 <= self.size <= 2048 or self.size % 2:
            raise UsageError(f"train: size {self.size} is not an even number from 32 to 2048")


class Progress(Protocol):
    """Told what is going on: a stage's name, how far it is, and a few words on how it goes."""

    def __call__(self, stage: str, done: int, total: int, message: str = "") -> None: ...


def train(data: Path, bundle: Path, options: TrainOptions, progress: Progress | None = None) -> Bundle:
    """Fine-tune a ResNet18 on `data` and write it to `bundle`, a new directory or one that held a bundle.

    The new bundle is made beside the old one and takes its place when it is whole, so that a kill at any
    moment leaves the old one, or none. The same data, options and machine give the same weights.

    Raises:
        DataError: the pictures cannot be used, or `bundle` holds something else.
        UsageError: the options make no sense.
    """
    tell = progress or (lambda stage, done, total, message="": None)
    _refuse_other_things(bundle)
    if options.threads:
        torch.set_num_threads(options.threads)
    dataset = open_dataset(data, seed=options.seed, val_fraction=options.val_fraction)
    spec = PreprocessSpec(width=options.size, height=options.size)
    pictures = {
        split: load_pictures(dataset.splits[split], spec, lambda done, total: tell("reading pictures", done, total))
        for split in ("train", "val")
    }
    started = time.monotonic()
    network = _fit(dataset, pictures["train"], pictures["val"], options, spec, tell)
    trained_s = time.monotonic() - started

    tell("writing the bundle", 0, 3)
    work = bundle.with_name(f".{bundle.name}.new-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        manifest = _draft(dataset, spec, options, trained_s)
        save_weights(network, work / WEIGHTS)
        copies = {"openvino": export_openvino(network, manifest, work)}
        tell("writing the bundle", 1, 3, "INT8")
        if options.int8:
            copies["openvino-int8"] = export_int8(
                network, manifest, work, _calibration(pictures["train"], options.seed)
            )
        tell("writing the bundle", 2, 3, "thresholds")
        manifest = _calibrated(manifest, network, copies, pictures["val"])
        if options.int8 and (why := _int8_lets_more_pass(manifest)):
            log.warning("int8_left_out", why=why)
            shutil.rmtree(copies.pop("openvino-int8").parent)
            manifest = _calibrated(manifest, network, copies, pictures["val"])
        write_manifest(work, manifest)
        _put_in_place(work, bundle)
    except OSError as err:
        raise DataError(f"{bundle}: cannot be written: {err.strerror or err}") from err
    finally:
        shutil.rmtree(work, ignore_errors=True)
    tell("writing the bundle", 3, 3)
    return load_bundle(bundle)


# -- fitting ------------------------------------------------------------------------------------------


def _fit(
    dataset: Dataset, pictures: Pictures, val: Pictures, options: TrainOptions, spec: PreprocessSpec, tell: Progress
) -> nn.Module:
    """The trained network, on the CPU, in eval mode."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = _half_precision(device)
    log.info("training", pictures=len(pictures), device=str(device), dtype=str(half or torch.float32))
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        network = build_resnet18(len(dataset.classes))
        load_initial_weights(network, options.weights)
        network.to(device).to(memory_format=torch.channels_last)
        _optimise(network, dataset, pictures, val, options, spec, tell, device, half)
        generator = torch.Generator().manual_seed(options.seed)
        settle = (_batch(pictures, index, spec, device)[0] for index in _one_pass(len(pictures), options, generator))
        with torch.autocast(device.type, half, enabled=half is not None):
            settle_batch_norm(network, settle)
    return network.to("cpu").eval()


def _optimise(
    network: nn.Module,
    dataset: Dataset,
    pictures: Pictures,
    val: Pictures,
    options: TrainOptions,
    spec: PreprocessSpec,
    tell: Progress,
    device: torch.device,
    half: torch.dtype | None,
) -> None:
    steps_per_epoch = max(1, len(pictures) // options.batch_size)
    total = options.epochs * steps_per_epoch
    weights = _class_weights(pictures, len(dataset.classes)).to(device)
    optimiser = torch.optim.AdamW(_groups(network), lr=options.learning_rate, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=half == torch.float16)
    generator = torch.Generator().manual_seed(options.seed)
    started, message = time.monotonic(), ""
    step = 0
    for epoch in range(options.epochs):
        network.train()
        losses = []
        for index in _one_pass(len(pictures), options, generator):
            done = _share_done(step, total, time.monotonic() - started, options.time_budget_s)
            if done >= 1:
                return
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * _schedule(done)
            x, y = _batch(pictures, index, spec, device, generator)
            with torch.autocast(device.type, half, enabled=half is not None):
                logits = network(x)
            loss = nn.functional.cross_entropy(logits.float(), y, weights, label_smoothing=_LABEL_SMOOTHING)
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimiser)
            scaler.update()
            losses.append(loss.detach())
            step += 1
            tell("training", int(max(step, done * total)), total, message)
        mean_loss = float(torch.stack(losses).mean())  # the one place that waits for the device
        if not math.isfinite(mean_loss):
            raise DataError(f"the loss became {mean_loss} in epoch {epoch + 1}; try a smaller --learning-rate")
        message = f"epoch {epoch + 1}/{options.epochs} loss {mean_loss:.3f}"


def _share_done(step: int, total: int, elapsed_s: float, budget_s: float | None) -> float:
    """How much of the schedule is over, by steps, or by time where that is scarcer."""
    by_steps = step / total
    return by_steps if budget_s is None else max(by_steps, elapsed_s / budget_s)


def _schedule(done: float) -> float:
    """Learning rate factor: linear warm-up, then half a cosine down to a hundredth."""
    if done < _WARM_UP:
        return max(0.02, done / _WARM_UP)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))


def _groups(network: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices and filters, none for biases and norms."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]


def _class_weights(pictures: Pictures, classes: int) -> Tensor:
    """Square root of the inverse frequency, mean 1: rare defects count more, but not as if they were common."""
    counts = np.maximum(np.bincount(pictures.labels, minlength=classes), 1)
    weights = np.sqrt(counts.sum() / counts)
    return torch.tensor(weights / weights.mean(), dtype=torch.float32)


def _one_pass(count: int, options: TrainOptions, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled indices in whole batches; a set smaller than a batch is one batch."""
    order = torch.randperm(count, generator=generator)
    size = min(options.batch_size, count)
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]


def _batch(
    pictures: Pictures,
    index: Tensor,
    spec: PreprocessSpec,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalised float32 [B, 3, H, W] channels last, and labels [B]; augmented where a generator is given."""
    pixels = torch.from_numpy(pictures.pixels[index.numpy()])
    if generator is not None:
        pixels = augment(pixels, generator)
    labels = torch.from_numpy(pictures.labels[index.numpy()])
    x = normalise(pixels, spec).to(device, memory_format=torch.channels_last)
    return x, labels.to(device)


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Flips, shifts by up to a sixteenth with the edge repeated, brightness and contrast: what a line varies.

    uint8 [B, H, W, 3] to the same. No hue: the colour may be the defect.
    """
    count, height, width = pixels.shape[:3]

    def places(side: int) -> Tensor:  # [B, side]: where each output row or column comes from
        reach = max(1, side // 16)
        shift = torch.randint(-reach, reach + 1, (count, 1), generator=generator)
        place = (torch.arange(side) + shift).clamp(0, side - 1)
        flipped = torch.rand(count, 1, generator=generator) < 0.5
        return torch.where(flipped, place.flip(1), place)

    rows, columns = places(height), places(width)
    moved = pixels[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    gain = 1 + 0.15 * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    offset = 10 * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    return (moved.float() * gain + offset).clamp(0, 255).to(torch.uint8)


def _half_precision(device: torch.device) -> torch.dtype | None:
    """The 16-bit type that this device computes fast in, or None."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else None


# -- the bundle ---------------------------------------------------------------------------------------


def _draft(dataset: Dataset, spec: PreprocessSpec, options: TrainOptions, trained_s: float) -> Manifest:
    arguments = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    return Manifest(
        format_version=FORMAT_VERSION,
        architecture="resnet18",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        created_by=f"inspectd {__version__}, torch {torch.__version__}",
        classes=dataset.classes,
        preprocess=spec,
        training={
            "data_sha256": dataset.fingerprint,
            "pictures": {split: dataset.counts(split) for split in dataset.splits},
            "options": arguments,
            "seconds": round(trained_s, 1),
        },
        files={},
    )


def _calibration(pictures: Pictures, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    order = np.random.default_rng(seed).permutation(len(pictures))[:CALIBRATION_PICTURES]
    return pictures.pixels[order]


def _calibrated(manifest: Manifest, network: nn.Module, copies: dict[str, Path], val: Pictures) -> Manifest:
    """Temperature and thresholds from validation, for the worst of the copies; and what they give."""
    eager = eager_logits(network, val.pixels, manifest.preprocess)
    logits = {"eager": eager, **{name: openvino_logits(path, val.pixels) for name, path in copies.items()}}
    temperature = fit_temperature(eager, val.labels)
    probabilities = {name: softmax(values, temperature) for name, values in logits.items()}
    stacked = np.concatenate(list(probabilities.values()))
    thresholds = choose_thresholds(stacked, np.tile(val.labels, len(probabilities)), manifest.classes)
    metrics: dict[str, Any] = {"split": "val"}
    for name, values in logits.items():
        metrics[name] = summary(values, val.labels, manifest.classes) | {
            "agreement_with_eager": round(float((values.argmax(1) == eager.argmax(1)).mean()), 4),
            "operating_point": operating_point(probabilities[name], val.labels, manifest.classes, thresholds),
        }
    return manifest.model_copy(update={"temperature": temperature, "thresholds": thresholds, "metrics": metrics})


def _int8_lets_more_pass(manifest: Manifest) -> str | None:
    """The daemon prefers INT8 where it can have it, so it must not be the worse judge. None where it is not."""
    escapes = {name: manifest.metrics[name]["operating_point"]["escapes"] for name in ("eager", "openvino-int8")}
    if escapes["openvino-int8"] <= escapes["eager"]:
        return None
    return f"{escapes['openvino-int8']} validation pictures would wrongly pass, {escapes['eager']} without quantisation"


def _refuse_other_things(bundle: Path) -> None:
    """Replacing a bundle is meant; replacing anything else is a slip.

    Raises:
        DataError: `bundle` is a file, or a directory that holds no bundle.
    """
    if bundle.is_dir():
        if any(bundle.iterdir()) and not (bundle / MANIFEST).exists():
            raise DataError(f"{bundle}: holds something that is no bundle; give another -o")
    elif bundle.exists():
        raise DataError(f"{bundle}: is a file; a bundle is a directory, give another -o")


def _put_in_place(work: Path, bundle: Path) -> None:
    """Swap the finished directory in; between the two renames there is no bundle, and never half of one."""
    old = bundle.with_name(f".{bundle.name}.old-{os.getpid()}")
    if bundle.exists():
        bundle.rename(old)
    work.rename(bundle)
    shutil.rmtree(old, ignore_errors=True)
