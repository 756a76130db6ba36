"""The sections of the settings. `config.example.toml` says what each key costs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from inspectd.frame import Box
from inspectd.source_spec import parse_source

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""Names end up in topics, metric labels and file names."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _endpoint(value: str) -> str:
    if not re.fullmatch(r"tcp://(\[[0-9a-fA-F:]+\]|[0-9A-Za-z.-]+|\*):(\d{1,5}|\*)|ipc://.+", value):
        raise ValueError("expected tcp://ADDRESS:PORT or ipc://PATH")
    if value.startswith("tcp://"):
        port = value.rpartition(":")[2]
        if port != "*" and int(port) > 65535:
            raise ValueError(f"port {port} is above 65535")
    return value


def _host_port(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("expected ADDRESS:PORT, for example 127.0.0.1:9108")
    return value


def is_local(endpoint: str) -> bool:
    """Whether only this machine can connect to an endpoint."""
    if endpoint.startswith("ipc://"):
        return True
    host = endpoint.removeprefix("tcp://").rpartition(":")[0]
    return host in ("localhost", "[::1]") or re.fullmatch(r"127\.\d+\.\d+\.\d+", host) is not None


Endpoint = Annotated[str, AfterValidator(_endpoint)]
HostPort = Annotated[str, AfterValidator(_host_port)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""In lower-case hex, whole: a prefix binds nothing."""


class ModelConfig(Section):
    bundle: Path
    sha256: Sha256 | None = None


class EngineConfig(Section):
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    precision: Literal["auto", "f32", "bf16", "fp16", "int8"] = "auto"
    max_batch_size: Annotated[int, Field(ge=1, le=64)] = 8
    max_wait_ms: Annotated[float, Field(ge=0, le=1000)] = 0
    threads: Annotated[int, Field(ge=0, le=256)] = 0


class PartConfig(Section):
    """A run of frames with something in view is one part, with one verdict on `part/<camera>/<roi>/`."""

    vote: Literal["any_defect", "n_of_m", "best_view"] = "any_defect"
    n: Annotated[int, Field(ge=1, le=1000)] = 2
    m: Annotated[int, Field(ge=1, le=1000)] = 3
    min_pass_frames: Annotated[int, Field(ge=1, le=10_000)] = 1
    enter_frames: Annotated[int, Field(ge=1, le=1000)] = 2
    leave_frames: Annotated[int, Field(ge=1, le=1000)] = 3
    max_s: Annotated[float, Field(gt=0, le=86400)] = 60

    @model_validator(mode="after")
    def _n_within_m(self) -> PartConfig:
        if self.n > self.m:
            raise ValueError(f"n is {self.n}, but there are only m = {self.m} frames to count in")
        return self


class RoiConfig(Section):
    name: Name
    box: tuple[int, int, int, int]
    model: Path | None = None
    model_sha256: Sha256 | None = None
    part: PartConfig | None = None

    @field_validator("box")
    @classmethod
    def _positive(cls, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        x, y, width, height = box
        if x < 0 or y < 0 or width < 8 or height < 8:
            raise ValueError(f"{list(box)} lies outside any frame: [x, y, width, height], x and y from 0, sides from 8")
        return box

    @model_validator(mode="after")
    def _binds_something(self) -> RoiConfig:
        if self.model_sha256 is not None and self.model is None:
            raise ValueError("model_sha256 binds `model`, which is not set; [model] sha256 binds [model] bundle")
        return self

    @property
    def area(self) -> Box:
        """The box in frame pixels."""
        return Box(*self.box)


class CameraConfig(Section):
    name: Name
    source: Annotated[str, Field(min_length=1, max_length=4096)]
    credentials_file: Path | None = None
    identity: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    transport: Literal["tcp", "udp"] = "tcp"
    size: tuple[Annotated[int, Field(ge=16, le=16384)], Annotated[int, Field(ge=16, le=16384)]] | None = None
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    pixel_format: Literal["auto", "mjpeg", "yuyv"] = "auto"
    controls: dict[str, int] = Field(default_factory=dict)
    max_fps: Annotated[float, Field(ge=0, le=1000)] = 0
    max_age_ms: Annotated[float, Field(gt=0, le=3_600_000)] = 500
    queue_size: Annotated[int, Field(ge=1, le=256)] = 4
    connect_timeout_s: Annotated[float, Field(gt=0, le=300)] = 5
    stall_timeout_s: Annotated[float, Field(gt=0, le=300)] = 3
    frozen_after_s: Annotated[float, Field(ge=0, le=86400)] = 10
    frozen_level: Annotated[float, Field(ge=0, le=16)] = 0
    quality: Path | None = None
    trigger: Literal["free_run", "command"] = "free_run"
    trigger_delay_ms: Annotated[float, Field(ge=0, le=60_000)] = 0
    rois: tuple[RoiConfig, ...] = Field(min_length=1)

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        parse_source(source)
        return source

    @model_validator(mode="after")
    def _consistent(self) -> CameraConfig:
        refuse_repeated([roi.name for roi in self.rois], "ROI")
        if self.identity is not None and parse_source(self.source).kind != "usb":
            raise ValueError(f"identity is known of USB cameras only; {self.name} is none")
        if self.triggered:
            if not self.live:
                raise ValueError(
                    f"trigger 'command' needs a live camera; {self.name} plays a recording: add realtime=1"
                )
            if self.max_fps:
                raise ValueError("max_fps means nothing with trigger 'command': only triggered frames are judged")
            if any(roi.part for roi in self.rois):
                raise ValueError("rois[].part counts parts in free run; with trigger 'command' each trigger is a part")
        return self

    @property
    def triggered(self) -> bool:
        """Whether frames are judged on command only."""
        return self.trigger == "command"

    @property
    def live(self) -> bool:
        """Live sources drop the oldest frames when the engine is late; recordings wait instead."""
        spec = parse_source(self.source)
        return spec.kind != "file" or spec.flag("realtime")


class DecisionConfig(Section):
    """Overrides of the bundle's thresholds; what is absent stays as the bundle has it."""

    pass_min: Annotated[float, Field(gt=0.5, le=1)] | None = None
    empty_min: Annotated[float, Field(gt=0.5, le=1)] | None = None
    fail_default: Annotated[float, Field(gt=0, le=1)] | None = None
    fail: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)


