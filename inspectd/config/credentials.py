"""A camera's user and password, which stand in a file of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from inspectd.config.plain_file import read_plain_file
from inspectd.config.sections import CameraConfig
from inspectd.errors import ConfigError

MAX_BYTES = 4096
"""As long as a `source` may be, in which they could stand as well."""


def read_credentials(camera: CameraConfig, environ: Mapping[str, str] | None = None) -> tuple[str, str] | None:
    """User and password of a camera, from its `credentials_file` (one line, `user:password`), or None.

    A plain name is looked up in `$CREDENTIALS_DIRECTORY` (systemd's LoadCredential=) first.

    Raises:
        ConfigError: the file is missing, no plain and short file, or not of that form. The message never holds its
            content.
    """
    if camera.credentials_file is None:
        return None
    path = camera.credentials_file
    folder = (os.environ if environ is None else environ).get("CREDENTIALS_DIRECTORY")
    if folder and os.path.lexists(Path(folder) / path.name):
        path = Path(folder) / path.name
    where = f"camera {camera.name}: credentials_file {path}"
    try:
        text = read_plain_file(path, MAX_BYTES, where).decode().strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: cannot be read: not UTF-8") from None
    user, colon, password = text.partition(":")
    if not colon or not user or "\n" in text:
        raise ConfigError(f"{where}: expected one line user:password")
    return user, password
