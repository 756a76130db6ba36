"""The settings: one frozen model, loaded once from TOML, environment and secret files.

Nothing below this package reads the environment. `config.example.toml` explains every key.
"""

from inspectd.config.credentials import read_credentials
from inspectd.config.plain_file import read_plain_file
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
    PartConfig,
    PublishConfig,
    RecipeConfig,
    RecipeRoi,
    RoiConfig,
    SecurityConfig,
)
from inspectd.config.settings import ENV_PREFIX, Settings, load_settings

__all__ = [
    "ENV_PREFIX",
    "CameraConfig",
    "ChallengeConfig",
    "ControlConfig",
    "DecisionConfig",
    "EngineConfig",
    "EvidenceConfig",
    "GoldenPicture",
    "HttpConfig",
    "JournalConfig",
    "LogConfig",
    "ModelConfig",
    "Name",
    "PartConfig",
    "PublishConfig",
    "RecipeConfig",
    "RecipeRoi",
    "RoiConfig",
    "SecurityConfig",
    "Settings",
    "load_settings",
    "read_credentials",
    "read_plain_file",
]
