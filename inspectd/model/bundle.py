"""The model bundle on disk: a directory with `bundle.json`, safetensors weights and deployable copies.

    bundle.json            what is in it, with the SHA-256 of every other file
    model.safetensors      the weights, for torch
    openvino/model.xml     fp16-compressed, run as bf16 or f32; uint8 NHWC in, logits or detections out
    openvino/model.bin
    openvino-int8/…        the same, quantised
    onnx/model.onnx

Nothing in it is ever unpickled; a file that is not listed, or whose hash differs, is refused.
torch is not imported here.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from inspectd.errors import BundleError
from inspectd.model.manifest import COPY_MODEL, Copy, Manifest

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
WEIGHTS = "model.safetensors"
MAX_MANIFEST_BYTES = 16_000_000
MAX_BYTES = 2_000_000_000
"""Of all files of a bundle; one with every copy has 200 MB. Beyond that, reading alone would take minutes."""

_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin.index", ".joblib")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle on disk. `sha256` identifies it: the hash of its manifest."""

    path: Path
    manifest: Manifest
    sha256: str

    @property
    def short_hash(self) -> str:
        """The prefix that verdicts carry."""
        return self.sha256[:12]

    @property
    def copies(self) -> tuple[Copy, ...]:
        """Deployable copies that this bundle carries."""
        return tuple(copy for copy, model in COPY_MODEL.items() if model in self.manifest.files)

    def copy_path(self, copy: Copy) -> Path:
        """The model file of a deployable copy.

        Raises:
            BundleError: the bundle has no such copy.
        """
        if copy not in self.copies:
            raise BundleError(f"{self.path}: has no {copy} copy; `inspectd train` writes one")
        return self.path / COPY_MODEL[copy]

    def read(self, name: str) -> bytes:
        """A file's content, hashed after it was read: what goes to work is what was verified, whatever is copied then.

        Raises:
            BundleError: it is not what the manifest says any more.
        """
        _check_place(self.path, name)
        try:
            content = (self.path / name).read_bytes()
        except OSError as err:
            raise BundleError(f"{self.path / name}: cannot be read: {err.strerror}") from err
        _check_hash(self.path, name, hashlib.sha256(content).hexdigest(), self.manifest.files[name])
        return content


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_bundle(path: Path, bound_to: str | None = None) -> Bundle:
    """Read and verify a bundle: format, manifest, and the hash of every file in it.

    `bound_to` is the SHA-256, in hex, that the manifest must have: with it nothing in the bundle can be another than
    whoever wrote down that hash has seen, not one bit of a threshold.

    Raises:
        BundleError: missing, of a newer format, with a pickle, changed since it was written, or not the one meant.
    """
    manifest_path = path / MANIFEST
    raw = _read_manifest(path, manifest_path)
    sha256 = hashlib.sha256(raw).hexdigest()
    if bound_to is not None and sha256 != bound_to:
        raise BundleError(
            f"{manifest_path}: SHA-256 is {sha256}, the configuration binds it to {bound_to}; "
            "the bundle was exchanged or edited: put the right one back, or bind the new one"
        )
    manifest = _parse_manifest(manifest_path, raw)
    _verify_files(path, manifest)
    return Bundle(path=path, manifest=manifest, sha256=sha256)


def _read_manifest(path: Path, manifest_path: Path) -> bytes:
    try:
        if not stat.S_ISREG(manifest_path.stat().st_mode):
            raise BundleError(f"{manifest_path}: is no plain file; copy the bundle again")
        with manifest_path.open("rb") as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
    except NotADirectoryError:
        raise BundleError(f"{path}: is a file; a bundle is a directory with {MANIFEST} in it") from None
    except FileNotFoundError:
        what = f"has no {MANIFEST}" if path.is_dir() else "no such bundle"
        raise BundleError(f"{path}: {what}; make one with: inspectd train DATA -o {path}") from None
    except OSError as err:
        raise BundleError(f"{manifest_path}: cannot be read: {err.strerror}") from err
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{manifest_path}: is longer than {MAX_MANIFEST_BYTES:,} bytes; make the bundle again")
    return raw


