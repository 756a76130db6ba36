"""Reading a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from inspectd.errors import ConfigError


def read_toml(path: Path, otherwise: str) -> dict[str, Any]:
    """What is in the file; `otherwise` says in the error where one could come from.

    Raises:
        ConfigError: it cannot be read, in one line that begins with the path.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; {otherwise}") from None
    except OSError as err:
        raise ConfigError(f"{path}: cannot be read: {err.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"{path}: is not valid TOML: {err}") from None
