"""Who may use the OPC UA server: everybody on this machine, or whose certificate lies in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from asyncua import Server, ua
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server.user_managers import UserManager
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)

from inspectd.config.plain_file import read_plain_file
from inspectd.errors import UsageError

log = structlog.get_logger(__name__)

MAX_BYTES = 65_536
"""Of a certificate or a key."""
POLICIES = [
    ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt,
    ua.SecurityPolicyType.Aes128Sha256RsaOaep_SignAndEncrypt,
    ua.SecurityPolicyType.Aes256Sha256RsaPss_SignAndEncrypt,
]


@dataclass(frozen=True, slots=True)
class Security:
    """Signed and encrypted connections only. `clients` is a folder of certificates (*.der, *.pem, *.crt)."""

    certificate: Path
    private_key: Path
    clients: Path

    def check(self) -> None:
        """Whether everything can be used, before anything is begun.

        Raises:
            UsageError: a file cannot be used; the message names it.
        """
        certificate = load_certificate(self.certificate)
        if not self.clients.is_dir():
            raise UsageError(f"--clients {self.clients}: no such folder")
        key = _load_key(self.private_key)
        if key.public_key() != certificate.public_key():
            raise UsageError(f"--private-key {self.private_key}: is not the key of {self.certificate}")

    async def apply(self, server: Server) -> None:
        """Before the server starts; after `check`."""
        own = load_certificate(self.certificate)
        try:
            names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            if uris := names.get_values_for_type(x509.UniformResourceIdentifier):
                await server.set_application_uri(uris[0])
        except x509.ExtensionNotFound:
            log.warning("certificate_without_uri", certificate=str(self.certificate))
        key = _load_key(self.private_key)
        der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        server.set_security_policy(POLICIES)
        await server.load_certificate(own.public_bytes(Encoding.DER), "der")
        await server.load_private_key(der, format="der")

    def trusts(self, certificate: bytes | None) -> bool:
        """Whether a client's certificate (DER) lies in the folder now, and is valid today.

        The folder is read each time somebody connects: who is taken out cannot connect any more.
        """
        if certificate is None:
            return False
        for path in sorted(self.clients.iterdir()):
            if path.suffix not in (".der", ".pem", ".crt"):
                continue
            try:
                known = load_certificate(path)
            except UsageError as err:
                log.warning("client_certificate_unreadable", path=str(path), why=str(err))
                continue
            if known.public_bytes(Encoding.DER) == certificate:
                return known.not_valid_before_utc <= datetime.now(UTC) <= known.not_valid_after_utc
        return False


class ReadersOnly(UserManager):
    """asyncua's user manager: nobody is an administrator, whatever name they give, so nobody can write."""

    def __init__(self, security: Security | None) -> None:
        self._security = security

    def get_user(
        self, iserver: Any, username: str | None = None, password: str | None = None, certificate: bytes | None = None
    ) -> User | None:
        """`certificate` is the one that the connection was proven with."""
        if self._security is not None and not self._security.trusts(certificate):
            log.warning("client_refused", why="its certificate is not in --clients, or not valid today")
            return None
        return User(role=UserRole.User)


def load_certificate(path: Path) -> x509.Certificate:
    """A certificate in PEM or DER.

    Raises:
        UsageError: one line that names the file.
    """
    data = read_plain_file(path, MAX_BYTES, f"certificate {path}")
    try:
        return x509.load_pem_x509_certificate(data) if b"-----BEGIN" in data else x509.load_der_x509_certificate(data)
    except ValueError:
        raise UsageError(f"certificate {path}: is no certificate in PEM or DER") from None


def _load_key(path: Path) -> RSAPrivateKey:
    data = read_plain_file(path, MAX_BYTES, f"--private-key {path}")
    try:
        key = load_pem_private_key(data, None) if b"-----BEGIN" in data else load_der_private_key(data, None)
    except (ValueError, TypeError):
        raise UsageError(f"--private-key {path}: is no unencrypted private key in PEM or DER") from None
    if not isinstance(key, RSAPrivateKey):
        raise UsageError(f"--private-key {path}: is no RSA key, which OPC UA needs")
    return key
