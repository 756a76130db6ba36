"""Reading a file that the configuration names: a plain one, of bounded size, without ever waiting for it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from inspectd.errors import ConfigError


def read_plain_file(path: Path, max_bytes: int, where: str, *, missing: str = "no such file") -> bytes:
    """The whole content. `where` is how an error begins: the key and the path.

    Raises:
        ConfigError: it is missing, no plain file (reading a pipe waits, a device has no end), longer than `max_bytes`,
            or cannot be read. The message never holds its content.
    """
    try:
        # Looked at once it is open, so that nothing else can take its place. Opening a pipe would wait, too.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(f"{where}: is no plain file")
            raw = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ConfigError(f"{where}: {missing}") from None
    except IsADirectoryError:
        raise ConfigError(f"{where}: is a folder, expected a file") from None
    except (OSError, ValueError) as err:  # ValueError: a character that no path can have
        raise ConfigError(f"{where}: cannot be read: {getattr(err, 'strerror', None) or err}") from None
    if len(raw) > max_bytes:
        raise ConfigError(f"{where}: is longer than {max_bytes:,} bytes")
    return raw
