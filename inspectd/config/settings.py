"""The whole of the settings: merged from environment and TOML, validated, with paths made absolute."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from inspectd.config.bindings import bind_everywhere, named_bundles
from inspectd.config.sections import (
    CameraConfig,
    ChallengeConfig,
    ControlConfig,
    DecisionConfig,
    EngineConfig,
    EvidenceConfig,
    GoldenPicture,
    HttpConfig,
    JournalConfig,
    LogConfig,
    ModelConfig,
    Name,
    PublishConfig,
    RecipeConfig,
    RoiConfig,
    SecurityConfig,
    is_local,
    refuse_repeated,
)
from inspectd.config.toml import read_toml
from inspectd.errors import ConfigError
from inspectd.source_spec import parse_source, redact

ENV_PREFIX = "INSPECTD__"


class Settings(BaseSettings):
    """Everything that can be configured. Order: environment, then the TOML file, then defaults."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, case_sensitive=False
    )

    model: ModelConfig
    engine: EngineConfig = EngineConfig()
    cameras: tuple[CameraConfig, ...] = Field(min_length=1)
    decision: DecisionConfig = DecisionConfig()
    recipe: Name | None = None
    recipes: dict[Name, RecipeConfig] = Field(default_factory=dict)
    challenge: ChallengeConfig = ChallengeConfig()
    publish: PublishConfig = PublishConfig()
    control: ControlConfig = ControlConfig()
    security: SecurityConfig = SecurityConfig()
    journal: JournalConfig = JournalConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    http: HttpConfig = HttpConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        self.check()
        return self

    def check(self) -> None:
        """Whether the sections fit each other.

        Raises:
            ValueError: they do not.
        """
        refuse_repeated([camera.name for camera in self.cameras], "camera")
        self._check_recipes()
        for name in [None, *self.recipes]:
            _check_challenge(self.with_recipe(name), name)
        if self.security.server_key is None and not self.security.insecure:
            for key, bind in (("publish.bind", self.publish.bind), ("control.bind", self.control.bind)):
                if not is_local(bind):
                    raise ValueError(
                        f"{key}: {bind} is no loopback address and anybody could connect: bind 127.0.0.1, "
                        "set security.server_key and security.client_keys, or write security.insecure = true"
                    )

    def _check_recipes(self) -> None:
        if self.recipe is not None and self.recipe not in self.recipes:
            raise ValueError(f"recipe {self.recipe!r} is not one of [recipes]: {', '.join(self.recipes) or 'none'}")
        known = {camera.name for camera in self.cameras}
        for name, recipe in self.recipes.items():
            for roi in recipe.rois:
                if roi.camera not in known:
                    raise ValueError(f"recipes.{name}: ROI {roi.name!r} is of camera {roi.camera!r}, which is none")

    def with_recipe(self, name: str | None) -> Settings:
        """The settings as they are in force under a recipe: its parts in place of the common ones.

        `None` is what stands outside the recipes. Always ask the settings as loaded, not those of another recipe.

        Raises:
            KeyError: there is no such recipe.
        """
        if name is None:
            return self.model_copy(update={"recipe": None})
        recipe = self.recipes[name]
        own_model = None if recipe.bundle is None else ModelConfig(bundle=recipe.bundle, sha256=recipe.sha256)
        challenge = self.challenge
        if recipe.challenge is not None:
            challenge = challenge.model_copy(update={"pictures": recipe.challenge})
        return self.model_copy(
            update={
                "recipe": name,
                "model": own_model or self.model,
                "decision": self.decision if recipe.decision is None else recipe.decision,
                "cameras": tuple(_with_rois(camera, recipe) for camera in self.cameras),
                "challenge": challenge,
            }
        )

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
    def bundles(self) -> tuple[Path, ...]:
        """Every bundle that judges a ROI."""
        used = [roi.model or self.model.bundle for camera in self.cameras for roi in camera.rois]
        return tuple(dict.fromkeys(used))

    @property
    def bindings(self) -> dict[Path, str]:
        """The SHA-256, in hex, that a bundle which judges a ROI must have, where one is given."""
        return {bundle: sha256 for bundle, sha256 in named_bundles(self.model, self.cameras) if sha256 is not None}

    @property
    def sha256(self) -> str:
        """Hash of the effective configuration, credentials redacted; verdicts carry its prefix."""
        return hashlib.sha256(repr(_sorted(self.public())).encode()).hexdigest()

    def public(self) -> dict[str, Any]:
        """The settings as plain values, credentials redacted."""
        public = self.model_dump(mode="json")
        for camera in public["cameras"]:
            camera["source"] = redact(camera["source"])
        return public


