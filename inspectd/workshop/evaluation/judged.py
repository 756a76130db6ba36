"""The pictures judged as the line would: by each copy of the model, in the daemon's engine, by its rule.

Nothing of the way from pixels to a verdict is written again here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from inspectd.config import DecisionConfig, EngineConfig
from inspectd.engine.base import Engine, Logits, Slot
from inspectd.engine.select import make_engine
from inspectd.errors import EngineError, FatalEngineError
from inspectd.frame import U8
from inspectd.model.bundle import WEIGHTS, Bundle
from inspectd.model.calibrate import F64, Labels, softmax
from inspectd.model.export import eager_logits, openvino_logits
from inspectd.model.manifest import COPY_MODEL, Copy, Manifest
from inspectd.model.network import build_network, load_bundle_weights
from inspectd.progress import Tell
from inspectd.verdict.decide import Decider, Decision, merged_thresholds
from inspectd.workshop.evaluation.figures import VERDICTS, CopyFigures, Verdict, VerdictFigures
from inspectd.workshop.evaluation.statistics import (
    PASS_LEAST,
    Mask,
    class_figures,
    confusion,
    share,
    top_classes,
    upper_bound,
)

EAGER = "torch"
"""The name of the column that every copy is compared with: the bundle's weights in torch, float32."""
_CHUNK = 64

Done = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Judged:
    """What one copy of the model says. `logits` is float32 [N, classes], NaN where its engine failed."""

    name: str
    runs: str
    logits: Logits
    decisions: tuple[Decision, ...]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return tuple(map(verdict_of, self.decisions))


@dataclass(frozen=True, slots=True)
class Deployment:
    """A copy as the daemon would run it: the engine's configuration, and the bundle with this copy alone."""

    name: str
    bundle: Bundle
    config: EngineConfig


def verdict_of(decision: Decision) -> Verdict:
    """The decision in one word."""
    match decision.verdict, decision.reason:
        case ("pass" | "fail") as verdict, _:
            return verdict
        case _, None:
            return "empty"
        case _, "uncertain":
            return "uncertain"
        case _:
            return "engine_error"


def deployments(bundle: Bundle, threads: int) -> tuple[list[Deployment], str]:
    """Every copy that the daemon can run on this machine, and the name of the one that it would choose.

    Raises:
        BundleError: a copy cannot be run.
    """
    cpu = EngineConfig(device="cpu", threads=threads)
    found = [Deployment(copy, _alone(bundle, copy), cpu) for copy in bundle.copies if copy != "onnx"]
    if not found:
        return [], EAGER
    chosen = "openvino-int8" if "openvino-int8" in bundle.copies else found[0].name
    if torch.cuda.is_available():
        auto = EngineConfig(threads=threads)
        with closing(make_engine(bundle, auto)) as engine:
            if engine.info.device != "cpu":
                chosen = engine.info.name
                found.append(Deployment(chosen, bundle, auto))
    return found, chosen


def judge(
    bundle: Bundle, pixels: U8, deployed: Sequence[Deployment], tell: Tell, stage: str = "judging"
) -> Iterator[Judged]:
    """Judge uint8 [N, height, width, 3] with torch, where the bundle has weights, and with every copy.

    Progress is told as one stage per copy, named after `stage`.

    Raises:
        BundleError: the weights or a copy do not fit the manifest.
        FatalEngineError: a device is gone.
    """
    decider = Decider(bundle.manifest, DecisionConfig())
    total = len(pixels)

    def judged(name: str, runs: str, logits: Logits) -> Judged:
        return Judged(name, runs, logits, tuple(decider.decide(row) for row in logits))

    if WEIGHTS in bundle.manifest.files:
        network = build_network(bundle.manifest)
        load_bundle_weights(network, bundle)
        parts = []
        for start in range(0, total, _CHUNK):
            parts.append(eager_logits(network, pixels[start : start + _CHUNK], bundle.manifest.preprocess))
            tell(f"{stage}: {EAGER}", min(start + _CHUNK, total), total)
        yield judged(EAGER, "torch f32, eager: the measure of every copy", np.concatenate(parts))
    for copy in deployed:
        with closing(make_engine(copy.bundle, copy.config)) as engine:
            told = partial(tell, f"{stage}: {copy.name}")
            logits = engine_scores(engine, pixels, bundle.manifest.output_shape, told)
            runs = f"{engine.info.name} {engine.info.precision} on {engine.info.device}"
        yield judged(copy.name, runs, logits)
    if "onnx" in bundle.copies:
        logits = openvino_logits(bundle.copy_path("onnx"), pixels, "f32")
        yield judged("onnx", "ONNX, read by OpenVINO in f32; the daemon does not run it", logits)