class PublishConfig(Section):
    bind: Endpoint = "tcp://127.0.0.1:5556"
    encoding: Literal["json", "msgpack"] = "json"
    send_queue: Annotated[int, Field(ge=1, le=1_000_000)] = 1000


class ControlConfig(Section):
    bind: Endpoint = "tcp://127.0.0.1:5557"


class SecurityConfig(Section):
    """Who may connect to the two sockets. Keys are ZeroMQ certificates (CURVE), `inspectd keys` makes them."""

    server_key: Path | None = None
    client_keys: Path | None = None
    insecure: bool = False

    @model_validator(mode="after")
    def _both(self) -> SecurityConfig:
        if (self.server_key is None) != (self.client_keys is None):
            raise ValueError("server_key and client_keys go together: one is set, the other is missing")
        return self


class JournalConfig(Section):
    """Every published verdict on disk, hash-chained."""

    path: Path | None = None
    sync: Literal["group", "before_publish"] = "group"
    commit_ms: Annotated[float, Field(ge=1, le=1000)] = 50
    required: bool = False
    max_rows: Annotated[int, Field(ge=1000, le=10_000_000_000)] = 10_000_000
    max_mb: Annotated[int, Field(ge=16, le=10_000_000)] = 4096

    @model_validator(mode="after")
    def _can_be_required(self) -> JournalConfig:
        if self.required and (self.path is None or self.sync != "before_publish"):
            raise ValueError('required = true needs a path, and sync = "before_publish"')
        return self


class EvidenceConfig(Section):
    """Pictures of what was judged."""

    dir: Path | None = None
    of: tuple[Literal["pass", "fail", "no_result"], ...] = ("fail", "no_result")
    format: Literal["png", "jpeg"] = "png"
    max_per_s: Annotated[float, Field(gt=0, le=1000)] = 10
    max_mb: Annotated[int, Field(ge=16, le=10_000_000)] = 4096


class GoldenPicture(Section):
    """A picture whose verdict is known: of the whole frame, or of exactly the region."""

    file: Path
    camera: Name
    roi: Name
    expect: Literal["pass", "fail", "no_result"]
    label: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class ChallengeConfig(Section):
    pictures: tuple[GoldenPicture, ...] = ()
    every_s: Annotated[float, Field(ge=0, le=31_536_000)] = 0


class RecipeRoi(RoiConfig):
    camera: Name


class RecipeConfig(Section):
    """What one product needs; what is absent stays as it is outside the recipes."""

    bundle: Path | None = None
    sha256: Sha256 | None = None
    decision: DecisionConfig | None = None
    rois: tuple[RecipeRoi, ...] = ()
    challenge: tuple[GoldenPicture, ...] | None = None

    @model_validator(mode="after")
    def _distinct_rois(self) -> RecipeConfig:
        refuse_repeated([f"{roi.camera}/{roi.name}" for roi in self.rois], "ROI")
        return self

    @model_validator(mode="after")
    def _binds_something(self) -> RecipeConfig:
        if self.sha256 is not None and self.bundle is None:
            raise ValueError(
                "sha256 binds `bundle`, which this recipe does not set; [model] sha256 binds the common one"
            )
        return self


class HttpConfig(Section):
    bind: HostPort = "127.0.0.1:9108"


class LogConfig(Section):
    format: Literal["auto", "json", "pretty"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


def refuse_repeated(names: list[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{what} name {name!r} is used twice; names must differ")
