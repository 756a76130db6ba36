"""`inspectd export`: one more deployable copy for a finished bundle, behind the same gate as in training."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import resnet18

from inspectd.errors import DataError, UsageError
from inspectd.model.bundle import WEIGHTS, Bundle, load_bundle, write_manifest
from inspectd.model.data import Pictures, open_dataset
from inspectd.model.export import eager_logits
from inspectd.model.manifest import COPY_MODEL, Copy
from inspectd.model.network import build_network, load_bundle_weights
from inspectd.progress import Tell
from inspectd.workshop.copies import calibration_pictures, float32_copies, make_copy
from inspectd.workshop.gate import GateReport, judge_copy
from inspectd.workshop.options import ExportTarget
from inspectd.workshop.place import copy_files, flush, refuse_exchanged, refuse_other_things, replacing
from inspectd.workshop.provenance import read_provenance


@dataclass(frozen=True, slots=True)
class ExportOutcome:
    """What came of it, in lines for people."""

    passed: bool
    lines: tuple[str, ...]


def export_copy(path: Path, to: ExportTarget, data: Path | None, output: Path | None, tell: Tell) -> ExportOutcome:
    """Make one copy of the bundle at `path` and, where the gate lets it pass, put it in place.

    It goes into the bundle itself, or into a new bundle at `output`; `torch` is a file of plain torchvision
    weights at `output`. `bundle.json` records what the gate found. A refusal changes nothing.

    Args:
        data: the pictures that trained the bundle: INT8 is calibrated on those that it was trained on, and
            the gate judges by those that it was validated on.

    Raises:
        BundleError: the bundle is none, was changed, is exchanged meanwhile, or has no weights.
        DataError: `data` is not what trained the bundle, or the result cannot be written.
        UsageError: a bundle that cannot be exported so.
    """
    bundle = load_bundle(path)
    if WEIGHTS not in bundle.manifest.files:
        raise UsageError(f"{path}: has no {WEIGHTS} to export from")
    destination = output or path
    if to != "torch":
        refuse_other_things(destination, data)
    if bundle.manifest.task == "detect":
        from inspectd.workshop.detect.export import export_detector_copy

        return export_detector_copy(bundle, to, data, output, tell)
    if data is None:
        raise UsageError("export: give --data with the pictures that trained the bundle; the gate judges by them")
    pictures = pictures_of(bundle, data, tell)
    network = build_network(bundle.manifest)
    load_bundle_weights(network, bundle)
    network.eval()
    tell("exporting", 0, 1, to)
    if to == "torch":
        report = _export_torch(bundle, network, pictures["val"], output)
    else:
        report = _export_into(bundle, to, network, pictures, destination)
    tell("exporting", 1, 1, to)
    return ExportOutcome(report.passed, tuple(_lines(report, destination)))


def pictures_of(bundle: Bundle, data: Path, tell: Tell) -> dict[str, Pictures]:
    """The pictures that made the bundle, out of `data`, by their hashes: "train" and "val".

    Raises:
        DataError: some of them are not there.
        UsageError: the bundle does not say which they are.
    """
    record = read_provenance(bundle)
    if record is None:
        raise UsageError(f"{bundle.path}: does not record what it was trained on; train it again")
    options: dict[str, Any] = bundle.manifest.training.get("options", {})
    dataset = open_dataset(
        data,
        seed=int(options.get("seed", 0)),
        ok=tuple(options.get("ok", ())),
        empty=tuple(options.get("empty", ())),
        spec=bundle.manifest.preprocess,
        on_progress=lambda done, total: tell("reading pictures", done, total),
    )
    if dataset.classes != bundle.manifest.classes:
        raise DataError(f"{data}: has other classes than {bundle.path}; give the folder that trained it")
    rows = {
        sample.sha256: (split, row) for split, samples in dataset.splits.items() for row, sample in enumerate(samples)
    }
    if missing := [seen.name for seen in record.pictures if seen.file not in rows]:
        raise DataError(
            f"{data}: {len(missing)} of {len(record.pictures)} pictures that made {bundle.path} are not there, "
            f"{missing[0]} for one; give the folder that trained it"
        )
    found: dict[str, Pictures] = {}
    for wanted in ("train", "val"):
        places = [rows[seen.file] for seen in record.pictures if seen.split == wanted]
        if not places:
            raise UsageError(f"{bundle.path}: records no picture for {wanted}; train it again")
        found[wanted] = Pictures(
            np.stack([dataset.pictures[split].pixels[row] for split, row in places]),
            np.array([dataset.pictures[split].labels[row] for split, row in places]),
        )
    return found


def _export_into(
    bundle: Bundle, to: Copy, network: nn.Module, pictures: dict[str, Pictures], destination: Path
) -> GateReport:
    manifest, val = bundle.manifest, pictures["val"]
    with replacing(destination) as work:
        copy_files(bundle, work)
        shutil.rmtree((work / COPY_MODEL[to]).parent, ignore_errors=True)
        judged = make_copy(
            to,
            network,
            manifest,
            work,
            calibration_pictures(pictures["train"].pixels, seed=0),
            val.pixels,
            val.labels,
            manifest.thresholds,
            manifest.temperature,
        )
        if judged.report.passed:
            gate = {**manifest.metrics.get("gate", {}), to: judged.report.as_json()}
            float32 = float32_copies(manifest.float32, {to: judged.float32})
            changed = {"metrics": {**manifest.metrics, "gate": gate}, "float32": float32}
            write_manifest(work, manifest.model_copy(update=changed))
            refuse_exchanged(bundle)
    return judged.report


def _export_torch(bundle: Bundle, network: nn.Module, val: Pictures, output: Path | None) -> GateReport:
    """A safetensors file that `torchvision.models.resnet18` takes as it is, read back before it is judged."""
    if output is None or output.suffix != ".safetensors":
        raise UsageError("export --to torch: give -o FILE.safetensors")
    manifest = bundle.manifest
    spec = manifest.preprocess
    about = {
        "architecture": manifest.architecture,
        "classes": json.dumps([c.name for c in manifest.classes]),
        "input": f"RGB [N, 3, {spec.height}, {spec.width}] in 0..1, minus mean, by std",
        "mean": json.dumps(spec.mean),
        "std": json.dumps(spec.std),
        "temperature": str(manifest.temperature),
        "bundle": bundle.sha256,
    }
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, temporary, about)
        again = resnet18(weights=None, num_classes=len(manifest.classes))
        again.load_state_dict(load_file(temporary))
        eager, given = (eager_logits(each, val.pixels, spec) for each in (network, again))
        report = judge_copy(
            "torch", eager, given, val.labels, manifest.classes, manifest.temperature, manifest.thresholds
        )
        if report.passed:
            temporary.chmod(0o644)
            flush(temporary)
            temporary.replace(output)
            flush(output.parent)
        return report
    except OSError as err:
        raise DataError(f"{output}: cannot be written: {err.strerror or err}") from err
    finally:
        temporary.unlink(missing_ok=True)


def _lines(report: GateReport, destination: Path) -> list[str]:
    if not report.passed:
        return [f"{report.copy}: refused by its gate: {problem}" for problem in report.problems]
    found = (
        f"logits within {report.logit_error:.2%} of torch, top class agrees on {report.agreement:.1%}, "
        f"{report.escapes} wrongly passed"
    )
    return [f"{report.copy}: passed its gate on {report.pictures} validation pictures: {found}", f"{destination}"]
