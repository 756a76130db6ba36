"""What is odd about a data folder, and what to do about it, before anybody spends time on training with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from inspectd.model.data import Dataset, Sample
from inspectd.model.folder import OK_NAMES, Split, role_of
from inspectd.model.similar import ALIKE, typical_rest

Severity = Literal["error", "warning", "note"]
Kind = Literal[
    "unreadable",  # pictures that cannot be decoded; they are left out
    "not_pictures",  # other files in class folders
    "no_ok_class",
    "renamed_role",  # a folder that is called good, but is no good part as --ok or --empty names others
    "small_class",
    "unbalanced",
    "no_picture_to_judge",  # a class that is missing in a given val/ or test/
    "mixed_sizes",
    "mixed_shapes",
    "duplicates",  # equal pictures within a split
    "near_duplicates",  # within a split
    "leakage",  # equal pictures, pictures of one part, or near duplicates in two splits
    "look_alike_classes",  # near duplicates in two classes
    "alike",  # a class in which frames of one part cannot be told from another part
    "dark_16_bit",
    "blank",
]

SMALL_CLASS = 20
"""Pictures of a class below which figures on it mean little: with 4 to validate, recall is known to a quarter."""
UNBALANCED = 10
"""Times as many pictures in the largest class as in the smallest."""
_SAME_SHAPE = 1.05  # ratio of aspect ratios; more is visible where pictures are stretched to one size
_DARK_16_BIT = 32  # of 255: an eighth of the range; 12-bit cameras that are not shifted up reach 16
_BLANK = 2  # levels between darkest and brightest, at most, of a picture that shows nothing


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know. An `error` spoils every figure; a `warning` may; a `note` is good to know.

    `message` is one line that ends with what to do; `pictures` are the names that it is about, relative to the folder.
    """

    kind: Kind
    severity: Severity
    message: str
    pictures: tuple[str, ...] = ()


