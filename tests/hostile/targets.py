"""What reads data from outside, as fuzz targets: bytes in, nothing out, and an exception where there must be none.

`fuzz.py` drives them with coverage; the default suite gives each some broken seeds.
"""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from colour_bundle import colour_bundle
from journal_kit import BOOT, TOPIC, body, write
from media import access_units, write_clip

from inspectd.capture.h264 import Continuity
from inspectd.config import DecisionConfig, load_settings
from inspectd.errors import BundleError, ConfigError, InspectdError
from inspectd.frame import Box
from inspectd.model.bundle import MANIFEST, load_bundle
from inspectd.verdict.control import _body, _named
from inspectd.verdict.control_schema import ControlError, ReplayPage, ReplayRequest, parse_request
from inspectd.verdict.decide import Decider
from inspectd.verdict.journal.export import Selection, export
from inspectd.verdict.journal.replay import ReplayDesk, _Waiting
from inspectd.verdict.journal.verify import verify

REPOSITORY = Path(__file__).parents[2]
_AREA = Box(0, 0, 32, 32)


@dataclass(frozen=True)
class Target:
    """`check` takes any bytes. `seeds` are good ones to begin from, `words` what belongs into them."""

    check: Callable[[bytes], None]
    seeds: list[bytes]
    words: tuple[str, ...] = ()


def configuration(folder: Path) -> Target:
    """The configuration file: settings, or one line."""
    path = folder / "inspectd.toml"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        try:
            settings = load_settings(path, {})
        except ConfigError as err:
            one_line(err)
            return
        assert len(settings.sha256) == 64
        for name in (None, *settings.recipes):
            assert settings.with_recipe(name).bundles

    example = (REPOSITORY / "config.example.toml").read_text()
    bare = "\n".join(line for line in example.splitlines() if not line.lstrip().startswith("#"))
    shown = "\n".join(line.lstrip("# ") for line in example.splitlines() if " = " in line or "[" in line[:4])
    small = (
        '[model]\nbundle="b"\n[[cameras]]\nname="a"\nsource="usb:0"\n[[cameras.rois]]\nname="r"\nbox=[0,0,9,9]\n'
        '[recipes.x]\nbundle="c"\n[security]\ninsecure=true\n[publish]\nbind="tcp://0.0.0.0:5556"\n'
    )
    words = ("rtsp://u:p@h/", "usb:/dev/v4l/by-id/x", "file:a?loop=1", "conveyor:?fps=9", "[[cameras]]", "[recipes.a]")
    keys = tuple(line.split(" = ")[0].strip("# ") for line in example.splitlines() if " = " in line)
    return Target(check, [bare.encode(), shown.encode(), small.encode()], words + keys)


def manifest(folder: Path) -> Target:
    """`bundle.json`: a bundle that can be decided by, or one line."""
    if not (folder / "bundle").exists():
        colour_bundle(folder / "bundle")
    good = (folder / "bundle" / MANIFEST).read_bytes()
    junk = np.array([np.nan, np.inf, 0, 0], np.float32)

    def check(data: bytes) -> None:
        (folder / "bundle" / MANIFEST).write_bytes(data)
        try:
            bundle = load_bundle(folder / "bundle")
        except BundleError as err:
            one_line(err)
            return
        assert set(bundle.manifest.files) >= {"openvino/model.bin", "openvino/model.xml"}
        decider = Decider(bundle.manifest, DecisionConfig())
        for scores in (junk, np.full(bundle.manifest.output_shape, np.nan, np.float32)):
            assert decider.decide(scores, _AREA).verdict != "pass"

    return Target(check, [good], ("NaN", "Infinity", "1e999", "\\ud800", "detect", "../", "resnet18", "score_floor"))


def control(folder: Path) -> Target:
    """A request on the control socket: understood, or one coded line; the reply is JSON in any case."""

    def check(data: bytes) -> None:
        op, number, camera = _named(data)
        try:
            request = parse_request(data)
        except ControlError as err:
            reply = _body(op, number, err)
        else:
            assert (op, number, camera) == (request.op, request.id, getattr(request, "camera", ""))
            reply = _body(request.op, request.id, request)
        assert isinstance(json.loads(reply)["ok"], bool)
        assert b"\n" not in reply

    requests: list[dict[str, Any]] = [
        {"op": "trigger", "camera": "a", "part_id": "p", "deadline_ms": 100, "id": 1},
        {"op": "replay", "topic": TOPIC, "from_seq": 1, "boot_id": BOOT, "limit": 9, "id": "x"},
        {"op": "recipe", "name": None},
        *({"op": op} for op in ("status", "reload", "challenge")),
    ]
    return Target(check, [json.dumps(request).encode() for request in requests], ("op", "id", "-0", "1e400", "NaN"))


