"""Which pictures with boxes are learnt and which judge: parts are kept whole, and nothing judges that was learnt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog

from inspectd.errors import DataError
from inspectd.model.data import SPLITS, Split
from inspectd.model.similar import ALIKE, near_duplicates, typical_rest
from inspectd.model.split import assign, name_groups

if TYPE_CHECKING:
    from inspectd.workshop.detect.data import BoxedSample

log = structlog.get_logger(__name__)

_NAMED_AT_MOST = 3


def refuse_contradictions(samples: Mapping[Split | None, Sequence[BoxedSample]]) -> None:
    """The same picture with other boxes, or with none, makes every figure a lie.

    Raises:
        DataError: there is one.
    """
    seen: dict[str, BoxedSample] = {}
    for boxed in (boxed for part in samples.values() for boxed in part):
        first = seen.setdefault(boxed.sample.sha256, boxed)
        if _truth(first) != _truth(boxed):
            names = f"{first.sample.name} and {boxed.sample.name}"
            raise DataError(f"{names} are the same picture with different boxes; remove one of them")


def _truth(boxed: BoxedSample) -> list[tuple[float, ...]]:
    """Its boxes, in whatever order they were given."""
    return sorted((label, *edges) for label, edges in zip(boxed.labels.tolist(), boxed.edges.tolist(), strict=True))


def without_leaks(
    samples: Mapping[Split | None, Sequence[BoxedSample]], groups: str | None
) -> dict[Split | None, list[BoxedSample]]:
    """The same picture to learn and to judge by makes every figure a lie: it stays where it judges, only.

    So do pictures of one part, by `groups`; see `open_boxes`.

    Raises:
        UsageError, DataError: see `name_groups`.
    """
    parts = _parts([boxed for part in samples.values() for boxed in part], groups)
    content: dict[str, str] = {}  # of the splits so far -> name
    part_of: dict[str | None, str] = {}
    kept: dict[Split | None, list[BoxedSample]] = {}
    leaks = []
    for split in sorted(samples, key=("test", "val", "train", None).index):
        kept[split] = []
        for boxed in samples[split]:
            judging = content.get(boxed.sample.sha256) or part_of.get(parts.get(boxed.sample.name))
            if judging is None:
                kept[split].append(boxed)
            else:
                leaks.append(f"{boxed.sample.name} as {judging}")
        content |= {boxed.sample.sha256: boxed.sample.name for boxed in kept[split]}
        part_of |= {parts[b.sample.name]: b.sample.name for b in kept[split] if b.sample.name in parts}
    if leaks:
        log.warning(
            "pictures_in_two_splits",
            count=len(leaks),
            first=leaks[:_NAMED_AT_MOST],
            note="equal, or by --group-by of one part: left out where they would be learnt; keep each in one split",
        )
    return kept


def _parts(samples: Sequence[BoxedSample], groups: str | None) -> dict[str, str]:
    """The part that a picture shows by its file's name, for each that tells one."""
    if groups is None:
        return {}
    found = name_groups([boxed.sample.path.name for boxed in samples], groups)
    return {boxed.sample.name: part for boxed, part in zip(samples, found, strict=True) if part is not None}


def divide(
    root: Path,
    samples: Mapping[Split | None, Sequence[BoxedSample]],
    names: Sequence[str],
    seed: int,
    val_fraction: float,
    groups: str | None,
) -> dict[Split | None, list[BoxedSample]]:
    """The same pictures with a validation set: the one that is given, or a share of each class.

    Equal pictures, near duplicates and pictures of one part stay on one side. Near duplicates that lie on two
    because they were given so are told of.

    Args:
        names: of the classes, by label.
        groups: see `open_boxes`.

    Raises:
        DataError: no picture to train or to validate has a box.
    """
    every = [boxed for part in samples.values() for boxed in part]
    settled = [split if split == "test" or "val" in samples else None for split, part in samples.items() for _ in part]
    near = [(int(i), int(j)) for i, j in near_duplicates(np.stack([boxed.print for boxed in every]))]
    parts = _parts(every, groups)
    contents = [boxed.sample.sha256 for boxed in every]
    labels = _rarest(every)
    own_parts = [parts.get(boxed.sample.name) for boxed in every]
    places, chained = assign(labels, contents, settled, near, own_parts, seed, [val_fraction])
    divided: dict[Split | None, list[BoxedSample]] = {s: [] for s in SPLITS if s in ("train", "val", *samples)}
    for boxed, place in zip(every, places, strict=True):
        divided[place].append(boxed)
    for split in ("train", "val"):
        if not any(len(boxed.labels) for boxed in divided[split]):
            raise DataError(f"{root}: no picture for {split} has a box; two different ones are needed at least")
    _warn_of_alike(every, labels, chained, names)
    _warn_of_similar(every, places, near)
    return divided


def _rarest(samples: Sequence[BoxedSample]) -> list[int]:
    """The class that each picture counts for: of those that it shows the one that fewest others do."""
    frequency = Counter(int(label) for boxed in samples for label in set(boxed.labels.tolist()))
    return [min(boxed.labels.tolist(), key=lambda label: frequency[label], default=0) for boxed in samples]


def _warn_of_alike(
    samples: Sequence[BoxedSample], labels: Sequence[int], chained: set[int], names: Sequence[str]
) -> None:
    """Classes of which near duplicates mean nothing, `chained`, or of which all pictures may be of one part."""
    alike = []
    for label, name in enumerate(names):
        prints = [boxed.print for boxed, own in zip(samples, labels, strict=True) if own == label]
        if label in chained or (prints and typical_rest(np.stack(prints)) < ALIKE):
            alike.append(name)
    if alike:
        log.warning(
            "pictures_look_alike",
            classes=alike,
            note="frames of one part cannot be told and may lie on both sides; tell parts by name with --group-by",
        )


def _warn_of_similar(samples: Sequence[BoxedSample], places: Sequence[Split], near: Sequence[tuple[int, int]]) -> None:
    across = [(i, j) for i, j in near if places[i] != places[j]]
    if across:
        log.warning(
            "near_duplicates_in_two_splits",
            count=len(across),
            first=[f"{samples[i].sample.name} and {samples[j].sample.name}" for i, j in across[:_NAMED_AT_MOST]],
            note="where they show the same part, the figures flatter the detector; keep a part in one split",
        )
