"""The pictures to look at first: what got through, what was stopped in vain, what was nearly wrong."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from torch import nn

from inspectd.frame import U8
from inspectd.model.bundle import Bundle
from inspectd.model.manifest import Manifest
from inspectd.workshop.evaluation.cam import class_activation, overlay
from inspectd.workshop.evaluation.figures import ErrorKind, WorstPicture
from inspectd.workshop.evaluation.judged import Judged, ok_score
from inspectd.workshop.evaluation.labelled import Labelled

_ORDER: tuple[ErrorKind, ...] = ("escape", "false_reject", "missed", "wrong_class", "least_sure")
_SIDE = 320  # pixels; larger pictures are reduced to it in the page
_AT_MOST_SURE = 6  # pictures that are right and merely not sure


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A picture of the gallery: data URIs of the picture, and of the evidence for some classes."""

    picture: str
    evidence: tuple[tuple[str, str], ...] = ()  # (class, data URI)


def worst_pictures(
    judged: Judged, pictures: Labelled, manifest: Manifest, at_most: int
) -> list[tuple[int, WorstPicture]]:
    """(row, picture), the gravest first: escapes, then false rejects, then defects that did not fail,
    then wrong classes, each with the surest first; at the end the right ones that were least sure.
    """
    passing = ok_score(judged.logits, manifest)
    found: list[tuple[int, float, int]] = []
    for row, (decision, verdict) in enumerate(zip(judged.decisions, judged.verdicts, strict=True)):
        truth = manifest.classes[pictures.labels[row]]
        right = verdict == {"ok": "pass", "defect": "fail", "empty": "empty"}[truth.role]
        if verdict == "pass" and truth.role != "ok":
            kind, rank = "escape", -passing[row]
        elif verdict != "pass" and truth.role == "ok":
            kind, rank = "false_reject", passing[row]
        elif not right:
            kind, rank = "missed", -passing[row]
        elif decision.label != truth.name:
            kind, rank = "wrong_class", -(decision.score or 0.0)
        else:
            kind, rank = "least_sure", decision.score or 0.0
        found.append((_ORDER.index(kind), float(rank), row))
    found.sort()
    sure = _ORDER.index("least_sure")
    errors = [entry for entry in found if entry[0] != sure][:at_most]
    chosen = errors + [entry for entry in found if entry[0] == sure][: min(_AT_MOST_SURE, at_most - len(errors))]
    return [(row, _describe(row, _ORDER[kind], judged, pictures, manifest)) for kind, _, row in chosen]


def exhibits(
    chosen: Sequence[tuple[int, WorstPicture]], pictures: Labelled, bundle: Bundle, network: nn.Module | None
) -> list[Exhibit]:
    """The chosen pictures as the network saw them, and, where there is a network, what it saw in them.

    Shown is the evidence for the class that was decided on and for the true one (or the runner-up where
    these are the same), less the mean over all classes, which changes no score; both in one scale.
    """
    rows = [row for row, _ in chosen]
    plain = [Exhibit(_data_uri(pictures.pixels[row])) for row in rows]
    if network is None or not rows:
        return plain
    names = [spec.name for spec in bundle.manifest.classes]
    maps = class_activation(network, pictures.pixels[rows], bundle.manifest.preprocess)  # [N, classes, h, w]
    if maps.shape[2] * maps.shape[3] == 1:  # one place says nothing about where
        return plain
    maps -= maps.mean(axis=1, keepdims=True)
    shown = []
    for (row, picture), evidence in zip(chosen, maps, strict=True):
        ranked = sorted(picture.scores, key=lambda name: -picture.scores[name]) or [picture.truth]
        decided = picture.label or ranked[0]
        other = picture.truth if picture.truth != decided else next((n for n in ranked if n != decided), decided)
        pair = [names.index(name) for name in dict.fromkeys((decided, other))]
        strongest = float(evidence[pair].max())
        shown.append(
            Exhibit(
                _data_uri(pictures.pixels[row]),
                tuple((names[i], _data_uri(overlay(pictures.pixels[row], evidence[i], strongest))) for i in pair),
            )
        )
    return shown


def _describe(row: int, kind: ErrorKind, judged: Judged, pictures: Labelled, manifest: Manifest) -> WorstPicture:
    decision = judged.decisions[row]
    return WorstPicture(
        name=pictures.names[row],
        kind=kind,
        truth=manifest.classes[pictures.labels[row]].name,
        verdict=judged.verdicts[row],
        label=decision.label,
        score=decision.score,
        scores=decision.scores,
    )


def _data_uri(rgb: U8) -> str:
    """The picture as JPEG in a data URI; small ones as PNG, which keeps every pixel."""
    height, width = rgb.shape[:2]
    if max(height, width) > _SIDE:
        scale = _SIDE / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
    kind, options = ("png", []) if max(rgb.shape[:2]) <= 64 else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, 85])
    ok, encoded = cv2.imencode(f".{kind}", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    assert ok, "OpenCV encodes PNG and JPEG"
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode('ascii')}"
