"""Damaged and malicious safetensors files, through whatever reads one: the CUDA engine's network, weights to start
training from, and the checkpoints of an unfinished run.

What is asked of every case: a refusal in one line, or tensors that fit; never another exception, a crash, a hang or a
flood of memory. A header may lie about every length, place, type and shape, twice and a million brackets deep.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hostile.bundles import one_line
from hostile.bytes_kit import HUGE, broken
from torch import nn

from inspectd.errors import InspectdError
from inspectd.model.network import _read_state, load_weights, save_weights
from inspectd.workshop.checkpoint import Position, RunFolder

IDENTITY = {"data": "abc", "options": {"epochs": 3}}
WAYS = ("bytes", "length", "value", "values", "overlap", "double key", "deep", "names", "metadata", "shape", "type")
READERS = ("network", "start", "checkpoint")

Header = dict[str, Any]


def prepare(folder: Path) -> Callable[[int], dict[str, Any]]:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    network = small()
    save_weights(network, folder / "whole.safetensors")
    run = RunFolder(folder / "whole.run", IDENTITY)
    state = network.state_dict()
    run.save_best(state)
    run.save(Position(epochs_done=2, steps_done=20, best_epoch=1, best_key=(0.5, 0.25)), state)
    files = {
        "network": folder / "whole.safetensors",
        "start": folder / "whole.safetensors",
        "checkpoint": run.path / "last.safetensors",
    }
    return partial(run_one, {name: path.read_bytes() for name, path in files.items()}, folder)


def small() -> nn.Module:
    """The layers of the real one that a file can be wrong about."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def run_one(files: dict[str, bytes], folder: Path, seed: int) -> dict[str, Any]:
    random_ = random.Random(f"weights {seed}")
    reader = READERS[seed % len(READERS)]
    way = random_.choice(WAYS)
    result = {"reader": reader, "way": way}
    data = mutate(files[reader], way, random_)
    why = refusal(reader, folder, data)
    return {**result, "outcome": "fits" if why is None else "refused", "why": why}


def refusal(reader: str, folder: Path, data: bytes) -> str | None:
    """Why it is refused, in one line; None where it is read."""
    try:
        read(reader, folder, data)
    except InspectdError as err:
        return one_line(err)
    return None


def read(reader: str, folder: Path, data: bytes) -> None:
    """As the product reads it."""
    match reader:
        case "network":
            path = folder / "model.safetensors"
            path.write_bytes(data)
            network = small()
            load_weights(network, path)
            assert all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())
        case "start":
            path = folder / "start.safetensors"
            path.write_bytes(data)
            assert all(isinstance(tensor, torch.Tensor) for tensor in _read_state(path).values())
        case "checkpoint":
            path = folder / "broken.run" / "last.safetensors"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            position, tensors = RunFolder(path.parent, IDENTITY).load()
            assert isinstance(position, Position)
            assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


# -- damage ---------------------------------------------------------------------------------------------

NUMBERS = (0, -1, 1, 2, 3, 7, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**64 - 1, 2**64, 10**40, 0.5, True)
OTHERS = (None, "", "x", [], {}, [[]], [1, 2, 3], "a\nb", "\ud800", "9" * 5000)
TYPES = (
    "F32",
    "F64",
    "F16",
    "BF16",
    "I64",
    "I8",
    "U8",
    "U16",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "C64",
    "f32",
    "O",
    "",
)


def mutate(data: bytes, way: str, random_: random.Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header: Header = json.loads(data[8 : 8 + size])
    body = data[8 + size :]
    if way == "bytes":  # in the header, where it matters most
        return broken(data, random_)[1] if random_.random() < 0.3 else broken(data[: 8 + size], random_)[1] + body
    if way == "length":
        lengths = (0, 1, size - 1, size + 1, len(data), 100_000_001, *(int.from_bytes(each, "little") for each in HUGE))
        return random_.choice((*lengths, 2**63, 2**64 - 1)).to_bytes(8, "little") + data[8:]
    if way in ("double key", "deep", "names"):
        return whole(text(header, way, random_), body)
    change(header, way, random_)
    return whole(json.dumps(header).encode(), body)


def whole(header: bytes, body: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def text(header: Header, way: str, random_: random.Random) -> bytes:
    """A header that no JSON library writes."""
    written = json.dumps(header)
    name = random_.choice([name for name in header if name != "__metadata__"])
    entry = json.dumps(header[name])
    match way:
        case "double key":
            twice = entry.replace("[", "[1, ", 1) if random_.random() < 0.5 else entry
            written = written[:-1] + f', "{name}": {twice}}}'
        case "deep":
            depth = random_.choice((100, 200, 100_000, 3_000_000))
            deep = random_.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth))
            written = written[:-1] + f', "deep": {deep}}}'
        case "names":
            other = random_.choice(
                ("", "a\\nb", "\\u0000", "x" * 1_000_000, "../../etc/passwd", "__metadata__", "\\ud800")
            )
            written = written.replace(f'"{name}"', f'"{other}"', 1)
    return written.encode()


def change(header: Header, way: str, random_: random.Random) -> None:
    names = [name for name in header if name != "__metadata__"]
    entry = header[random_.choice(names)]
    match way:
        case "value" | "values":
            for _ in range(1 if way == "value" else 4):
                key = random_.choice(("dtype", "shape", "data_offsets"))
                place = (
                    entry[key] if isinstance(entry.get(key), list) and entry[key] and random_.random() < 0.6 else entry
                )
                at = random_.randrange(len(place)) if isinstance(place, list) else key
                place[at] = random_.choice(NUMBERS + OTHERS)
        case "overlap":
            entry["data_offsets"] = list(header[random_.choice(names)]["data_offsets"])
        case "metadata":
            kept = header.get("__metadata__") or {"format": "pt"}
            key = random_.choice([*kept, "other"])
            header["__metadata__"] = {**kept, key: random_.choice([*OTHERS, "[" * 100_000, "{}", '{"best_key": 7}', 7])}
        case "shape":
            shape = entry["shape"]
            entry["shape"] = random_.choice(
                ([2**32, 2**32], [0, *shape], [*shape, 1], shape[::-1], [1] * 2000, [2**62, 4])
            )
        case "type":
            entry["dtype"] = random_.choice(TYPES)