def engine_scores(engine: Engine, pixels: U8, shape: tuple[int, ...], on_progress: Done) -> Logits:
    """What an engine says when it is driven as the daemon does: full batches in slots, several in flight.

    uint8 [N, height, width, 3] -> float32 [N, *shape], `shape` being the manifest's `output_shape`; NaN for a
    batch that failed, as its crops would become `engine_error`.
    """
    size, depth = engine.max_batch_size, engine.depth
    memory = engine.allocate(size * depth)
    slots = [Slot(index, row) for index, row in enumerate(memory)]
    engine.warm_up()
    scores = np.full((len(pixels), *shape), np.nan, np.float32)
    starts = range(0, len(pixels), size)
    collected = 0

    def collect() -> None:
        nonlocal collected
        try:
            scores[starts[collected] : starts[collected] + size] = engine.collect()
        except FatalEngineError:
            raise
        except EngineError:
            pass  # the rows stay NaN
        collected += 1
        on_progress(min(collected * size, len(pixels)), len(pixels))

    for number, start in enumerate(starts):
        if engine.in_flight == depth:
            collect()
        rows = pixels[start : start + size]
        first = number % depth * size
        memory[first : first + len(rows)] = rows
        engine.submit(slots[first : first + len(rows)], lambda slots: None)
    while engine.in_flight:
        collect()
    return scores


def verdict_figures(
    verdicts: Sequence[Verdict], labels: Labels, manifest: Manifest, overrides: DecisionConfig | None = None
) -> VerdictFigures:
    """Count what these verdicts, made with these overrides of the thresholds, mean for good and bad parts."""
    verdict = np.array(verdicts, dtype=object)
    good, defect = role_mask(labels, manifest, "ok"), role_mask(labels, manifest, "defect")
    passes, fails = verdict == "pass", verdict == "fail"
    escapes, bad = int((~good & passes).sum()), int((~good).sum())
    by_class = {}
    for label, spec in enumerate(manifest.classes):
        found = Counter(verdict[labels == label].tolist())
        by_class[spec.name] = {name: found[name] for name in VERDICTS}
    return VerdictFigures(
        thresholds=merged_thresholds(manifest, overrides or DecisionConfig()),
        escapes=share(escapes, bad),
        escapes_below=upper_bound(escapes, bad),
        false_rejects=share(int((good & ~passes).sum()), int(good.sum())),
        caught=share(int((defect & fails).sum()), int(defect.sum())),
        uncertain=share(int((verdict == "uncertain").sum()), len(verdict)),
        by_class=by_class,
    )


def copy_figures(judged: Judged, first: Judged, labels: Labels, manifest: Manifest) -> CopyFigures:
    """One copy's figures, and how far it agrees with the first."""
    top, of_first = top_classes(judged.logits), top_classes(first.logits)
    same = judged is not first
    verdicts = judged.verdicts
    pairs = list(zip(verdicts, first.verdicts, strict=True))
    difference = np.abs(judged.logits - first.logits)
    return CopyFigures(
        name=judged.name,
        runs=judged.runs,
        accuracy=share(int((top == labels).sum()), len(labels)),
        classes=class_figures(top, labels, manifest.classes),
        confusion=tuple(map(tuple, confusion(top, labels, len(manifest.classes)).tolist())),
        verdicts=verdict_figures(verdicts, labels, manifest),
        same_top_class=share(int((top == of_first).sum()), len(top)) if same else None,
        same_verdict=share(sum(a == b for a, b in pairs), len(pairs)) if same else None,
        largest_logit_difference=round(float(np.nanmax(difference)), 6)
        if same and np.isfinite(difference).any()
        else None,
    )


def ok_score(logits: Logits, manifest: Manifest) -> F64:
    """The score by which the daemon passes parts: the probability of the ok classes together, float64 [N].

    -1 where the scores are no finite numbers: such a picture never passes.
    """
    finite = np.isfinite(logits).all(axis=1)
    ok = np.array([spec.role == "ok" for spec in manifest.classes])
    score = np.full(len(logits), -1.0)
    score[finite] = softmax(logits[finite], manifest.temperature)[:, ok].sum(axis=1)
    return score


def pass_scores(logits: Logits, manifest: Manifest) -> F64:
    """The highest `pass_min` at which each picture still passes, float64 [N]; 0 where it never does.

    The daemon's rule says whether it passes at the lowest `pass_min` of all; from there on only its score counts.
    """
    decider = Decider(manifest, DecisionConfig(pass_min=PASS_LEAST))
    passes = np.array([decider.decide(row).verdict == "pass" for row in logits], bool)
    scores: F64 = np.where(passes, np.minimum(ok_score(logits, manifest), 1.0), 0.0)
    return scores


def role_mask(labels: Labels, manifest: Manifest, role: str) -> Mask:
    """bool [N]: which pictures are of a class of this role."""
    mask: npt.NDArray[np.bool_] = np.array([spec.role == role for spec in manifest.classes])[labels]
    return mask


def _alone(bundle: Bundle, copy: Copy) -> Bundle:
    """The bundle as if it had no other copy: what the engine then runs is this one."""
    others = [other for other in COPY_MODEL if other != copy]
    files = {name: sha for name, sha in bundle.manifest.files.items() if name.split("/")[0] not in others}
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"files": files}))