def survey(dataset: Dataset) -> list[Finding]:
    """Everything odd, the worst first. What makes a folder unusable was refused by `open_dataset` before."""
    checks: tuple[Callable[[Dataset], Iterator[Finding]], ...] = (
        _files,
        _roles,
        _counts,
        _sizes,
        _blank,
        _dark,
        _equal,
        _alike,
        _leaked,
        _similar,
    )
    found = [finding for check in checks for finding in check(dataset)]
    order: tuple[Severity, ...] = ("error", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _files(dataset: Dataset) -> Iterator[Finding]:
    if dataset.unreadable:
        names = tuple(name for name, _ in dataset.unreadable)
        count = len(names) + len(dataset.looks)
        why = dataset.unreadable[0][1]
        yield Finding(
            "unreadable",
            "warning",
            f"{len(names)} of {count} pictures cannot be used and are left out, the first: {why}; replace them",
            names,
        )
    if dataset.ignored:
        yield Finding(
            "not_pictures",
            "note",
            f"{_count(len(dataset.ignored), 'file')} left alone, no picture by suffix or kind, as "
            f"{dataset.ignored[0]}; convert them if they are pictures",
            dataset.ignored,
        )


def _roles(dataset: Dataset) -> Iterator[Finding]:
    if not any(spec.role == "ok" for spec in dataset.classes):
        yield Finding(
            "no_ok_class",
            "warning",
            "no class of good parts, so the bundle will never say pass; "
            f"name a folder {', '.join(sorted(OK_NAMES))}, or say which one it is with --ok",
        )
    for spec in dataset.classes:
        if spec.role == "defect" and role_of(spec.name) != "defect":
            yield Finding(
                "renamed_role",
                "warning",
                f"class {spec.name!r} counts as a defect, as --{role_of(spec.name)} names others; "
                f"add --{role_of(spec.name)} {spec.name} if it is not",
            )


def _counts(dataset: Dataset) -> Iterator[Finding]:
    counts = Counter({spec.name: 0 for spec in dataset.classes})
    for split in dataset.splits:
        of_split = dataset.counts(split)
        counts.update(of_split)
        if missing := [name for name, count in of_split.items() if not count]:
            yield Finding(
                "no_picture_to_judge",
                "warning",
                f"{split} has no picture of {_named(missing)}, so nothing can be said of it there; add some",
            )
    for name, count in sorted(counts.items(), key=lambda item: item[1]):
        if count < SMALL_CLASS:
            yield Finding(
                "small_class",
                "warning",
                f"class {name!r} has {_count(count, 'picture')}, fewer than {SMALL_CLASS}: "
                "figures on it mean little; collect more",
            )
    (most, many), (least, few) = counts.most_common()[0], counts.most_common()[-1]
    if few and many >= UNBALANCED * few:
        yield Finding(
            "unbalanced",
            "note",
            f"class {most!r} has {many} pictures, {least!r} has {few}; training weighs them, collect more of {least!r}",
        )


def _sizes(dataset: Dataset) -> Iterator[Finding]:
    sizes = Counter((look.width, look.height) for look in dataset.looks.values())
    (width, height), usual = sizes.most_common(1)[0]
    if len(sizes) == 1:
        return
    odd = tuple(name for name, look in dataset.looks.items() if (look.width, look.height) != (width, height))
    ratios = sorted(w / h for w, h in sizes)
    first = dataset.looks[odd[0]]
    sentence = (
        f"{len(sizes)} sizes: {usual} of {len(dataset.looks)} pictures are {width}x{height}, "
        f"{odd[0]} is {first.width}x{first.height}"
    )
    if ratios[-1] > _SAME_SHAPE * ratios[0]:
        yield Finding(
            "mixed_shapes", "warning", f"{sentence}; each is stretched to one shape: crop them as the ROI will", odd
        )
    else:
        yield Finding("mixed_sizes", "note", f"{sentence}; they are resized alike, as the line will do", odd)


def _blank(dataset: Dataset) -> Iterator[Finding]:
    blank = tuple(name for name, look in dataset.looks.items() if look.brightest - look.darkest <= _BLANK)
    if blank:
        verb = "show" if len(blank) > 1 else "shows"
        yield Finding(
            "blank",
            "warning",
            f"{_count(len(blank), 'picture')} {verb} nothing but one level of gray, as {blank[0]}; "
            "remove them, unless that is what the line sees",
            blank,
        )


def _dark(dataset: Dataset) -> Iterator[Finding]:
    dark = {
        name: look.brightest
        for name, look in dataset.looks.items()
        if look.sixteen_bit and look.brightest < _DARK_16_BIT
    }
    if dark:
        name = max(dark, key=lambda name: dark[name])
        yield Finding(
            "dark_16_bit",
            "warning",
            f"{_count(len(dark), '16-bit picture')} of less than an eighth of the range (the brightest {dark[name]} of "
            "255): most of the detail is lost in 8 bits; scale them up, all by one factor, as the camera's driver will",
            tuple(dark),
        )


def _equal(dataset: Dataset) -> Iterator[Finding]:
    """Across splits and classes they were refused."""
    by_content: dict[str, list[str]] = defaultdict(list)
    for sample in _samples(dataset):
        by_content[sample.sha256].append(sample.name)
    copies = [names for names in by_content.values() if len(names) > 1]
    if copies:
        extra = sum(len(names) - 1 for names in copies)
        yield Finding(
            "duplicates",
            "note",
            f"{_count(extra, 'picture')} equal to another, as {copies[0][0]} and {copies[0][1]}; "
            "they are kept together and count twice; remove the copies",
            tuple(name for names in copies for name in names),
        )


def _alike(dataset: Dataset) -> Iterator[Finding]:
    for label, spec in enumerate(dataset.classes):
        prints = [dataset.looks[sample.name].print for sample in _samples(dataset) if sample.label == label]
        if spec.name in dataset.chained or typical_rest(np.stack(prints)) < ALIKE:
            yield Finding(
                "alike",
                "warning",
                f"class {spec.name!r}: most pictures look like each other, so frames of one part cannot be told and "
                "may lie on both sides; if there are several of a part, tell parts by file name with --group-by",
            )


def _leaked(dataset: Dataset) -> Iterator[Finding]:
    if dataset.leaked:
        count = _count(len(dataset.leaked), "picture")
        yield Finding(
            "leakage",
            "warning",
            f"{count} of train/ or val/ left out because test/ or val/ has the same, or by --group-by the same part: "
            f"{_pairs(list(dataset.leaked))}; keep each in one split",
            tuple(left for left, _ in dataset.leaked),
        )


def _similar(dataset: Dataset) -> Iterator[Finding]:
    where: dict[str, Split] = {s.name: split for split, samples in dataset.splits.items() for s in samples}
    samples = {sample.name: sample for sample in _samples(dataset)}
    pairs = [(a, b) for a, b in dataset.similar if samples[a].sha256 != samples[b].sha256]
    across = [(a, b) for a, b in pairs if where[a] != where[b]]
    between = [(a, b) for a, b in pairs if samples[a].label != samples[b].label]
    within = [(a, b) for a, b in pairs if where[a] == where[b]]
    if across:
        yield Finding(
            "leakage",
            "warning",
            f"{_count(len(across), 'pair')} of near duplicates in two splits, as {_pairs(across)}: where they show the "
            "same part, the figures flatter the model; keep all pictures of a part in one split",
            _names(across),
        )
    if between:
        yield Finding(
            "look_alike_classes",
            "warning",
            f"{_count(len(between), 'pair')} of near duplicates in two classes, as {_pairs(between)}; "
            "check which label is right",
            _names(between),
        )
    if within:
        yield Finding(
            "near_duplicates",
            "note",
            f"{_count(len(within), 'pair')} of near duplicates kept on one side, as {_pairs(within)}; "
            "frames of the same part teach little that is new",
            _names(within),
        )


def _samples(dataset: Dataset) -> Iterator[Sample]:
    return (sample for samples in dataset.splits.values() for sample in samples)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _named(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{a} and {b}" for a, b in pairs[:2])


def _names(pairs: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for pair in pairs for name in pair))
