"""Damaged and malicious bundles, through `load_bundle` and the engine that `make_engine` builds.

What is asked of every case: a refusal in one line, or the very bundle that was made, or, where the hashes were made to
fit, a model that runs; never another exception, a crash, a hang or a flood of memory.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from colour_bundle import colour_bundle
from hostile.bytes_kit import broken
from square_bundle import square_bundle

from inspectd.config import EngineConfig
from inspectd.engine.base import Slot
from inspectd.engine.select import make_engine
from inspectd.errors import InspectdError
from inspectd.model.bundle import MANIFEST, Bundle, file_sha256, load_bundle

CPU = EngineConfig(device="cpu", precision="f32", threads=1)
FAMILIES = {"bytes": 3, "manifest": 3, "path": 2, "size": 1, "file kind": 1, "model": 4, "model bytes": 2}
"""What is done, and how often of 16 times. From `model` on the hashes are made to fit."""

Mutation = Callable[[Path, random.Random], str]


def prepare(folder: Path) -> Callable[[int], dict[str, Any]]:
    originals = []
    for name, make in (("colour", colour_bundle), ("square", square_bundle)):
        path = folder / name
        if not path.exists():
            make(path)
        bundle = load_bundle(path)
        originals.append((bundle, engine_scores(bundle)))
    return partial(run, originals, folder / "broken")


def run(originals: list[tuple[Bundle, np.ndarray]], path: Path, seed: int) -> dict[str, Any]:
    random_ = random.Random(f"bundle {seed}")
    original, truth = originals[seed % len(originals)]
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(original.path, path)
    family = random_.choices(list(FAMILIES), FAMILIES.values())[0]
    way = MUTATIONS[family](path, random_)
    changed = MANIFEST if family in ("manifest", "path") or way.startswith(MANIFEST) else "another file"
    result = {"family": family, "way": way, "changed": changed}
    try:
        bundle = load_bundle(path)
    except InspectdError as err:
        return {**result, "outcome": "refused", "why": one_line(err)}
    same = bundle.manifest == original.manifest
    try:
        scores = engine_scores(bundle)
    except InspectdError as err:
        return {**result, "outcome": "no engine", "same": same, "why": one_line(err)}
    return {**result, "outcome": "runs", "same": same and np.array_equal(scores, truth, equal_nan=True)}


def engine_scores(bundle: Bundle) -> np.ndarray:
    """One batch through the engine that the daemon would make: float32 [1, *output_shape]."""
    engine = make_engine(bundle, CPU)
    try:
        memory = engine.allocate(2)
        engine.warm_up()
        memory[:] = np.random.default_rng(1).integers(0, 256, memory.shape, np.uint8)
        engine.submit([Slot(0, memory[0])], lambda slots: None)
        return engine.collect()
    finally:
        engine.close()


def one_line(err: Exception) -> str:
    assert "\n" not in str(err), "more than one line"
    assert str(err).isprintable(), "not printable"
    return str(err)


# -- what is done to a bundle ----------------------------------------------------------------------------

NUMBERS = (0, -1, 1, 1e999, -1e999, float("nan"), 1e-320, 2**31, 2**63, 10**30, 0.5, 1 + 1e-12, True)
OTHERS = (None, "", "x", [], {}, [[]], "\u0000", "a\nb", "\ud800", "9" * 5000, [None] * 1000, {"a\nb": 1})
NAMES = (
    "../evil.bin", "/etc/passwd", "openvino/../../evil", ".", "", "..", "a" * 300, "a/" * 2000 + "b", "a\0b", "a\nb",
    "~root", "openvino", "model.pt", "x.PKL", "C:\\evil", "\u202efdp.nib", "\ud800", "bundle.json",
    "openvino/model.bin/x",
)  # fmt: skip


def _bytes(path: Path, random_: random.Random) -> str:
    file = random_.choice(_files(path))
    way, data = broken(file.read_bytes(), random_)
    file.write_bytes(data)
    return f"{file.name}: {way}"


def _manifest(path: Path, random_: random.Random) -> str:
    data = json.loads((path / MANIFEST).read_text())
    places = list(_places(data))
    for _ in range(random_.choice((1, 1, 2, 4))):
        parent, key = random_.choice(places)
        match random_.randrange(5):
            case 0 if isinstance(parent, dict):
                parent.pop(key, None)
            case 1 if isinstance(parent, dict):
                parent[random_.choice(("a\nb", "", "fail", "__class__", "\ud800"))] = random_.choice(OTHERS)
            case 2 if isinstance(parent, list):
                parent += parent * random_.choice((1, 50))
            case _:
                parent[key] = random_.choice(NUMBERS + OTHERS)
    text = json.dumps(data)
    if random_.random() < 0.15:
        depth = random_.choice((100, 1000, 100_000))
        text = text.replace("{}", '{"a":' + "[" * depth + "]" * depth + "}", 1)
    (path / MANIFEST).write_text(text)
    return "other values"


def _path(path: Path, random_: random.Random) -> str:
    data = json.loads((path / MANIFEST).read_text())
    name = random_.choice(NAMES)
    if random_.random() < 0.5:
        data["files"][name] = random_.choice(list(data["files"].values()))
    else:
        old = random_.choice(list(data["files"]))
        data["files"][name] = data["files"].pop(old)
    (path / MANIFEST).write_text(json.dumps(data))
    return f"a file called {name[:20]!r}"


def _size(path: Path, random_: random.Random) -> str:
    """Files of a size that they say and do not have: nothing is on the disk."""
    file = random_.choice(_files(path))
    size = random_.choice((0, 1 << 24, 1 << 33, 1 << 42))
    os.truncate(file, size)
    return f"{file.name} of {size} bytes"


def _file_kind(path: Path, random_: random.Random) -> str:
    file = random_.choice(_files(path))
    kind = random_.choice(("pipe", "folder", "link out", "link to itself", "device", "linked folder", "no rights"))
    if kind == "no rights":
        file.chmod(0)
        return f"{file.name}: {kind}"
    if kind == "linked folder":  # the folder of a model is a link
        shutil.move(path / "openvino", path.parent / "elsewhere")
        (path / "openvino").symlink_to(path.parent / "elsewhere")
        shutil.rmtree(path.parent / "elsewhere.old", ignore_errors=True)
        shutil.move(path.parent / "elsewhere", path.parent / "elsewhere.old")
        return "the folder is a dangling link"
    file.unlink()
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
        case "link out":
            file.symlink_to("/etc/hostname")
        case "link to itself":
            file.symlink_to(file.name)
        case "device":
            file.symlink_to("/dev/zero")
    return f"{file.name}: {kind}"


def _model(path: Path, random_: random.Random) -> str:
    """The network's description, changed as text: sizes, types, names, edges."""
    file = path / "openvino" / "model.xml"
    text = file.read_text()
    tokens = [at for at, character in enumerate(text) if character == '"']
    for _ in range(random_.choice((1, 1, 3))):
        index = random_.randrange(0, len(tokens) - 1, 2)
        start, end = tokens[index] + 1, tokens[index + 1]
        other = random_.randrange(0, len(tokens) - 1, 2)
        value = random_.choice(
            ("0", "-1", "999999999", "4294967296", "18446744073709551615", "", "f16", "i64", "1,1,1,1", "?", "\u00e9",
             text[tokens[other] + 1 : tokens[other + 1]])
        )  # fmt: skip
        text = text[:start] + value + text[end:]
        tokens = [at for at, character in enumerate(text) if character == '"']
    file.write_text(text)
    _fit_hashes(path)
    return "other attributes, hashes that fit"


def _model_bytes(path: Path, random_: random.Random) -> str:
    file = path / "openvino" / random_.choice(("model.xml", "model.bin"))
    way, data = broken(file.read_bytes(), random_)
    file.write_bytes(data)
    _fit_hashes(path)
    return f"{file.name}: {way}, hashes that fit"


MUTATIONS: dict[str, Mutation] = {
    "bytes": _bytes,
    "manifest": _manifest,
    "path": _path,
    "size": _size,
    "file kind": _file_kind,
    "model": _model,
    "model bytes": _model_bytes,
}


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def _fit_hashes(path: Path) -> None:
    data = json.loads((path / MANIFEST).read_text())
    data["files"] = {name: file_sha256(path / name) for name in data["files"]}
    (path / MANIFEST).write_text(json.dumps(data))


def _places(value: Any) -> list[tuple[Any, Any]]:
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found.append((value, key))
        found += _places(inner)
    return found
