"""The model bundle: a directory with `bundle.json`, safetensors weights and deployable copies.

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
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inspectd.errors import BundleError
from inspectd.model.preprocess import PreprocessSpec

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
WEIGHTS = "model.safetensors"
MAX_MANIFEST_BYTES = 16_000_000
MAX_BYTES = 2_000_000_000
"""Of all files of a bundle; one with every copy has 200 MB. Beyond that, reading alone would take minutes."""

Role = Literal["ok", "defect", "empty"]
Copy = Literal["openvino", "openvino-int8", "onnx"]
"""A deployable copy of the model: the name of its directory in the bundle."""

COPY_MODEL: dict[Copy, str] = {
    "openvino": "openvino/model.xml",
    "openvino-int8": "openvino-int8/model.xml",
    "onnx": "onnx/model.onnx",
}
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin.index", ".joblib")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassSpec(_Strict):
    """One output of the network, in the order of the logits; of a detector, in the order of its labels."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_. -]*$")
    role: Role


class Thresholds(_Strict):
    """The operating point, on calibrated probabilities.

    A crop fails when any defect class reaches its `fail` threshold (`fail_default` where none is
    given). Else it passes when the ok classes together reach `pass_min` and the top class is one of them.
    Else, when that holds of the empty classes and `empty_min`, there is no part. Everything between is
    `uncertain`.

    A detector's crop fails when any defect box reaches its class's `fail`. Else it passes when no box reaches
    `1 - pass_min`, else it is `uncertain`; `empty_min` means nothing to it.

    `inspectd.verdict.decide` is the rule; nothing else repeats it.
    """

    pass_min: float = Field(0.8, gt=0.5, le=1.0)
    fail_default: float = Field(0.5, gt=0.0, le=1.0)
    fail: dict[str, float] = Field(default_factory=dict)
    empty_min: float = Field(0.8, gt=0.5, le=1.0)

    @model_validator(mode="after")
    def _fractions(self) -> Thresholds:
        for name, value in self.fail.items():
            if not 0.0 < value <= 1.0:
                raise ValueError(f"fail.{name} is {value}, but a threshold lies above 0 and at most at 1")
        return self


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class DetectorSpec(_Strict):
    """What a detector is built from beyond its classes, and what its one output means.

    Output `detections`, float32 [batch, max_detections, 6]: left, top, right, bottom in network-input pixels,
    score in 0..1, label (index of the class). Strongest first; rows behind the last box are 0 with label -1.
    """

    strides: tuple[Literal[4, 8, 16, 32], ...] = Field(min_length=1)
    """Input pixels per step of each level of the feature pyramid, finest first."""
    anchor_sizes: tuple[tuple[_Positive, ...], ...]
    """Per level, in network-input pixels: the square root of each anchor's area."""
    aspect_ratios: tuple[_Positive, ...] = Field(min_length=1)
    """Height over width, of every size."""
    channels: int = Field(128, ge=16, le=256)
    """Of each level of the feature pyramid."""
    head_width: int = Field(256, ge=16, le=1024)
    """Of the layers that judge one proposal."""
    proposals: int = Field(200, ge=10, le=1000)
    """Regions per picture that the second stage looks at."""
    max_detections: int = Field(100, ge=1, le=300)
    score_floor: float = Field(0.02, gt=0.0, lt=0.5)
    """Boxes below it are not given out, so no `pass_min` above `1 - score_floor` can be kept."""
    nms_iou: float = Field(0.5, gt=0.0, lt=1.0)
    """Of two boxes of one class that overlap more, the weaker is dropped."""

    @model_validator(mode="after")
    def _levels(self) -> DetectorSpec:
        if list(self.strides) != sorted(set(self.strides)):
            raise ValueError("strides are not in rising order")
        if len(self.anchor_sizes) != len(self.strides) or not all(self.anchor_sizes):
            raise ValueError(f"anchor_sizes needs one or more sizes for each of the {len(self.strides)} levels")
        if len({len(sizes) for sizes in self.anchor_sizes}) != 1:
            raise ValueError("anchor_sizes needs as many sizes at one level as at another")
        return self


class Manifest(_Strict):
    """The content of `bundle.json`."""

    format_version: int
    task: Literal["classify", "detect"] = "classify"
    architecture: Literal["resnet18", "fasterrcnn_resnet18_fpn"]
    created_at: str = ""
    created_by: str = ""
    classes: tuple[ClassSpec, ...] = Field(min_length=2)
    preprocess: PreprocessSpec
    detector: DetectorSpec | None = None
    temperature: float = Field(1.0, gt=0.0, le=100.0)
    thresholds: Thresholds = Thresholds()
    metrics: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    """Data fingerprint, seed, arguments: how the weights came to be."""
    float32: tuple[Copy, ...] = ()
    """Copies that passed their gate with float32 only, as bf16 failed it or the processor had none; they run so
    everywhere."""
    files: dict[str, str]
    """Relative POSIX path -> SHA-256 in hex, of every file but `bundle.json` itself."""

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        names = [c.name for c in self.classes]
        if len(set(names)) != len(names):
            raise ValueError("two classes have the same name")
        unknown = sorted(set(self.thresholds.fail) - {c.name for c in self.classes if c.role == "defect"})
        if unknown:
            raise ValueError(f"thresholds.fail names {unknown[0]!r}, which is no defect class")
        if not any(c.role == "defect" for c in self.classes):
            raise ValueError("no class has the role 'defect'")
        if self.task == "detect":
            self._check_detector()
        elif self.architecture != "resnet18" or self.detector is not None:
            raise ValueError("task is 'classify', but architecture and detector are those of a detector")
        return self

    def _check_detector(self) -> None:
        if self.architecture != "fasterrcnn_resnet18_fpn" or self.detector is None:
            raise ValueError("task is 'detect', which needs architecture 'fasterrcnn_resnet18_fpn' and detector")
        if [c.role for c in self.classes] != ["ok"] + ["defect"] * (len(self.classes) - 1):
            raise ValueError("a detector's first class is what has no defect (role 'ok'), and all others are defects")
        if self.thresholds.pass_min > 1 - self.detector.score_floor:
            raise ValueError(
                f"thresholds.pass_min is {self.thresholds.pass_min}, but boxes below {self.detector.score_floor} "
                "are not given out"
            )

    @property
    def output_shape(self) -> tuple[int, ...]:
        """What the network gives for one picture: logits [classes], or detections [max_detections, 6]."""
        return (len(self.classes),) if self.detector is None else (self.detector.max_detections, 6)


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