def load_settings(path: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """Read, merge and validate the whole configuration; paths become relative to the file's folder.

    Raises:
        ConfigError: one line that names the file and the key as the user wrote it.
    """
    data = read_toml(path, "config.example.toml is a start")
    _refuse_unknown_environment(os.environ if environ is None else environ)
    try:
        settings = Settings(**data)
    except ValidationError as err:
        raise ConfigError(f"{path}: {_first_error(err)}") from None
    except Exception as err:
        # pydantic-settings wraps a malformed JSON value of an environment variable
        raise ConfigError(f"{path}: environment: {err}") from err
    try:
        return bind_everywhere(_resolve_paths(settings, path.resolve().parent))
    except ValueError as err:
        raise ConfigError(f"{path}: {err}") from None


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value


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


def _with_rois(camera: CameraConfig, recipe: RecipeConfig) -> CameraConfig:
    own = tuple(RoiConfig(**roi.model_dump(exclude={"camera"})) for roi in recipe.rois if roi.camera == camera.name)
    return CameraConfig.model_validate(camera.model_dump() | {"rois": own}) if own else camera


def _check_challenge(settings: Settings, recipe: str | None) -> None:
    known = {(camera.name, roi.name) for camera in settings.cameras for roi in camera.rois}
    where = "challenge" if recipe is None else f"recipes.{recipe}.challenge"
    for number, picture in enumerate(settings.challenge.pictures):
        if (picture.camera, picture.roi) not in known:
            raise ValueError(
                f"{where}: picture {number} ({picture.file.name}) is of {picture.camera}/{picture.roi}, "
                "which is no camera and ROI" + ("" if recipe is None else " of this recipe")
            )


_Picture = TypeVar("_Picture", bound=GoldenPicture)
_Roi = TypeVar("_Roi", bound=RoiConfig)


def _resolve_paths(settings: Settings, folder: Path) -> Settings:
    """Every path in the settings, taken from the folder of the file that names it."""

    def at(path: Path | None) -> Path | None:
        return None if path is None else folder / path

    def regions(rois: Iterable[_Roi]) -> tuple[_Roi, ...]:
        return tuple(roi.model_copy(update={"model": at(roi.model)}) for roi in rois)

    def pictures(golden: Iterable[_Picture]) -> tuple[_Picture, ...]:
        return tuple(picture.model_copy(update={"file": folder / picture.file}) for picture in golden)

    def resolved(camera: CameraConfig) -> CameraConfig:
        update: dict[str, Any] = {
            "rois": regions(camera.rois),
            "credentials_file": at(camera.credentials_file),
            "quality": at(camera.quality),
        }
        spec = parse_source(camera.source)
        if spec.kind == "file":
            query = camera.source.partition("?")[2]
            update["source"] = f"file:{folder / spec.location}" + (f"?{query}" if query else "")
        return camera.model_copy(update=update)

    def of_recipe(recipe: RecipeConfig) -> RecipeConfig:
        update = {"bundle": at(recipe.bundle), "rois": regions(recipe.rois)}
        golden = None if recipe.challenge is None else pictures(recipe.challenge)
        return recipe.model_copy(update=update | {"challenge": golden})

    security, challenge = settings.security, settings.challenge
    return settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"bundle": folder / settings.model.bundle}),
            "cameras": tuple(resolved(camera) for camera in settings.cameras),
            "recipes": {name: of_recipe(recipe) for name, recipe in settings.recipes.items()},
            "challenge": challenge.model_copy(update={"pictures": pictures(challenge.pictures)}),
            "security": security.model_copy(
                update={"server_key": at(security.server_key), "client_keys": at(security.client_keys)}
            ),
            "journal": settings.journal.model_copy(update={"path": at(settings.journal.path)}),
            "evidence": settings.evidence.model_copy(update={"dir": at(settings.evidence.dir)}),
        }
    )
