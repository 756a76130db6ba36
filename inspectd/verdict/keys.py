"""Key pairs for the two sockets, as files: CURVE certificates in the format that every ZeroMQ binding reads.

`NAME.key` holds the public key and may be seen by anybody, `NAME.key_secret` holds both and may not.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.auth import load_certificate as read_certificate
from zmq.utils import z85

from inspectd.errors import UsageError

PUBLIC_SUFFIX = ".key"
SECRET_SUFFIX = ".key_secret"  # noqa: S105 - a file name
MAX_BYTES = 16_384
"""Longest certificate that is read; the ones with long metadata have a few hundred bytes."""

_PUBLIC_TEXT = """\
#   ZeroMQ CURVE public certificate, made by inspectd
#   Whoever shall talk to the owner of the secret half needs it. It is no secret.

metadata
curve
    public-key = "{public}"
"""
_SECRET_TEXT = """\
#   ZeroMQ CURVE **secret** certificate, made by inspectd
#   Belongs to one machine and one user: never hand it on, never make it readable for others.

metadata
curve
    public-key = "{public}"
    secret-key = "{secret}"
"""  # noqa: S105 - the form, not a key


@dataclass(frozen=True, slots=True)
class Certificate:
    """A CURVE key, Z85: 40 characters each. Its representation does not show the secret."""

    public: bytes
    secret: bytes | None = field(default=None, repr=False)


def load_certificate(path: Path, *, secret: bool = False) -> Certificate:
    """The certificate in a file; with `secret` the file must hold the secret key too, and be nobody else's.

    Raises:
        UsageError: one line that names the file: it is missing, no certificate, its keys are no pair, it lacks the
            secret key that is asked for, or it holds one that others can read or change.
    """
    mode = _mode_of(path)
    try:
        public, private = read_certificate(path)
    except OSError as err:
        raise UsageError(f"{path}: cannot be read: {err.strerror or 'gone'}") from err
    except (ValueError, IndexError):
        raise UsageError(f"{path}: no ZeroMQ certificate: it has no public-key; `inspectd keys` makes them") from None
    _check_key(path, "public-key", public)
    if private is None:
        if secret:
            raise UsageError(f"{path}: has only the public key; give the file {path.stem}{SECRET_SUFFIX}")
        return Certificate(public)
    _check_key(path, "secret-key", private)
    if mode & 0o026:
        raise UsageError(f"{path}: holds a secret key and others can read or change it: chmod 600 {path}")
    if zmq.curve_public(private) != public:
        raise UsageError(f"{path}: its two keys are no pair; make a new one with `inspectd keys`")
    return Certificate(public, private)


def write_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a key pair and write `NAME.key` and `NAME.key_secret`; what is there already is never replaced.

    Returns:
        The paths of the public and of the secret certificate, the secret one readable by its owner only.

    Raises:
        UsageError: the name is no file name, one of the files exists, or the folder cannot be written.
    """
    public, secret = (key.decode() for key in zmq.curve_keypair())
    public_path, secret_path = (certificate_path(folder, name, suffix) for suffix in (PUBLIC_SUFFIX, SECRET_SUFFIX))
    for path in (public_path, secret_path):
        if path.exists():
            raise UsageError(f"{path}: is there already; choose another name or folder, or move it away")
    write_new(secret_path, _SECRET_TEXT.format(public=public, secret=secret), 0o600)
    try:
        write_public(public_path, public.encode())
    except UsageError:
        secret_path.unlink()
        raise
    return public_path, secret_path


def write_public(path: Path, public: bytes) -> None:
    """Write a public certificate, readable by everybody.

    Raises:
        UsageError: it exists, or cannot be written.
    """
    write_new(path, _PUBLIC_TEXT.format(public=public.decode()), 0o644)


def certificate_path(folder: Path, name: str, suffix: str) -> Path:
    """Where a certificate of that name lies.

    Raises:
        UsageError: the name has other characters than letters, digits, `_`, `-` and inner dots.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}", name):
        raise UsageError(f"{name!r} is no name for a key: up to 64 letters, digits, '_', '-' and '.'")
    return folder / f"{name}{suffix}"


def write_new(path: Path, text: str, mode: int) -> None:
    """Write a file that must not exist yet, with exactly these permissions from its first byte on.

    Raises:
        UsageError: it exists, or cannot be written; then nothing is left of it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise UsageError(f"{path}: is there already, or its folder is a file; nothing was replaced") from None
    except OSError as err:
        raise UsageError(f"{path}: cannot be written: {err.strerror}") from None
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            os.fchmod(descriptor, mode)  # whatever the umask is
            file.write(text)
            file.flush()
            os.fsync(descriptor)
    except OSError as err:
        with suppress(OSError):
            path.unlink()
        raise UsageError(f"{path}: cannot be written: {err.strerror}") from None


def _mode_of(path: Path) -> int:
    """Permissions of a file that can be read without waiting and without end; a pipe or a device cannot."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; `inspectd keys` makes one") from None
    except (OSError, ValueError) as err:
        raise UsageError(f"{path}: cannot be read: {getattr(err, 'strerror', None) or err}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path}: is no file")
    if status.st_size > MAX_BYTES:
        raise UsageError(f"{path}: no ZeroMQ certificate: {status.st_size} bytes are more than {MAX_BYTES}")
    return stat.S_IMODE(status.st_mode)


def _check_key(path: Path, what: str, key: bytes) -> None:
    try:
        whole = len(key) == 40 and len(z85.decode(key)) == 32
    except (KeyError, struct.error):  # a character that Z85 does not have, or digits beyond 32 bits
        whole = False
    if not whole:
        raise UsageError(f"{path}: no ZeroMQ certificate: its {what} is not 40 characters of Z85")
