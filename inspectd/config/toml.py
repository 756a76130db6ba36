"""Reading a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from inspectd.errors import ConfigError

MAX_BYTES = 1_000_000
"""Ten thousand lines. What is longer is no configuration."""


def read_toml(path: Path, otherwise: str) -> dict[str, Any]:
    """What is in the file; `otherwise` says in the error where one could come from.

    Raises:
        ConfigError: it cannot be read, in one line that begins with the path.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; {otherwise}") from None
    except OSError as err:
        raise ConfigError(f"{path}: cannot be read: {err.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: is longer than {MAX_BYTES:,} bytes; name the TOML file")
    if b"\\u0000" in raw or b"\\U00000000" in raw:
        raise ConfigError(f"{path}: holds the character \\u0000, which no name or path can have; remove it")
    try:
        return tomllib.loads(raw.decode())
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except RecursionError:
        raise ConfigError(f"{path}: is not valid TOML: too many brackets within each other") from None
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"{path}: is not valid TOML: {err}") from None
