"""The clients that may connect: a folder of public certificates, read again whenever it changes.

CLIENT_KEYS/read/NAME.key       may listen and ask
CLIENT_KEYS/control/NAME.key    may also command
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from inspectd.errors import ConfigError, UsageError
from inspectd.verdict.control_schema import Role
from inspectd.verdict.keys import PUBLIC_SUFFIX, load_certificate

log = structlog.get_logger(__name__)

ROLES: tuple[Role, ...] = ("read", "control")
"""The folders, from the least right to the most: a key that lies in both has the most."""

_SETTLE_S = 2.0
"""A file changed so recently may change again without its stamp changing."""

_FAULTS = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors that say something about this machine and nothing about a key."""

_Stamp = tuple[Role, str, int, int, int, int]  # role, file name, inode, mtime_ns, ctime_ns, size


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody who may connect. `name` is the certificate's file name without its suffix; None without keys."""

    role: Role
    name: str | None = None

    def __str__(self) -> str:
        return self.role if self.name is None else f"{self.role}/{self.name}"


class Keyring:
    """The folder as it was when it was last looked at. One thread calls `refresh`, any may read `clients`."""

    def __init__(self, folder: Path) -> None:
        """Read the folder for the first time.

        Raises:
            ConfigError: it is missing or cannot be read; the message begins with the key of the configuration.
        """
        self.clients: Mapping[bytes, Client] = {}  # by public key, Z85; replaced whole, never changed
        self._folder = folder
        self._stamps: list[_Stamp] | None = None  # None: read it in any case
        self.problems: set[str] = set()  # of the last look, each told once
        try:
            next(folder.iterdir(), None)
            self._read(self._look())
        except OSError as err:
            missing = "no such folder; `inspectd keys client` makes and fills it"
            why = missing if isinstance(err, FileNotFoundError) else f"cannot be read: {err.strerror}"
            raise ConfigError(f"security.client_keys: {folder}: {why}") from None

    def refresh(self) -> bool:
        """Look at the folder; True when somebody lost a right that they had.

        A folder that is gone means that nobody may connect. One that cannot be read, because a disk fails, leaves
        everybody the rights that they had: the line goes on, and the log says so.
        """
        before = self.clients
        try:
            stamps = self._look()
            if stamps == self._stamps:
                return False
            self._read(stamps)
        except OSError as err:
            self._tell({f"{self._folder}: cannot be read, so everybody keeps their rights: {err.strerror}"})
            self._stamps = None
            return False
        return any(self.clients.get(key) != client for key, client in before.items())

    def _look(self) -> list[_Stamp]:
        stamps: list[_Stamp] = []
        for role in ROLES:
            try:
                with os.scandir(self._folder / role) as entries:
                    names = [entry.name for entry in entries]
            except FileNotFoundError:
                continue
            for name in names:
                if name.endswith(PUBLIC_SUFFIX) and not name.startswith("."):
                    try:
                        stat = (self._folder / role / name).stat()
                    except FileNotFoundError:  # gone since, or a link to nothing
                        continue
                    stamps.append((role, name, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size))
        return sorted(stamps)

    def _read(self, stamps: list[_Stamp]) -> None:
        clients: dict[bytes, Client] = {}
        problems: set[str] = set()
        for role in ROLES:
            for name in (stamp[1] for stamp in stamps if stamp[0] == role):
                path = self._folder / role / name
                if not name.isprintable():
                    problems.add(f"{path!a}: a file name with characters that cannot be shown")
                    continue
                try:
                    certificate = load_certificate(path)
                except UsageError as err:
                    if isinstance(err.__cause__, OSError) and err.__cause__.errno in _FAULTS:
                        raise err.__cause__ from None
                    problems.add(str(err))
                    continue
                if certificate.secret is not None:
                    problems.add(f"{path}: holds a secret key, which never leaves its client: put the .key file here")
                    continue
                clients[certificate.public] = Client(role, name.removesuffix(PUBLIC_SUFFIX))
        if not clients:
            problems.add(f"{self._folder}: holds no key in read/ or control/, so nobody can connect")
        newest = max((max(stamp[3:5]) for stamp in stamps), default=0)
        self._stamps = stamps if abs(time.time() - newest / 1e9) > _SETTLE_S else None
        self._tell(problems)
        if clients != self.clients:
            count = {role: sum(client.role == role for client in clients.values()) for role in ROLES}
            log.info("client_keys", folder=str(self._folder), **count)
        self.clients = clients

    def _tell(self, problems: set[str]) -> None:
        """Each problem once, and again only after it was gone."""
        for problem in sorted(problems - self.problems):
            log.error("client_keys_problem", problem=problem)
        self.problems = problems