def journal(folder: Path) -> Target:
    """A journal's file: replayed, verified and exported, or said to be unreadable.

    The first byte chooses: the rest is the body of a row, SQL values of one row, or bytes put into the file.
    """
    template, path = folder / "template.db", folder / "journal.db"
    if not template.exists():
        told = b'{"rows": 2, "first_at": "a", "last_at": "b", "messages": {"x": [[3, 4]]}, "others": {}}'
        entries = [("boot", None, None, b"{}"), ("lost", None, None, told)]
        write(template, BOOT, [*entries, *(("message", TOPIC, seq, body(seq)) for seq in range(1, 30))])
    whole = template.read_bytes()

    def check(data: bytes) -> None:
        for beside in ("-wal", "-shm"):
            (folder / f"journal.db{beside}").unlink(missing_ok=True)
        spoil(data[:1], data[1:])
        _read_everything(path)

    def spoil(how: bytes, rest: bytes) -> None:
        if how < b"\x55":
            at = int.from_bytes(rest[:3], "big") % len(whole)
            path.write_bytes(whole[:at] + rest[3:] + whole[at + len(rest) - 3 :])
            return
        shutil.copyfile(template, path)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("PRAGMA synchronous = OFF")
            kind = "message" if how < b"\xaa" else "lost"
            connection.execute("UPDATE rows SET body = ? WHERE kind = ?", (rest, kind))

    seeds = [b"\0\0\1\0" + bytes(20), b"\0\0\x30\x40\x09\x81", b"\x60" + body(1), b"\xf0" + b'{"rows": 1e999}']
    deep = b"\xf0" + b"[" * 2000
    return Target(check, [*seeds, deep], ("messages", "first_at", "1e999", "\\ud800", "[[", "\x83", "\xc1"))


def h264(folder: Path) -> Target:
    """Headers of H.264: they say something or nothing, quickly."""
    clip = folder / "seed.mp4"
    if not clip.exists():
        write_clip(clip, 3, size=(160, 96), options={"x264-params": "keyint=2:scenecut=0:tff=1"})
    units = [unit["data"][:400] for unit in access_units(clip)]

    def check(data: bytes) -> None:
        extradata, unit = data[: data[0]] if data else b"", data[1:]
        for follow in (Continuity(extradata or None), Continuity(b"\1\x64\0\x1f\xff\xe1\0\0")):
            for _ in range(2):
                lost, clean = follow.follow(unit)
                assert isinstance(lost, bool)
                assert clean is None or clean >= 0

    return Target(check, [bytes([len(units[0]) % 256]) + units[0] + unit for unit in units])


def weights(folder: Path) -> Target:
    """The header of a safetensors file: tensors that fit, or one line. Only here torch is needed."""
    from hostile import weights as suite

    suite.prepare(folder)
    files = {"network": folder / "whole.safetensors", "checkpoint": folder / "whole.run" / "last.safetensors"}
    whole = [path.read_bytes() for path in files.values()]
    header_ends = [8 + int.from_bytes(data[:8], "little") for data in whole]

    def check(data: bytes) -> None:
        for reader, good, end in zip(files, whole, header_ends, strict=True):
            for length in (data[:8], (len(data) - 8).to_bytes(8, "little") if len(data) > 8 else b""):
                suite.refusal(reader, folder, length + data[8:] + good[end:])

    seeds = [data[:end] for data, end in zip(whole, header_ends, strict=True)]
    return Target(check, seeds, ("dtype", "data_offsets", "F32", "I64", "__metadata__", "shape", "best_key"))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "configuration": configuration,
    "manifest": manifest,
    "control": control,
    "journal": journal,
    "h264": h264,
    "weights": weights,
}


def one_line(err: InspectdError) -> None:
    assert str(err).isprintable(), repr(str(err))


def _read_everything(path: Path) -> None:
    answers: list[ReplayPage | ControlError] = []
    desk = ReplayDesk(path, "this boot", lambda _: True)
    for topic, boot in ((TOPIC, BOOT), (TOPIC, None), ("x", BOOT)):
        request = ReplayRequest(op="replay", topic=topic, from_seq=1, boot_id=boot)
        desk._serve(_Waiting(request, answers.append))
    for answer in answers:
        assert not isinstance(answer, ControlError) or answer.code in ("journal_failing", "unknown_boot"), answer
    for read in (verify, lambda path: [export(path, io.StringIO(), form, Selection()) for form in ("csv", "jsonl")]):
        try:
            read(path)
        except InspectdError as err:
            one_line(err)
