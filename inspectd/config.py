"""The settings: one frozen model, loaded once from TOML, environment and secret files.

Nothing below this module reads the environment. `config.example.toml` explains every key.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from inspectd.errors import ConfigError
from inspectd.frame import Box
from inspectd.source_spec import parse_source, redact

ENV_PREFIX = "INSPECTD__"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""Names end up in topics, metric labels and file names."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _endpoint(value: str) -> str:
    if not re.fullmatch(r"tcp://(\[[0-9a-fA-F:]+\]|[0-9A-Za-z.-]+|\*):(\d{1,5}|\*)|ipc://.+", value):
        raise ValueError("expected tcp://ADDRESS:PORT or ipc://PATH")
    if value.startswith("tcp://"):
        host, _, port = value[len("tcp://") :].rpartition(":")
        _require_loopback(host)
        if port != "*" and int(port) > 65535:
            raise ValueError(f"port {port} is above 65535")
    return value


def _host_port(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("expected ADDRESS:PORT, for example 127.0.0.1:9108")
    return value


def _require_loopback(host: str) -> None:
    if host not in ("localhost", "[::1]") and not re.fullmatch(r"127\.\d+\.\d+\.\d+", host):
        raise ValueError(f"{host} is not a loopback address; anybody could read the stream, bind 127.0.0.1")


Endpoint = Annotated[str, AfterValidator(_endpoint)]
HostPort = Annotated[str, AfterValidator(_host_port)]


class ModelConfig(_Section):
    bundle: Path


class EngineConfig(_Section):
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    precision: Literal["auto", "f32", "bf16", "fp16", "int8"] = "auto"
    max_batch_size: Annotated[int, Field(ge=1, le=64)] = 8
    max_wait_ms: Annotated[float, Field(ge=0, le=1000)] = 0
    threads: Annotated[int, Field(ge=0, le=256)] = 0


class RoiConfig(_Section):
    name: Name
    box: tuple[int, int, int, int]
    model: Path | None = None

    @field_validator("box")
    @classmethod
    def _positive(cls, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        x, y, width, height = box
        if x < 0 or y < 0 or width < 8 or height < 8:
            raise ValueError(f"{list(box)} lies outside any frame: [x, y, width, height], x and y from 0, sides from 8")
        return box

    @property
    def area(self) -> Box:
        """The box in frame pixels."""
        return Box(*self.box)


class CameraConfig(_Section):
    name: Name
    source: Annotated[str, Field(min_length=1, max_length=4096)]
    credentials_file: Path | None = None
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
    trigger: Literal["free_run"] = "free_run"
    rois: tuple[RoiConfig, ...] = Field(min_length=1)

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        parse_source(source)
        return source

    @model_validator(mode="after")
    def _distinct_rois(self) -> CameraConfig:
        _refuse_repeated([roi.name for roi in self.rois], "ROI")
        return self

    @property
    def live(self) -> bool:
        """Live sources drop the oldest frames when the engine is late; recordings wait instead."""
        spec = parse_source(self.source)
        return spec.kind != "file" or spec.flag("realtime")


class DecisionConfig(_Section):
    """Overrides of the bundle's thresholds; what is absent stays as the bundle has it."""

    pass_min: Annotated[float, Field(gt=0.5, le=1)] | None = None
    empty_min: Annotated[float, Field(gt=0.5, le=1)] | None = None
    fail_default: Annotated[float, Field(gt=0, le=1)] | None = None
    fail: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)


class PublishConfig(_Section):
    bind: Endpoint = "tcp://127.0.0.1:5556"
    encoding: Literal["json", "msgpack"] = "json"
    send_queue: Annotated[int, Field(ge=1, le=1_000_000)] = 1000


class HttpConfig(_Section):
    bind: HostPort = "127.0.0.1:9108"