def _parse_manifest(manifest_path: Path, raw: bytes) -> Manifest:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        raise BundleError(f"{manifest_path}: is not JSON; the bundle is damaged, make it again") from None
    if not isinstance(data, dict):
        raise BundleError(f"{manifest_path}: is not a JSON object; the bundle is damaged, make it again")
    version = data.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{manifest_path}: has format {version}, this inspectd reads up to {FORMAT_VERSION}; upgrade inspectd"
        )
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(f"{manifest_path}: format_version is {version!r}, expected {FORMAT_VERSION}")
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "content"
        raise BundleError(f"{manifest_path}: {where}: {first['msg']}") from None


def _verify_files(root: Path, manifest: Manifest) -> None:
    if WEIGHTS not in manifest.files and not any(m in manifest.files for m in COPY_MODEL.values()):
        raise BundleError(f"{root / MANIFEST}: lists no model file")
    for copy, model in COPY_MODEL.items():
        if copy != "onnx" and model in manifest.files and f"{copy}/model.bin" not in manifest.files:
            raise BundleError(f"{root / MANIFEST}: lists {model} without {copy}/model.bin")
    present = _files_below(root)
    for name in present - set(manifest.files):
        if name.lower().endswith(_PICKLES):
            raise BundleError(f"{root / name}: pickled weights are never loaded; remove the file")
        if name == WEIGHTS or name.split("/")[0] in COPY_MODEL:
            raise BundleError(f"{root / name}: is not listed in {MANIFEST}; remove it or make the bundle again")
    size = 0
    for name, expected in manifest.files.items():
        size += _check_place(root, name)
        if size > MAX_BYTES:
            raise BundleError(f"{root / name}: with it the bundle has more than {MAX_BYTES:,} bytes; make it again")
        _verify_content(root, name, expected)


def _check_place(root: Path, name: str) -> int:
    """Whether a plain file of the bundle is meant, and its size in bytes."""
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or not parts or not name.isprintable():
        raise BundleError(f"{root / MANIFEST}: files: {name!r} lies outside the bundle")
    if name.lower().endswith(_PICKLES):
        raise BundleError(f"{root / name}: pickled weights are never loaded; export safetensors instead")
    if os.path.realpath(root / name) != str(Path(os.path.realpath(root), *parts)):
        raise BundleError(f"{root / name}: is a link; copy the bundle whole, with the files themselves")
    try:
        found = (root / name).stat()
    except FileNotFoundError:
        raise BundleError(f"{root / name}: missing, though {MANIFEST} lists it; copy the bundle whole") from None
    except OSError as err:
        raise BundleError(f"{root / name}: cannot be read: {err.strerror}") from err
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{root / name}: is no plain file; copy the bundle again")  # reading a pipe would block
    return found.st_size


def _verify_content(root: Path, name: str, expected: str) -> None:
    try:
        actual = file_sha256(root / name)
    except OSError as err:
        raise BundleError(f"{root / name}: cannot be read: {err.strerror}") from err
    _check_hash(root, name, actual, expected)


def _check_hash(root: Path, name: str, actual: str, expected: str) -> None:
    if actual != expected:
        raise BundleError(
            f"{root / name}: SHA-256 is {actual[:12]}…, {MANIFEST} says {expected[:12]}…; "
            "the file was changed or damaged, copy the bundle again"
        )


def _files_below(root: Path) -> set[str]:
    found = {(Path(folder) / name).relative_to(root).as_posix() for folder, _, names in os.walk(root) for name in names}
    return found - {MANIFEST, f".{MANIFEST}.new"}


def write_manifest(root: Path, manifest: Manifest) -> Bundle:
    """Hash every file below `root`, write `bundle.json` last and atomically, and return the bundle.

    `manifest.files` is replaced by what is there. Until the new manifest is in place the old one no
    longer fits, so a half-written bundle is refused instead of served.
    """
    files = {name: file_sha256(root / name) for name in sorted(_files_below(root))}
    final = manifest.model_copy(update={"files": files})
    # A classifier's manifest stays readable for those who know no detectors.
    unused = {name for name in ("detector", "float32") if not getattr(final, name)}
    text = final.model_dump_json(indent=2, exclude=unused) + "\n"
    temporary = root / f".{MANIFEST}.new"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(root / MANIFEST)
    return load_bundle(root)
