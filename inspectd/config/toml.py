"""Reading a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from inspectd.config.plain_file import read_plain_file
from inspectd.errors import ConfigError

MAX_BYTES = 1_000_000
"""Ten thousand lines. What is longer is no configuration."""


def read_toml(path: Path, otherwise: str) -> dict[str, Any]:
    """What is in the file; `otherwise` says in the error where one could come from.

    Raises:
        ConfigError: it cannot be read, in one line that begins with the path.
    """
    raw = read_plain_file(path, MAX_BYTES, str(path), missing=f"no such file; {otherwise}")
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