class LogConfig(_Section):
    format: Literal["auto", "json", "pretty"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(BaseSettings):
    """Everything that can be configured. Order: environment, then the TOML file, then defaults."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, case_sensitive=False
    )

    model: ModelConfig
    engine: EngineConfig = EngineConfig()
    cameras: tuple[CameraConfig, ...] = Field(min_length=1)
    decision: DecisionConfig = DecisionConfig()
    publish: PublishConfig = PublishConfig()
    http: HttpConfig = HttpConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _distinct_cameras(self) -> Settings:
        _refuse_repeated([camera.name for camera in self.cameras], "camera")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @property
    def sha256(self) -> str:
        """Hash of the effective configuration, credentials redacted; verdicts carry its prefix."""
        public = self.model_dump(mode="json")
        for camera in public["cameras"]:
            camera["source"] = redact(camera["source"])
        return hashlib.sha256(repr(_sorted(public)).encode()).hexdigest()


def load_settings(path: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """Read, merge and validate the whole configuration; paths become relative to the file's folder.

    Raises:
        ConfigError: one line that names the file and the key as the user wrote it.
    """
    data = _read_toml(path)
    _refuse_unknown_environment(os.environ if environ is None else environ)
    try:
        settings = Settings(**data)
    except ValidationError as err:
        raise ConfigError(f"{path}: {_first_error(err)}") from None
    except Exception as err:
        # pydantic-settings wraps a malformed JSON value of an environment variable
        raise ConfigError(f"{path}: environment: {err}") from err
    return _resolve_paths(settings, path.resolve().parent)


def read_credentials(camera: CameraConfig, environ: Mapping[str, str] | None = None) -> tuple[str, str] | None:
    """User and password of a camera, from its `credentials_file` (one line, `user:password`), or None.

    A plain name is looked up in `$CREDENTIALS_DIRECTORY` (systemd's LoadCredential=) first.

    Raises:
        ConfigError: the file is missing or not of that form. The message never holds its content.
    """
    if camera.credentials_file is None:
        return None
    path = camera.credentials_file
    folder = (os.environ if environ is None else environ).get("CREDENTIALS_DIRECTORY")
    if folder and (Path(folder) / path.name).is_file():
        path = Path(folder) / path.name
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as err:
        why = err.strerror if isinstance(err, OSError) else "not UTF-8"
        raise ConfigError(f"camera {camera.name}: credentials_file {path}: cannot be read: {why}") from None
    user, colon, password = text.partition(":")
    if not colon or not user or "\n" in text:
        raise ConfigError(f"camera {camera.name}: credentials_file {path}: expected one line user:password")
    return user, password


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; config.example.toml is a start") from None
    except OSError as err:
        raise ConfigError(f"{path}: cannot be read: {err.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"{path}: is not valid TOML: {err}") from None


def _refuse_unknown_environment(environ: Mapping[str, str]) -> None:
    sections = set(Settings.model_fields)
    for variable in environ:
        if variable.upper().startswith(ENV_PREFIX):
            section = variable[len(ENV_PREFIX) :].split("__")[0].lower()
            if section not in sections:
                raise ConfigError(f"environment: {variable}: unknown section; known: {', '.join(sorted(sections))}")


def _first_error(err: ValidationError) -> str:
    first = err.errors()[0]
    where = ""
    for part in first["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key; `inspectd schema config` lists them all"
    elif first["type"] == "missing":
        message = "missing, but required"
    more = f" (and {err.error_count() - 1} more)" if err.error_count() > 1 else ""
    variable = ENV_PREFIX + "__".join(str(part).upper() for part in first["loc"])
    origin = f" (from the environment: {variable})" if variable in os.environ else ""
    return redact(f"{where}{origin}: {message}{more}" if where else f"{message}{more}")


def _refuse_repeated(names: list[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{what} name {name!r} is used twice; names must differ")


def _resolve_paths(settings: Settings, folder: Path) -> Settings:
    def resolved(camera: CameraConfig) -> CameraConfig:
        update: dict[str, Any] = {
            "rois": tuple(
                roi if roi.model is None else roi.model_copy(update={"model": folder / roi.model})
                for roi in camera.rois
            )
        }
        if camera.credentials_file is not None:
            update["credentials_file"] = folder / camera.credentials_file
        spec = parse_source(camera.source)
        if spec.kind == "file":
            query = camera.source.partition("?")[2]
            update["source"] = f"file:{folder / spec.location}" + (f"?{query}" if query else "")
        return camera.model_copy(update=update)

    return settings.model_copy(
        update={
            "model": ModelConfig(bundle=folder / settings.model.bundle),
            "cameras": tuple(resolved(camera) for camera in settings.cameras),
        }
    )
