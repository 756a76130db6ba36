"""What a bundle says of itself, `bundle.json`: classes, operating point, what a detector is built from, files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inspectd.model.preprocess import PreprocessSpec

Role = Literal["ok", "defect", "empty"]
Copy = Literal["openvino", "openvino-int8", "onnx"]
"""A deployable copy of the model: the name of its directory in the bundle."""

COPY_MODEL: dict[Copy, str] = {
    "openvino": "openvino/model.xml",
    "openvino-int8": "openvino-int8/model.xml",
    "onnx": "onnx/model.onnx",
}


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
